"""What a person names as a checkpoint: a directory, an index, a single file, or a model on the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from zamba_compat.checkpoint.hub.names import on_hub
from zamba_compat.errors import CheckpointError

from .file_kinds import LENGTH, refuse_adapter_alone, refuse_other_kinds
from .files import stays_inside

Format = Literal["safetensors", "torch"]
SUFFIXES: dict[Format, tuple[str, ...]] = {"safetensors": (".safetensors",), "torch": (".bin", ".pt", ".pth")}
INDEX_SUFFIX = ".index.json"
MANIFEST = "zamba_compat_manifest.json"
_NAMES: dict[Format, str] = {"safetensors": "model.safetensors", "torch": "pytorch_model.bin"}
_OTHER_WEIGHTS = (".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz", ".part", ".incomplete", ".tmp")
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies.

    Attributes:
        directory: its directory, links resolved.
        file: the index or the single file of weights, in that directory; its own link is not followed.
        format: how the weights are stored.
        rival: a single file of weights that lies beside the index and was not asked for.
        name: a hub id, or the directory's name.
        revision: the commit of a snapshot in the hub's cache.
    """

    directory: Path
    file: Path
    format: Format
    rival: Path | None
    name: str
    revision: str | None

    @property
    def is_index(self) -> bool:
        return self.file.name.endswith(INDEX_SUFFIX)


def locate(source: str | os.PathLike[str], *, allow_pickle: bool = True) -> Location:
    """Find what `source` names. Of two formats in one directory safetensors is taken.

    What is nothing on this machine and has the form of a model on the hub, OWNER/NAME or OWNER/NAME@REVISION, is looked
    up there, and downloaded into its cache; see `hub.download.fetch`.

    Args:
        source: a directory, an index, a single file of weights, or a name on the hub.
        allow_pickle: whether pickled weights are worth a download.

    Raises:
        CheckpointError: nothing there, or no weights there.
    """
    path = Path(os.fsdecode(source))
    try:
        path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, no permission; a null character
        reason = getattr(error, "strerror", None) or str(error)
        _refuse(f"It cannot be read: {reason}.", ascii(str(path)[:200]), "Check the path.")
    name = None
    if (hub := on_hub(os.fsdecode(source))) is not None:
        from zamba_compat.checkpoint.hub.download import fetch

        name, path = hub.id, fetch(hub, "weights" if allow_pickle else "safetensors")
    if path.is_dir():
        return _in_directory(Path(os.path.realpath(path)), name)
    if not path.is_file():
        what = "This is neither a directory nor a regular file." if os.path.lexists(path) else "It does not exist."
        _refuse(what, str(path), "Give a checkpoint's directory, its index or its file of weights.")
    directory, bare = Path(os.path.realpath(path.parent)), path.name.removesuffix(INDEX_SUFFIX)
    for format, suffixes in SUFFIXES.items():
        if bare.endswith(suffixes):
            return _location(directory, directory / path.name, format, None, None)
    with path.open("rb") as file:
        refuse_other_kinds(file.read(LENGTH), where=str(path), pickle=True)
    _refuse("This is no file of weights and no index.", str(path), "Give a .safetensors file or its index.json.")


def companions(directory: Path, shards: frozenset[str]) -> tuple[tuple[Path, ...], tuple[str, ...], tuple[str, ...]]:
    """What lies beside the weights.

    Returns:
        the files a conversion copies (tokenizer, generation config, chat templates, README); weights that belong to
        nothing; other names that are not copied, because they are code, directories, or no files of this directory.
    """
    copied: list[Path] = []
    stray: list[str] = []
    left: list[str] = []
    weights = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes) + _OTHER_WEIGHTS
    templates = directory / _TEMPLATES
    inner = entries(templates) if templates.is_dir() and stays_inside(templates, directory) else []
    for path in [*entries(directory), *inner]:
        name = path.name
        if name in ("config.json", MANIFEST) or name in shards or path == templates:
            continue
        if name.endswith((*weights, INDEX_SUFFIX)):
            if not name.endswith(INDEX_SUFFIX):
                stray.append(name)
        elif path.is_file() and stays_inside(path, directory) and not name.startswith(".") and _may_be_copied(name):
            copied.append(path)
        elif not name.startswith("."):
            left.append(name)
    return tuple(copied), tuple(stray), tuple(left)


def entries(directory: Path) -> list[Path]:
    """What lies in a directory, sorted. Raises CheckpointError where it cannot be listed."""
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise _unlisted(directory, error) from error


def enter(directory: Path) -> None:
    """Raises CheckpointError where the files of a directory cannot be looked at: to Python they are not there then."""
    try:
        os.lstat(directory / "config.json")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unlisted(directory, error) from error


def _unlisted(directory: Path, error: OSError) -> CheckpointError:
    what = f"The directory cannot be read: {error.strerror or error}."
    return CheckpointError(what, where=str(directory), remedy="Change its permissions, or the user's.")


def _may_be_copied(name: str) -> bool:
    """No code, and a name that JSON and terminals can hold (bytes that are no text are not printable)."""
    return not name.endswith(".py") and name.isprintable()


def _in_directory(directory: Path, name: str | None) -> Location:
    enter(directory)
    for format, stem in _NAMES.items():
        index, single = directory / (stem + INDEX_SUFFIX), directory / stem
        if os.path.lexists(index):
            return _location(directory, index, format, single if os.path.lexists(single) else None, name)
        if os.path.lexists(single):
            return _location(directory, single, format, None, name)
    refuse_adapter_alone(directory, where=str(directory))
    found = [path.name for path in entries(directory) if path.name.endswith(SUFFIXES["safetensors"])]
    remedy = "Is this the directory of a checkpoint?"
    if len(found) == 1:
        remedy = f"To read {found[0]}, give that file."
    elif found:
        remedy = "The shards need their index: get model.safetensors.index.json from the checkpoint's source."
    names = " or ".join(stem + end for stem in _NAMES.values() for end in ("", INDEX_SUFFIX))
    _refuse(f"There is no {names}.", str(directory), remedy)


def _location(directory: Path, file: Path, format: Format, rival: Path | None, name: str | None) -> Location:
    revision = None
    if directory.parent.name == "snapshots":
        revision = directory.name
        if directory.parent.parent.name.startswith("models--"):
            name = directory.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    own = os.fsencode(directory.name).decode(errors="replace")  # any bytes, where a hub id is text
    return Location(directory, file, format, rival, name or own, revision)


def _refuse(what: str, where: str, remedy: str) -> NoReturn:
    raise CheckpointError(what, where=where, remedy=remedy)

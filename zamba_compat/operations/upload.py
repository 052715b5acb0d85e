"""A directory as a model on the hub, in one commit, after every byte of it was checked."""

from __future__ import annotations

import os
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.hub import bars
from zamba_compat.checkpoint.hub.names import HubName, parse
from zamba_compat.checkpoint.hub.reasons import LOGIN, of_upload, unreachable
from zamba_compat.checkpoint.progress import Progress
from zamba_compat.checkpoint.reading.location import MANIFEST, SUFFIXES, entries
from zamba_compat.errors import CheckpointError, DestinationError, ZambaCompatError

from .verify import verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_WEIGHTS = (*(suffix for suffixes in SUFFIXES.values() for suffix in suffixes), ".index.json")


@dataclass(frozen=True)
class Target:
    """Attributes: name, of the model and the branch; public, whether everybody may read it."""

    name: HubName
    public: bool = False

    def command(self, directory: str | os.PathLike[str]) -> str:
        """What uploads a directory there."""
        words = ["zamba-compat", "upload", os.fspath(directory), str(self.name)]
        return shlex.join([*words, *(["--public"] if self.public else [])])


@dataclass(frozen=True)
class Uploaded:
    """Attributes: url of the model; commit, its hash; private; files, how many it has of the directory."""

    url: str
    commit: str
    private: bool
    files: int


@dataclass(frozen=True)
class _Present:
    """What is on the hub. Attributes: commit, the branch's head, None without the branch; files in it."""

    commit: str | None
    files: tuple[str, ...]


def target(name: str, *, public: bool = False) -> Target:
    """Where an upload goes, asked of the hub before anything takes time: it knows who is logged in, and of a model that
    is there already, whether it is as public as it shall be.

    Raises:
        DestinationError: no name of a model; nobody is logged in; no network; another visibility.
    """
    found = parse(name)
    if found is None:
        remedy = "Give OWNER/NAME, or OWNER/NAME@BRANCH."
        raise DestinationError("That is no name that a model on the hub can have.", where=name, remedy=remedy)
    where = Target(found, public)
    try:
        api = _connected()
        token = (api.whoami().get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            raise DestinationError("The token may only read.", remedy=f"Log in with one that may write: {LOGIN}")
        _look(api, where)
    except ZambaCompatError as error:
        raise DestinationError(error.what, where=name, remedy=error.remedy) from error
    except Exception as error:  # the library's own, its client's for HTTP, the system's: releases differ in which
        reason = of_upload(error, found)
        raise DestinationError(reason.what, where=name, remedy=reason.remedy or "Try again later.") from error
    return where


def upload(
    directory: str | os.PathLike[str],
    where: Target,
    *,
    message: str = "Upload by zamba-compat",
    progress: Progress | None = None,
) -> Uploaded:
    """Upload a directory as a model, all of it or nothing: its files are compared with its manifest, the model is made
    (private, unless `where` says public) if it is not there, and one commit adds every file.

    The same commit removes weights, indices and manifests that the model had and the directory has not: two models in
    one place are none. Other files of the model stay.

    Args:
        directory: of a checkpoint or an adapter, hidden files left out.
        where: see `target`.
        message: of the commit.
        progress: makes what shows progress of comparing; the upload has huggingface_hub's own bars.

    Raises:
        DestinationError: nothing was uploaded; it says why, and which command uploads the directory.
        CheckpointError: no such directory, nothing in it that is a model, or not what its manifest says.
    """
    try:
        files = _files(Path(directory))
        if MANIFEST in files:
            found = verify(directory, progress=progress)
            if not found.ok:
                raise CheckpointError(
                    f"It is not what was written, and was not uploaded: {found.faults[0]}",
                    where=os.fspath(directory),
                    remedy=f"zamba-compat verify {shlex.quote(os.fspath(directory))} lists every difference.",
                )
        with bars.as_wished(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what a card could say beside
            return _commit(_connected(), files, where, message)
    except KeyboardInterrupt as stopped:
        what = "Stopped by SIGINT; nothing was uploaded."
        raise KeyboardInterrupt(_kept(directory, where, what, "")) from stopped
    except DestinationError as error:
        raise _kept(directory, where, error.what, error.remedy or "") from error
    except ZambaCompatError:
        raise
    except Exception as error:  # as in `target`
        reason = of_upload(error, where.name)
        raise _kept(directory, where, reason.what, reason.remedy) from error


def _kept(directory: str | os.PathLike[str], where: Target, what: str, remedy: str) -> DestinationError:
    kept = f"{os.fspath(directory)} is complete; to upload it: {where.command(directory)}"
    return DestinationError(what, where=str(where.name), remedy=f"{remedy} {kept}".lstrip())


def _connected() -> HfApi:
    """Raises DestinationError where there is no network, or it is not wanted."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise DestinationError("HF_HUB_OFFLINE keeps everything from the hub.", remedy="Unset it to upload.")
    reason = unreachable(constants.ENDPOINT)
    if reason is not None:
        what = f"The hub cannot be reached ({constants.ENDPOINT}: {reason})."
        raise DestinationError(what, remedy="Connect to the network.")
    return HfApi()


def _look(api: HfApi, where: Target) -> _Present | None:
    """What is there already; None where there is no such model.

    Raises:
        DestinationError: it is public and shall not be, or the other way round.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name = where.name
    try:
        info = api.model_info(name.id)
    except RepositoryNotFoundError:
        return None
    if bool(info.private) == where.public:
        is_, how = ("private", "leave --public out") if info.private else ("public", "pass --public to upload there")
        remedy = f"Change that in its settings ({api.endpoint}/{name.id}/settings), or {how}."
        raise DestinationError(f"The model is there, and it is {is_}.", remedy=remedy)
    if name.revision is not None:
        try:
            info = api.model_info(name.id, revision=name.revision)
        except RevisionNotFoundError:
            return _Present(None, ())
    return _Present(str(info.sha), tuple(file.rfilename for file in info.siblings or ()))


def _commit(api: HfApi, files: dict[str, Path], where: Target, message: str) -> Uploaded:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name, present = where.name, _look(api, where)
    if present is None:
        api.create_repo(name.id, private=not where.public, exist_ok=False)
    if name.revision is not None and (present is None or present.commit is None):
        api.create_branch(name.id, branch=name.revision)
    present = _look(api, where) if present is None or present.commit is None else present
    assert present is not None
    operations: list[Any] = [CommitOperationAdd(path, file) for path, file in files.items()]
    operations += [CommitOperationDelete(path) for path in present.files if path not in files and _is_model(path)]
    done = api.create_commit(
        name.id, operations, commit_message=message, revision=name.revision, parent_commit=present.commit
    )
    url = f"{api.endpoint}/{name.id}" + (f"/tree/{name.revision}" if name.revision else "")
    return Uploaded(url, str(done.oid), not where.public, len(files))


def _is_model(path: str) -> bool:
    return "/" not in path and (path.endswith(_WEIGHTS) or path == MANIFEST)


def _files(directory: Path) -> dict[str, Path]:
    """Name on the hub -> file, of everything in a directory that is not hidden.

    Raises:
        CheckpointError: it cannot be listed, or holds no model.
    """
    found: dict[str, Path] = {}

    def add(folder: Path, before: str) -> None:
        for path in entries(folder):
            if path.name.startswith("."):
                continue
            if path.is_dir() and not path.is_symlink():
                add(path, f"{before}{path.name}/")
            elif path.is_file():
                found[before + path.name] = path

    add(directory, "")
    if not any(name in found for name in ("config.json", "adapter_config.json")):
        remedy = "Give the directory of a checkpoint or an adapter."
        raise CheckpointError("There is no config.json.", where=str(directory), remedy=remedy)
    return found

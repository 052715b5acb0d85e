"""A model of the hub as a directory in the local cache: what is not there is downloaded, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zamba_compat.errors import CheckpointError

from . import bars
from .names import HubName
from .reasons import of_download, unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Wanted = Literal["safetensors", "weights", "everything"]
_INDEX = ".index.json"
_WEIGHTS = {"safetensors": "model.safetensors", "torch": "pytorch_model.bin"}
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".md", ".yml", ".yaml")
_TEMPLATES = "additional_chat_templates/"
_LEGAL = ("LICENSE", "NOTICE", "USE_POLICY")


def fetch(name: HubName, wanted: Wanted = "weights") -> Path:
    """The directory of a model in the local cache, which is brought up to date with the hub first.

    Without a network, or with HF_HUB_OFFLINE, the cache alone is asked. Of the model's files those are taken that a
    checkpoint consists of, or that belong with a copy of one: config, tokenizer, card and licence, and one set of
    weights, in safetensors where there are any.

    Args:
        name: of the model.
        wanted: "safetensors" downloads no pickled weights; "everything" leaves no file out, for comparing with a
            manifest.

    Raises:
        CheckpointError: it is neither in the cache nor to be had from the hub; or its weights are pickled.
    """
    from huggingface_hub import HfApi, constants

    with bars.as_wished():
        if constants.HF_HUB_OFFLINE:
            return _cached(name, None)
        endpoint = constants.ENDPOINT
        reason = unreachable(endpoint)
        if reason is not None:
            return _cached(name, f"The hub cannot be reached ({endpoint}: {reason}).")
        api = HfApi()
        try:
            return _download(api, name, wanted)
        except CheckpointError:
            raise
        except Exception as error:  # the library's own, its client's for HTTP, the system's: releases differ in which
            return _instead(name, error, endpoint)


def _download(api: HfApi, name: HubName, wanted: Wanted) -> Path:
    from huggingface_hub import constants, snapshot_download

    info = api.model_info(name.id, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    names = [file.rfilename for file in info.siblings or () if not file.rfilename.startswith(".")]
    chosen = names
    if wanted != "everything":
        chosen = [*filter(_is_beside, names), *_weights(name, names, str(info.sha), pickled=wanted == "weights")]
    # By the name of the revision, which the cache then knows, too.
    return Path(snapshot_download(name.id, revision=name.revision, allow_patterns=list(map(_literally, chosen))))


def _is_beside(name: str) -> bool:
    if name.startswith(_TEMPLATES):
        return True
    return "/" not in name and (name.endswith(_BESIDE) or name.startswith(_LEGAL)) and not name.endswith(_INDEX)


def _weights(name: HubName, names: Iterable[str], commit: str, *, pickled: bool) -> list[str]:
    """The files of one set of weights, and its index."""
    from huggingface_hub import hf_hub_download

    for format, single in _WEIGHTS.items():
        index = single + _INDEX
        if index not in names and single not in names:
            continue
        if format == "torch" and not pickled:
            raise CheckpointError(
                "These weights are pickled, and a pickle can run code when it is read.",
                where=f"{name}/{index if index in names else single}",
                remedy="Convert them to safetensors, or pass --allow-pickle to read the tensors and nothing else.",
            )
        if index not in names:
            return [single]
        shards = _named_in(Path(hf_hub_download(name.id, index, revision=commit)))
        if single in names and single not in shards:  # as for a directory, before it is downloaded
            raise CheckpointError(
                f"An index and a single {single} lie side by side, and both hold a model.",
                where=str(name),
                remedy=f"Download the one that is meant and give its file: hf download {name.id} {single}",
            )
        return [index, *(file for file in names if file in shards)]
    return []


def _literally(name: str) -> str:
    """A pattern of shells that matches this name alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _instead(name: HubName, error: Exception, endpoint: str) -> Path:
    """What the cache holds, where the hub does not answer as it should."""
    from huggingface_hub.errors import RevisionNotFoundError

    found = None if isinstance(error, RevisionNotFoundError) else _in_cache(name)
    if found is not None and _is_whole(found):
        return found
    reason = of_download(error, name, endpoint)
    raise CheckpointError(reason.what, where=str(name), remedy=reason.remedy) from error


def _cached(name: HubName, why: str | None) -> Path:
    """The directory in the cache; of one with missing shards it is told when it is read.

    Raises:
        CheckpointError: it is not there, or without any weights, and `why` the hub was not asked.
    """
    found = _in_cache(name)
    if found is not None and any(path.name.endswith((".safetensors", ".bin", _INDEX)) for path in found.iterdir()):
        return found
    what = "There is no such directory, and the local hub cache holds no such model."
    if found is not None:
        what = "There is no such directory, and the local hub cache holds a part of the model, without weights."
    words = f"hf download {name.id}" + (f" --revision {name.revision}" if name.revision else "")
    raise CheckpointError(
        what if why is None else f"{what} {why}",
        where=str(name),
        remedy=f"Give a local directory, or download it first: {words}",
    )


def _in_cache(name: HubName) -> Path | None:
    """The directory in the cache, whole or not."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name.id, revision=name.revision, local_files_only=True))
    except (OSError, ValueError) as error:  # not in the cache, or not all of it; not a hub id after all
        partly = getattr(error, "snapshot_path", None)  # of releases that know what is missing, also what nobody wants
        return None if partly is None else Path(partly)


def _is_whole(directory: Path) -> bool:
    """Whether there are a config and one set of weights."""
    if not (directory / "config.json").exists():
        return False
    for single in _WEIGHTS.values():
        index = directory / (single + _INDEX)
        if index.exists():
            shards = _named_in(index)
            return bool(shards) and all((directory / shard).exists() for shard in shards)
        if (directory / single).exists():
            return True
    return False


def _named_in(index: Path) -> frozenset[str]:
    """The files that an index names; none where it is damaged, which is told when it is read."""
    try:
        words: Any = json.loads(index.read_bytes())
        return frozenset(map(str, words["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return frozenset()

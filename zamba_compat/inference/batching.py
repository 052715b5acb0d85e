"""Answers to many prompts: JSONL in, JSONL out, in the order of the prompts."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError, DestinationError

from . import stopping
from .chatting import require_template, template_ids
from .generation import Sampling, decode, encode, end_tokens
from .journal import Journal, digest
from .loading import Loaded, peak_memory
from .streams import Stream, is_stream, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

PROMPT, MESSAGES = "prompt", "messages"


@dataclass(frozen=True)
class Request:
    """One line of the input. Attributes: its number from 0; "id" if it has one; the prompt, or messages of a chat."""

    index: int
    id: Any
    prompt: str | None
    messages: list[dict[str, str]] | None


@dataclass(frozen=True)
class BatchReport:
    """Attributes: answers found done, answered now; tokens made now; seconds; peak_memory in bytes."""

    output: str
    found: int
    answered: int
    new_tokens: int
    seconds: float
    peak_memory: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def read_requests(path: Path) -> tuple[list[Request], str]:
    """The requests of a JSONL file, "-" for standard input, and the hash of its bytes.

    Raises:
        CheckpointError: naming the line that is none.
    """
    data, where = read_bytes(path)
    requests: list[Request] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _refused(where, number, f"is no JSON: {error}") from error
        if "\\ud" in line.decode("utf-8", "replace").lower() and not _is_text(found):
            raise _refused(where, number, "holds half of a surrogate pair, which is no text")
        if not isinstance(found, dict) or not {PROMPT, MESSAGES} & found.keys():
            raise _refused(where, number, f'has neither "{PROMPT}" nor "{MESSAGES}"')
        if found.keys() >= {PROMPT, MESSAGES}:
            raise _refused(where, number, f'has both "{PROMPT}" and "{MESSAGES}"')
        prompt, messages = found.get(PROMPT), found.get(MESSAGES)
        if prompt == "":
            raise _refused(where, number, f'has an empty "{PROMPT}"')
        if PROMPT in found and not isinstance(prompt, str):
            raise _refused(where, number, f'has a "{PROMPT}" that is no text')
        if MESSAGES in found and not _are_messages(messages):
            raise _refused(where, number, f'has "{MESSAGES}" that are no list of {{"role": ..., "content": ...}}')
        requests.append(Request(len(requests), found.get("id"), prompt, messages))
    return requests, digest(data)


def run_batch(
    source: Path,
    output: Path,
    load: Callable[[], Loaded],
    sampling: Sampling,
    *,
    identity: dict[str, Any],
    batch_size: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> BatchReport:
    """Answer every request that the output does not hold yet.

    Args:
        source: a JSONL file of {"prompt": text} or {"messages": [...]}, each with an "id" if wanted; "-" is standard
            input.
        output: gets {"index", "id", "text", "prompt_tokens", "new_tokens", "finish_reason"} for each, in order. "-" is
            standard output: to it, as to pipes and devices, all answers are written, whatever went there before.
        load: gives the model; not called where nothing is left to do.
        sampling: how. Sampled answers depend on where a run was interrupted; greedy ones do not.
        identity: what the answers depend on besides the requests: the model, how it is loaded, the seed.
        batch_size: prompts at once, padded on the left. Greedy answers do not depend on it, up to rounding.
        overwrite: begin anew.
        progress: called with answers done and all.

    Raises:
        CheckpointError: a line that is no request; messages for a model without chat template.
        DestinationError: see `Journal`.
    """
    streamed = is_stream(output)
    if not streamed and output.exists() and source.exists() and output.samefile(source):
        raise DestinationError("It is the input itself.", where=str(output), remedy="Choose another output.")
    if not streamed and (output.is_dir() or not output.absolute().parent.is_dir()):
        what = "It is a directory." if output.is_dir() else "Its directory does not exist."
        raise DestinationError(what, where=str(output), remedy="Give a file in a directory that exists.")
    requests, sha256 = read_requests(source)
    words = {**identity, "requests_sha256": sha256, "sampling": sampling.identity()}
    start, tokens, device = time.perf_counter(), 0, "cpu"
    # What is there goes, and what is not there comes, only when there is a model to answer with.
    early = _load(load, requests) if streamed or overwrite or not output.exists() else None
    with Stream(output) if streamed else Journal(output, words, overwrite=overwrite) as journal:
        found = journal.done
        if found > len(requests):
            raise CheckpointError(
                f"It has {found} answers, the input {len(requests)} requests.", where=str(output), remedy="--overwrite"
            )
        left = requests[found:]
        loaded = early or (_load(load, left) if left else None)
        for at in range(0, len(left), batch_size):
            assert loaded is not None
            device = loaded.device
            answers = answer(loaded, left[at : at + batch_size], sampling)
            journal.append(answers)
            tokens += sum(one["new_tokens"] for one in answers)
            if progress is not None:
                progress(journal.done, len(requests))
        return BatchReport(
            output=str(output),
            found=found,
            answered=journal.done - found,
            new_tokens=tokens,
            seconds=time.perf_counter() - start,
            peak_memory=peak_memory(device),
        )


def answer(loaded: Loaded, requests: Sequence[Request], sampling: Sampling) -> list[dict[str, Any]]:
    """Answer some requests at once; prompts are padded on the left."""
    import torch

    prompts = [_ids(loaded, request) for request in requests]
    width = max(ids.shape[1] for ids in prompts)
    pad = loaded.tokenizer.pad_token_id
    batch = torch.full((len(prompts), width), pad, dtype=torch.long, device=loaded.device)
    mask = torch.zeros_like(batch)
    for row, ids in enumerate(prompts):
        batch[row, width - ids.shape[1] :] = ids[0]
        mask[row, width - ids.shape[1] :] = 1
    with torch.inference_mode():
        words = {**sampling.words(), **stopping.words(loaded, sampling.stop, width)}
        out = loaded.model.generate(batch, attention_mask=mask, pad_token_id=pad, **words)
    ends = end_tokens(loaded)
    answers = []
    for row, request in enumerate(requests):
        new = out[row, width:].tolist()
        stop = next((i for i, token in enumerate(new) if token in ends), None)
        count = len(new) if stop is None else stop + 1
        until = stopping.tokens_until(loaded.tokenizer, new[:count], sampling.stop)
        new = new[: until or count]
        answers.append(
            {
                "index": request.index,
                **({} if request.id is None else {"id": request.id}),
                "text": stopping.cut(decode(loaded, new), sampling.stop),
                "prompt_tokens": prompts[row].shape[1],
                "new_tokens": len(new),
                "finish_reason": "length" if stop is None and until is None else "stop",
            }
        )
    return answers


def _load(load: Callable[[], Loaded], requests: Sequence[Request]) -> Loaded:
    loaded = load()
    if any(request.messages is not None for request in requests):
        require_template(loaded)
    return loaded


def _ids(loaded: Loaded, request: Request) -> Tensor:
    if request.messages is not None:
        return template_ids(loaded, request.messages)
    return encode(loaded, request.prompt or "")


def _are_messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and isinstance(one.get("content"), str) and "role" in one for one in value)
    )


def _is_text(value: object) -> bool:
    """Whether everything in it can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(where: str, line: int, what: str) -> CheckpointError:
    return CheckpointError(f"Line {line} {what}.", where=where, remedy='Write one {"prompt": "..."} per line.')

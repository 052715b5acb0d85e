"""Text from a prompt, piece by piece, and what it cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import ZambaCompatError

from . import stopping
from .loading import Loaded, peak_memory

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the names are those of transformers' GenerationConfig.

    Attributes:
        max_new_tokens: the most tokens of an answer.
        temperature: 0 takes the likeliest token each time (greedy).
        top_p, top_k: sample from the likeliest tokens only; 1.0 and 0 switch each off. Both want a temperature.
        repetition_penalty: above 1 makes tokens that have been used less likely.
        min_p: sample from tokens that are at least this likely, relative to the likeliest; 0 switches it off. It wants
            a temperature too.
        stop: texts before which an answer ends.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for wrong, what in (
            (self.max_new_tokens < 1, f"max_new_tokens is {self.max_new_tokens}, not 1 or more"),
            (not self.temperature >= 0, f"temperature is {self.temperature}, not 0 or more"),
            (not 0 < self.top_p <= 1, f"top_p is {self.top_p}, not above 0 and at most 1"),
            (self.top_k < 0, f"top_k is {self.top_k}, not 0 or more"),
            (not 0 <= self.min_p <= 1, f"min_p is {self.min_p}, not from 0 to 1"),
            ("" in self.stop, "stop is an empty text, which is everywhere"),
            (not self.repetition_penalty > 0, f"repetition_penalty is {self.repetition_penalty}, not above 0"),
        ):
            if wrong:
                raise ZambaCompatError(f"{what}.", remedy="Give another value.")
        given = {"top_p": self.top_p < 1, "top_k": self.top_k > 0, "min_p": self.min_p > 0}
        if self.temperature == 0 and any(given.values()):
            name = next(name for name, is_given in given.items() if is_given)
            raise ZambaCompatError(
                f"{name} says what to sample from, and at temperature 0 nothing is sampled.",
                remedy="Give a temperature, such as 1, or leave them out.",
            )

    def words(self) -> dict[str, Any]:
        """The arguments of `generate` that choose tokens; a value that greedy search does not know is left out."""
        words: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            words |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            words["min_p"] = self.min_p or None
        else:  # what generation_config.json may set
            words |= {"temperature": None, "top_p": None, "top_k": None, "min_p": None}
        return words | {"repetition_penalty": self.repetition_penalty}

    def identity(self) -> dict[str, Any]:
        """What answers depend on, for a journal: as it was written before there were min_p and stop, where they are
        not used."""
        newer = {"min_p": self.min_p, "stop": self.stop}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in newer or newer[name]}


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: without the prompt.
        prompt_tokens, new_tokens: counts.
        finish_reason: "stop" after an end token, "length" at max_new_tokens.
        first_token_seconds: from the call to the first token.
        seconds: in all.
        peak_memory: bytes, see `loading.peak_memory`.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    first_token_seconds: float
    seconds: float
    peak_memory: int

    @property
    def tokens_per_second(self) -> float:
        """After the first token, which the prompt's own length decides; 0 where there is no other."""
        rest = self.seconds - self.first_token_seconds
        return (self.new_tokens - 1) / rest if self.new_tokens > 1 and rest > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "tokens_per_second": self.tokens_per_second}


def generate(
    loaded: Loaded,
    prompt: str | Tensor,
    sampling: Sampling | None = None,
    *,
    stream: Callable[[str], object] | None = None,
) -> Generation:
    """Generate from a prompt.

    Args:
        loaded: the model.
        prompt: a text, or token ids [1, length].
        sampling: how.
        stream: is given each piece of text once no later token can change it.

    Raises:
        ZambaCompatError: the prompt has no tokens.
        CheckpointError: the model computes NaN.
    """
    import torch

    sampling = sampling or Sampling()
    ids = encode(loaded, prompt) if isinstance(prompt, str) else prompt.to(loaded.device)
    if not ids.shape[1]:
        raise ZambaCompatError("The prompt is empty.", remedy="Give some text.")
    held = None if stream is None else stopping.Held(stream, sampling.stop)
    watch = _Watch(loaded.tokenizer, held)
    with torch.inference_mode():
        out = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=loaded.tokenizer.pad_token_id,
            streamer=watch,
            **sampling.words(),
            **stopping.words(loaded, sampling.stop, ids.shape[1]),
        )
    if held is not None:
        held.end()
    seconds = time.perf_counter() - watch.start
    new = out[0, ids.shape[1] :].tolist()
    text = decode(loaded, new)
    ended = bool(new) and new[-1] in end_tokens(loaded)
    stopped = ended or stopping.tokens_until(loaded.tokenizer, new, sampling.stop) is not None
    return Generation(
        text=stopping.cut(text, sampling.stop),
        prompt_tokens=ids.shape[1],
        new_tokens=len(new),
        finish_reason="stop" if stopped else "length",
        first_token_seconds=(watch.first or seconds + watch.start) - watch.start,
        seconds=seconds,
        peak_memory=peak_memory(loaded.device),
    )


def encode(loaded: Loaded, text: str) -> Tensor:
    """Token ids [1, length] on the model's device."""
    return loaded.tokenizer(text, return_tensors="pt").input_ids.to(loaded.device)  # type: ignore[no-any-return]


def decode(loaded: Loaded, tokens: Iterable[int]) -> str:
    """The text of new tokens."""
    return str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True))


def end_tokens(loaded: Loaded) -> frozenset[int]:
    """The ids that end an answer."""
    found = loaded.model.generation_config.eos_token_id
    ids = found if isinstance(found, list) else [found]
    return frozenset(i for i in ids if i is not None)


class _Watch:
    """A streamer: transformers calls `put` with the prompt, then with each token, and `end`."""

    def __init__(self, tokenizer: Any, stream: Callable[[str], object] | None) -> None:
        self._inner = None if stream is None else _pieces(tokenizer, stream)
        self._prompt_seen = False
        self.start = time.perf_counter()
        self.first: float | None = None

    def put(self, value: Any) -> None:
        if self._prompt_seen and self.first is None:
            self.first = time.perf_counter()
        self._prompt_seen = True
        if self._inner is not None:
            self._inner.put(value)

    def end(self) -> None:
        if self._inner is not None:
            self._inner.end()


def _pieces(tokenizer: Any, stream: Callable[[str], object]) -> Any:
    """transformers' TextStreamer, which knows when a piece of text is final, writing elsewhere."""
    from transformers import TextStreamer

    class Pieces(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                stream(text)

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)

"""Quantize a checkpoint tensor by tensor, with bitsandbytes or compressed-tensors; no model is built."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from zamba_compat.checkpoint.dtypes import from_torch
from zamba_compat.checkpoint.layouts.shapes import is_head
from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.checkpoint.reading.files import write_all
from zamba_compat.checkpoint.reading.stored import StoredBytes
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.resolving import compressed, quantization
from zamba_compat.checkpoint.resolving.compressed import Compressed
from zamba_compat.checkpoint.resolving.quantization import WORKSPACE
from zamba_compat.checkpoint.resolving.streamed_layers import Layers
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.checkpoint.writing.writer import Output
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.operations.calibrate import read_text, windows_of

if TYPE_CHECKING:
    from torch import Tensor

    from zamba_compat.checkpoint.layouts.contents import Contents
    from zamba_compat.checkpoint.writing.report import Options

_SCRATCH = ".quantized"
Find = Callable[[str], "StoredBytes | None"]


class Stored(Protocol):
    """Where tensors are read from: a checkpoint, or several."""

    def read(self, name: str) -> Tensor: ...
    def stored_bytes(self, name: str) -> StoredBytes | None: ...


class Method(Protocol):
    """How to quantize: `checkpoint.resolving.quantization.Method` or `checkpoint.resolving.compressed.Compressed`."""

    @property
    def name(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    def require(self) -> dict[str, str]: ...
    def takes(self, name: str, dtype: str, shape: tuple[int, ...], sharing: SharingMap) -> bool: ...
    def words(self, sharing: SharingMap, heads: Iterable[str]) -> dict[str, Any]: ...
    def announce(self, dtype: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]: ...
    def quantize(self, weight: Tensor, where: str) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Calibration:
    """A text as token ids, in windows that are run apart, and what the model needs to run it, see `streamed_layers`."""

    windows: Sequence[Tensor]
    config: Mapping[str, Any]
    sharing: SharingMap
    prefix: str


@dataclass(frozen=True)
class Quantization:
    """Which tensors are quantized, and how.

    Attributes:
        method: how.
        names: the weights, by their names in the output.
        words: config.json's quantization_config.
        made_by: what does it, for the manifest.
        calibration: what it is rounded on; None rounds to nearest.
    """

    method: Method
    names: frozenset[str]
    words: Mapping[str, Any]
    made_by: Mapping[str, str]
    calibration: Calibration | None = None

    @property
    def sentence(self) -> str:
        """For the model card."""
        return self.method.sentence + (" Rounded by GPTQ on a text." if self.calibration is not None else "")

    def announced(self, outputs: tuple[Output, ...]) -> tuple[Output, ...]:
        """The outputs with what becomes of quantized ones in their place; see `Method.announce` for how exact it is."""
        found: list[Output] = []
        for output in outputs:
            if output.name not in self.names:
                found.append(output)
                continue
            for end, (dtype, shape) in self.method.announce(output.dtype, output.shape).items():
                found.append(_part(output.name, end, dtype, shape))
        return tuple(found)


def check(contents: Contents, options: Options) -> None:
    """Refuse at once what cannot be quantized; nothing happens where that was not asked for.

    Raises:
        UnsupportedReleaseError: no release of bitsandbytes or compressed-tensors that can do it.
        CheckpointError: a source that is quantized already, or a text that cannot be read.
    """
    if options.quantize is None:
        return
    if contents.quantized:
        raise CheckpointError(
            "The checkpoint is quantized already.",
            where=contents.where,
            remedy="Quantize the checkpoint that it was made from.",
        )
    method_of(options).require()
    if options.gptq is not None:
        read_text(options.gptq)


def plan(
    outputs: tuple[Output, ...], config: Mapping[str, Any], contents: Contents, options: Options
) -> Quantization | None:
    """What to quantize of a conversion's outputs; None where nothing was asked for.

    Args:
        outputs: the tensors of the hub layout.
        config: config.json of the output.
        contents: the source.
        options: what was asked for.

    Raises:
        CheckpointError: a weight that cannot be quantized as it is.
    """
    if options.quantize is None:
        return None
    method = method_of(options, config)
    made_by = method.require()
    sharing = SharingMap.from_config(config)
    known = [output for output in outputs if output.name not in contents.unknown]
    names = {output.name for output in known if method.takes(output.name, output.dtype, output.shape, sharing)}
    heads = [output.name.removesuffix(".weight") for output in known if is_head(output.name)]
    calibration = None
    if options.gptq is not None:
        calibration = _calibration(options.gptq, config, sharing, contents)
        made_by["text"] = hashlib.sha256(read_text(options.gptq).encode()).hexdigest()
    return Quantization(method, frozenset(names), method.words(sharing, heads), made_by, calibration)


def _calibration(text: str, config: Mapping[str, Any], sharing: SharingMap, contents: Contents) -> Calibration:
    import torch.nn.functional as F

    from zamba_compat.checkpoint.resolving.gptq import TOKENS

    if sharing.model_type != "zamba2":
        raise CheckpointError("Zamba (v1) is not rounded by a text.", remedy="Leave --gptq out.")
    windows = windows_of(Path(contents.where), read_text(text), TOKENS)
    begin = config.get("bos_token_id")
    if begin is not None:
        windows = [F.pad(ids, (1, 0), value=int(begin)) for ids in windows]
    return Calibration(windows, config, sharing, contents.prefix)


def method_of(options: Options, config: Mapping[str, Any] | None = None) -> Method:
    """The method that was asked for, for a model with this config.json."""
    assert options.quantize is not None
    if options.quantize in compressed.METHODS:
        size = compressed.GROUP_SIZE if options.group_size is None else options.group_size
        kept, ordered = options.keep_shared_16bit, options.act_order
        return Compressed(options.quantize, size, not options.asymmetric, tuple(options.ignore), kept, ordered)
    own = (config or {}).get("torch_dtype") if options.quantize != "int8" else None
    compute_dtype = options.compute_dtype or (own if own in ("bfloat16", "float16") else "float32")
    return quantization.Method(options.quantize, options.double_quant, compute_dtype, options.keep_shared_16bit)


@contextmanager
def quantized(
    outputs: tuple[Output, ...],
    quantization: Quantization | None,
    checkpoint: Stored,
    staging: Staging,
    progress: Progress | None = None,
) -> Iterator[tuple[tuple[Output, ...], Find]]:
    """Quantize into a file beside the shards, and give what `write_shards` needs; the file is gone after the block.

    A shard holds its tensors by dtype, so what is made of one weight lies far apart in it, and where depends on lengths
    that only quantizing tells. Hence the file: each weight is quantized once, and what is made of it waits there.

    Args:
        outputs: the tensors, not quantized.
        quantization: the plan; None gives everything as it is.
        checkpoint: the source.
        staging: where to.
        progress: makes what shows progress.

    Yields:
        the tensors to write, and where their sources lie, see `Checkpoint.stored_bytes`.

    Raises:
        CheckpointError: a weight holds what cannot be quantized.
        DestinationError: too little room for the file and the shards, or it could not be written.
    """
    if quantization is None:
        yield outputs, checkpoint.stored_bytes
        return
    planned = quantization.announced(outputs)
    staging.require(sum(output.nbytes * (2 if output.recipe.sources[:1] == (_SCRATCH,) else 1) for output in planned))
    with _scratch(staging) as (file, path):
        places: dict[str, StoredBytes] = {}
        total = sum(output.nbytes for output in outputs if output.name in quantization.names)
        made: dict[str, list[Output]] = {}
        with counting(progress, "quantizing", total) as update:
            for output, parts in _parts_of(outputs, quantization, checkpoint):
                made[output.name] = []
                for part, place in _set_down(output, parts, file, path):
                    made[output.name].append(part)
                    places[part.recipe.sources[0]] = place
                update(output.nbytes)
        found = [part for output in outputs for part in made.get(output.name, [output])]

        def find(name: str) -> StoredBytes | None:
            return places[name] if name in places else checkpoint.stored_bytes(name)

        yield tuple(found), find


def peak_memory(outputs: Iterable[Output], quantization: Quantization | None = None) -> int:
    """An estimate of the anonymous memory for quantizing these tensors, all of which are quantized, bytes."""
    # In 8 bits a byte per weight; in 4 bits half of one, and twice the absmaxes, before they are joined and after.
    shapes = {output.name: output.shape for output in outputs}
    largest = max(map(math.prod, shapes.values()), default=0)
    calibration = quantization.calibration if quantization is not None else None
    if calibration is None or not largest:
        return WORKSPACE + largest if largest else 0
    from zamba_compat.checkpoint.resolving.gptq import memory

    nothing: dict[str, Tensor] = {}
    layers = Layers(calibration.config, calibration.sharing, calibration.prefix, nothing.__getitem__)
    return WORKSPACE + memory(layers, sum(map(len, calibration.windows)), shapes)


@contextmanager
def _scratch(staging: Staging) -> Iterator[tuple[BinaryIO, Path]]:
    path = staging.path / _SCRATCH
    with staging.create(_SCRATCH) as file:
        yield file, path
        file.truncate(0)  # or all of it would have to reach the disk before it is removed
    os.unlink(path)


def _parts_of(
    outputs: Iterable[Output], quantization: Quantization, checkpoint: Stored
) -> Iterator[tuple[Output, Mapping[str, Tensor]]]:
    """What is made of every weight that is quantized, in whatever order."""
    method, calibration = quantization.method, quantization.calibration
    if calibration is None:
        for output in outputs:
            if output.name in quantization.names:
                yield output, method.quantize(output.recipe.made(checkpoint.read), output.name)
        return
    from zamba_compat.checkpoint.resolving.gptq import rounded

    assert isinstance(method, Compressed)
    known = {output.name: output for output in outputs}

    def read(name: str) -> Tensor:
        return known[name].recipe.made(checkpoint.read)

    layers = Layers(calibration.config, calibration.sharing, calibration.prefix, read)
    for name, parts in rounded(layers, calibration.windows, method, quantization.names):
        yield known[name], parts


def _set_down(
    output: Output, parts: Mapping[str, Tensor], file: BinaryIO, path: Path
) -> Iterator[tuple[Output, StoredBytes]]:
    import torch

    for end, tensor in parts.items():
        part = _part(output.name, end, from_torch(tensor.dtype) or "", tuple(tensor.shape))
        data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        place = StoredBytes(path, file.tell(), part.nbytes)
        write_all(file.fileno(), memoryview(data))
        yield replace(part, recipe=Recipe((f"{_SCRATCH}/{part.name}",))), place


def _part(weight: str, end: str, dtype: str, shape: tuple[int, ...]) -> Output:
    """`end` as `Method.quantize` returns it; the recipe stands for a place that is not known yet."""
    return Output(weight.removesuffix("weight") + end, dtype, shape, Recipe((_SCRATCH,)))

"""Round weights so that the outputs of their layers on a text change least, layer by layer; no model is built.

GPTQ (Frantar et al. 2022, arXiv 2210.17323): the columns of a weight are rounded one after another, and what rounding
one did to the outputs is taken back, as far as it can be, by the columns that are not rounded yet. What that takes is
the Hessian of the squared error, the sum of x x^T over the inputs x of the text.

A shared block is rounded first, its Hessians summed over all positions that run it (an adapter's come from the one
position it has), one block after the other; then layer after layer, on inputs that the rounded ones before it made.
At a time there are the Hessians of one block or of one linear: about 2 GB for a block of 7B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from .quantization import refuse_nonfinite
from .streamed_layers import Layers, Module

if TYPE_CHECKING:
    from torch import Tensor

    from .compressed import Compressed

TOKENS = 8192  # of the text that count, in all
DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it
_BLOCK = 128  # columns rounded before the rest is corrected for all of them at once

_SHARES = ("self_attn.k_proj.weight", "self_attn.v_proj.weight")  # the Hessian of q_proj

Parts = dict[str, "Tensor"]


class Hessians:
    """Sums of x x^T over inputs, float32; linears that get the same input share one."""

    def __init__(self, wanted: frozenset[str]) -> None:
        """`wanted`: the weights it is for."""
        self._wanted = wanted
        self._sums: dict[str, Tensor] = {}
        self._of: dict[str, str] = {}

    def add(self, names: Sequence[str], x: Tensor) -> None:
        """Inputs [tokens, columns] of linears."""
        names = [name for name in names if name in self._wanted]
        if names:
            self._of.update(dict.fromkeys(names, names[0]))
            product = x.T @ x
            self._sums[names[0]] = self._sums[names[0]].add_(product) if names[0] in self._sums else product

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[self._of[name]]


def rounded(
    layers: Layers, windows: Sequence[Tensor], method: Compressed, names: frozenset[str]
) -> Iterator[tuple[str, Parts]]:
    """Every weight that is quantized, and what is stored of it, see `Compressed.quantize`.

    Args:
        layers: the model as it is stored.
        windows: token ids [tokens] that are run apart.
        method: how to quantize, w4a16 or w8a16.
        names: the weights.

    Raises:
        CheckpointError: NaN or infinity in a weight or in what it computes.
    """
    blocks: dict[str, Parts] = {}

    def read(name: str) -> Tensor:
        return method.dequantized(blocks[name]) if name in blocks else layers.read(name)

    model = Layers(layers.config, layers.sharing, layers.prefix, read)
    for block in range(model.sharing.num_blocks):
        made = _block(model, windows, method, names, block)
        blocks.update(made)
        yield from made.items()
    yield from _layers(model, windows, method, names)


def memory(layers: Layers, tokens: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """An estimate of the anonymous memory that `rounded` needs, bytes.

    Args:
        layers: the model.
        tokens: of all windows.
        shapes: of the weights that are quantized.
    """
    prefix = layers.block(0).prefix
    block = {name: shape for name, shape in shapes.items() if name.startswith(prefix)} or dict(shapes)
    sums = sum(shape[1] ** 2 for name, shape in block.items() if not name.endswith(_SHARES))
    largest = max((shape[1] ** 2 for shape in shapes.values()), default=0)
    weights = sum(rows * columns for rows, columns in block.values())
    return 4 * (sums + 3 * largest + weights + 4 * tokens * int(layers.config["hidden_size"]))


def _block(
    model: Layers, windows: Sequence[Tensor], method: Compressed, names: frozenset[str], block: int
) -> dict[str, Parts]:
    """The weights of a block, from the inputs that the model gives it now."""
    own = [name for name in sorted(names) if name.startswith(model.block(block).prefix)]
    if not own:
        return {}
    found = Hessians(frozenset(own))
    last = model.sharing.layers_of(block)[-1]
    embedded = [model.embed(ids) for ids in windows]
    hidden = list(embedded)
    for index in range(last + 1):
        position = model.position(index)
        watch = found.add if position is not None and position.block == block else None
        shared = None if position is None else model.block(position.block, watch)
        layer, mixer = model.layer(index), model.mixer(index)
        for i, x in enumerate(hidden):
            if index == last and shared is not None and position is not None:
                model.run_block(shared, position.index, x, embedded[i])
                continue
            entering = x
            if shared is not None and position is not None:
                entering = x + layer.linear(model.run_block(shared, position.index, x, embedded[i]), "linear")[0]
            projected = _projected(model, mixer, entering)
            hidden[i] = x + mixer.linear(model.between(mixer, projected), "mamba.out_proj", bias=_bias(model))[0]
    return {name: round_weight(model.read(name), found[name], method, name) for name in own}


def _layers(
    model: Layers, windows: Sequence[Tensor], method: Compressed, names: frozenset[str]
) -> Iterator[tuple[str, Parts]]:
    """The weights that belong to one layer each, in depth order."""
    embedded = [model.embed(ids) for ids in windows]
    hidden = list(embedded)
    made: dict[str, Parts] = {}

    def settle(module: Module, linear: str, inputs: Sequence[Tensor]) -> None:
        """Round a weight, and go on with what became of it."""
        name = f"{module.prefix}{linear}.weight"
        if name in names:
            found = Hessians(frozenset([name]))
            for x in inputs:
                found.add([name], x)
            made[name] = round_weight(model.read(name), found[name], method, name)
            module.put(f"{linear}.weight", method.dequantized(made[name]))

    for index in range(model.sharing.num_layers):
        position, layer, mixer = model.position(index), model.layer(index), model.mixer(index)
        entering = hidden
        if position is not None:
            block = model.block(position.block)
            out = [model.run_block(block, position.index, x, e) for x, e in zip(hidden, embedded, strict=True)]
            del block
            settle(layer, "linear", out)
            entering = [x + layer.linear(y, "linear")[0] for x, y in zip(hidden, out, strict=True)]
        settle(mixer, "mamba.in_proj", [model.norm(x, mixer["input_layernorm.weight"]) for x in entering])
        inner = [model.between(mixer, _projected(model, mixer, x)) for x in entering]
        settle(mixer, "mamba.out_proj", inner)
        mixed = (mixer.linear(y, "mamba.out_proj", bias=_bias(model))[0] for y in inner)
        hidden = [x + y for x, y in zip(hidden, mixed, strict=True)]
        yield from made.items()
        made.clear()


def _projected(model: Layers, mixer: Module, x: Tensor) -> Tensor:
    return mixer.linear(model.norm(x, mixer["input_layernorm.weight"]), "mamba.in_proj", bias=_bias(model))[0]


def _bias(model: Layers) -> bool:
    return model.sharing.linear_bias


def round_weight(weight: Tensor, hessian: Tensor, method: Compressed, where: str) -> Parts:
    """What is stored of one weight.

    Args:
        weight: (rows, columns).
        hessian: (columns, columns), the sum of x x^T; is not changed.
        method: how; with `act_order` the columns with the largest diagonal first, the groups where they were.
        where: what to call it in errors.

    Raises:
        CheckpointError: NaN or infinity.
    """
    import torch

    if not (hessian.isfinite().all() and weight.isfinite().all()):
        raise refuse_nonfinite([where])
    columns = weight.shape[1]
    group = columns if method.group_size == -1 else method.group_size
    order = hessian.diagonal().argsort(descending=True, stable=True) if method.act_order else torch.arange(columns)
    left = weight.float()[:, order]  # a copy: what is not rounded yet, corrected
    factor = inverse_factor(hessian[order][:, order])
    group_of = order // group
    # In order, each group's scale comes from its columns as they are when it begins.
    early = method.act_order or group == columns
    scale, zero = method.scales(weight, where)
    step = _BLOCK if early else group
    for start in range(0, columns, step):
        here = slice(start, min(start + step, columns))
        if not early:
            now, none = method.scales_of(left[:, here], weight.dtype)
            scale[:, start // group], zero[:, start // group] = now, none
        errors = torch.empty_like(left[:, here])
        for column in range(here.start, here.stop):
            at = int(group_of[column])
            value = method.nearest(left[:, column], scale[:, at], zero[:, at])
            error = (left[:, column] - value) / factor[column, column]
            left[:, column] = value
            left[:, column + 1 : here.stop] -= error[:, None] * factor[column, column + 1 : here.stop]
            errors[:, column - start] = error
        left[:, here.stop :] -= errors @ factor[here, here.stop :]
    values = torch.empty_like(left)
    values[:, order] = left
    return method.packed(values, scale, zero)


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor U of the damped Hessian's inverse, U^T U = H^-1, float32.

    A column that no input reached says nothing of itself and takes part in nothing. Damping is doubled until the
    Hessian can be factored.
    """
    import torch

    h = hessian.clone()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1
    damping = DAMPING * float(diagonal.mean())
    while True:
        diagonal += damping
        lower, failed = torch.linalg.cholesky_ex(h)
        if not failed:
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 2

"""What a GPU user does, run on the stand-ins of fused_kernels.py: each case measures its error against the reference.

The errors are relative, of logits or gradients, against the float64 reference; quantized models against that with
dequantized weights. `CASES` holds, by name, what is run and the error that is allowed. Used by the conformance tests
and by tools/check_simulated.py, with and without zamba_compat.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from support import fused_kernels, reference, synthetic

FLOAT, QUANTIZED, SHORT = 1e-4, 3e-2, 8e-2
LENGTH = 40
# Of one group and of two. The layers are cut down to a first plain one and hybrids whose blocks alternate.
PATTERNS = {"1.2B": ("mamba", "hybrid", "hybrid"), "7B": ("mamba", "hybrid", "hybrid", "hybrid")}
SETTINGS = {"time_step_min": 1e-9, "use_mem_eff_path": True}


class Bench:
    """Models of one pattern, each loaded once and copied for every use.

    stock: without zamba_compat. functions: other kernels than the stand-ins.
    """

    def __init__(self, pattern: str, directory: Path, stock: bool, functions: dict[str, Any] | None = None) -> None:
        self.pattern, self.directory, self.stock, self.functions = pattern, directory, stock, functions
        self._loaded: dict[Any, Any] = {}

    def case(self, **settings: Any) -> synthetic.Case:
        more = {**SETTINGS, "layers_block_type": PATTERNS[self.pattern], **settings}
        return synthetic.case(self.pattern, length=LENGTH, **more)

    def model(self, method: str | None = None, attn_implementation: str = "sdpa", **settings: Any) -> Any:
        """A copy of the model with `settings` in its config, quantized by a method of conformance.quantization."""
        import transformers

        from conformance.quantization import bnb_config

        key = (method, attn_implementation, *sorted(settings.items()))
        if key not in self._loaded:
            case = self.case(**settings)
            folder = synthetic.write_checkpoint(self.directory / str(len(self._loaded)), case.state, case.config)
            more = {} if method is None else {"quantization_config": bnb_config(method)}
            self._loaded[key] = transformers.AutoModelForCausalLM.from_pretrained(
                folder, torch_dtype=torch.float32, attn_implementation=attn_implementation, **more
            )
        return copy.deepcopy(self._loaded[key]).eval()

    def kernels(self) -> Any:
        return fused_kernels.in_use(self.functions, stock=self.stock)


def _error(got: Tensor, want: Tensor) -> float:
    return reference.relative_difference(got, want)


def _wanted(state: synthetic.State, config: synthetic.Config, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return reference.forward(state, config, ids, mask)


def prompt(bench: Bench, train: bool = False, **settings: Any) -> float:
    case, model = bench.case(**settings), bench.model(**settings).train(train)
    with bench.kernels(), torch.set_grad_enabled(train):
        return _error(model(case.ids, use_cache=False).logits, case.logits)


def tokens(bench: Bench, steps: tuple[int, ...] = (30, *[1] * 10), **settings: Any) -> float:
    """A prompt and then some tokens at a time."""
    case, model = bench.case(**settings), bench.model(**settings)
    return _error(_in_steps(bench, model, case.ids, None, steps), case.logits)


@torch.no_grad()
def _in_steps(bench: Bench, model: Any, ids: Tensor, mask: Tensor | None, steps: tuple[int, ...]) -> Tensor:
    found, cache, past = [], None, 0
    name = "cache" if "cache" in inspect.signature(type(model.model).forward).parameters else "past_key_values"
    with bench.kernels():
        for step in steps:
            more = {} if cache is None else {name: cache}
            if mask is not None or past:
                whole = torch.ones_like(ids) if mask is None else mask
                more["attention_mask"] = whole[:, : past + step]
            given = ids[:, past : past + step]
            if mask is not None:
                more["position_ids"] = _positions(mask)[:, past : past + step]
            try:
                out = model(given, use_cache=True, cache_position=torch.arange(past, past + step), **more)
            except TypeError:  # releases that count the tokens themselves
                out = model(given, use_cache=True, **more)
            found.append(out.logits)
            cache, past = getattr(out, name), past + step
    return torch.cat(found, 1)


def _padded(case: synthetic.Case, side: str) -> tuple[Tensor, Tensor]:
    """Two rows, of which the second has padding."""
    ids, mask = case.ids.repeat(2, 1), torch.ones(2, LENGTH, dtype=torch.long)
    holes = {"left": [slice(0, 9)], "right": [slice(31, 40)], "inner": [slice(5, 7), slice(20, 27)]}[side]
    for hole in holes:
        mask[1, hole] = 0
        ids[1, hole] = 0
    return ids, mask


def _positions(mask: Tensor) -> Tensor:
    """Those of the tokens without their padding, as generate() counts them."""
    return (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)


def padding(bench: Bench, side: str, train: bool = False, **settings: Any) -> float:
    case, model = bench.case(**settings), bench.model(**settings).train(train)
    ids, mask = _padded(case, side)
    want = _wanted(case.state, case.config, ids, mask)
    with bench.kernels(), torch.set_grad_enabled(train):
        return _error(model(ids, attention_mask=mask, position_ids=_positions(mask), use_cache=False).logits, want)


def padded_tokens(bench: Bench, side: str, steps: tuple[int, ...] = (30, 1, 1, 8)) -> float:
    case, model = bench.case(), bench.model()
    ids, mask = _padded(case, side)
    want = _wanted(case.state, case.config, ids, mask)
    return _error(_in_steps(bench, model, ids, mask, steps), want)


def _weights(like: Tensor) -> Tensor:
    """What a loss weighs logits with: fixed numbers, none where `like` is NaN."""
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn.masked_fill(like.isnan(), 0)


def _gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: g.double() for name, g in zip(leaves, found, strict=True) if g is not None}


def _furthest(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """The largest error of any tensor, by its norm; infinite where one is missing."""
    errors = [float("inf")] if want.keys() - got.keys() else []
    for name, wanted in want.items():
        if name in got:
            difference = torch.linalg.vector_norm(got[name] - wanted) / torch.linalg.vector_norm(wanted)
            errors.append(float("inf") if difference.isnan() else difference.item())
    return max(errors)


def _wanted_gradients(case: synthetic.Case, ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    leaves = {key: tensor.double().requires_grad_() for key, tensor in case.state.items()}
    logits = reference.forward(leaves, case.config, ids, mask)
    return _gradients((logits.nan_to_num() * _weights(logits)).sum(), leaves)


def gradients(bench: Bench, side: str | None = None, **settings: Any) -> float:
    case, model = bench.case(**settings), bench.model(**settings).train()
    ids, mask = (case.ids, None) if side is None else _padded(case, side)
    want = _wanted_gradients(case, ids, mask)
    kept = _wanted(case.state, case.config, ids, mask)
    with bench.kernels():
        more = {} if mask is None else {"attention_mask": mask, "position_ids": _positions(mask)}
        logits = model(ids, use_cache=False, **more).logits
        leaves = {name: parameter for name, parameter in model.named_parameters() if name in want}
        got = _gradients((logits.double() * _weights(kept)).sum(), leaves)
    return _furthest(got, want)


SAMPLES = ((9, 14, 1, 16), (33, 7))


def _packed(rows: int) -> tuple[Tensor, Tensor]:
    """Positions and numbers of samples, [rows, LENGTH]."""
    positions = [torch.cat([torch.arange(n) for n in lengths]) for lengths in SAMPLES[:rows]]
    numbers = [torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]) for lengths in SAMPLES[:rows]]
    return torch.stack(positions), torch.stack(numbers).int()


def packed(
    bench: Bench, how: str = "position_ids", train: bool = False, rows: int = 2, gradient: bool = False
) -> float:
    """Samples in one row: each as when run alone."""
    case, model = bench.case(), bench.model().train(train)
    ids = synthetic.make_ids(case.config, LENGTH, seed=3, rows=rows)
    positions, numbers = _packed(rows)
    given: dict[str, Tensor] = {"position_ids": positions}
    if how == "seq_idx":
        given["seq_idx"] = numbers
    leaves = {key: tensor.double().requires_grad_(gradient) for key, tensor in case.state.items()}
    pieces = [
        torch.cat([reference.forward(leaves, case.config, part[None]) for part in row.split(lengths)], 1)
        for row, lengths in zip(ids, map(list, SAMPLES[:rows]), strict=True)
    ]
    want = torch.cat(pieces)
    with bench.kernels(), torch.set_grad_enabled(train):
        logits = model(ids, use_cache=False, **given).logits
        if not gradient:
            return _error(logits, want)
        wanted = _gradients((want * _weights(want)).sum(), leaves)
        own = {name: parameter for name, parameter in model.named_parameters() if name in wanted}
        return _furthest(_gradients((logits.double() * _weights(want)).sum(), own), wanted)


def quantized(bench: Bench, method: str, train: bool) -> float:
    from conformance.quantization import effective_state

    case, model = bench.case(), bench.model(method)
    want = _wanted(effective_state(model, case.state), case.config, case.ids)
    model.train(train)
    with bench.kernels(), torch.set_grad_enabled(train):
        return _error(model(case.ids, use_cache=False).logits, want)


def lora(
    bench: Bench,
    method: str | None = None,
    targets: tuple[str, ...] = ("in_proj",),
    side: str | None = None,
    autocast: bool = False,
    prepared: bool = False,
    gradient: bool = True,
) -> float:
    """A training step of adapters: the gradients of each pair against those of the merged weights' float64 reference.

    prepared: prepare_model_for_kbit_training with gradient checkpointing, as QLoRA is run.
    """
    import peft

    from conformance.quantization import effective_state

    case, model = bench.case(), bench.model(method)
    state = case.state if method is None else effective_state(model, case.state)
    if prepared:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=list(targets), init_lora_weights=False)
    model = peft.get_peft_model(model, config).train()
    ids, mask = (case.ids, None) if side is None else _padded(case, side)

    leaves: dict[str, Tensor] = {}
    merged = {key: tensor.double() for key, tensor in state.items()}
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name in own:
        stem, kind = name.removeprefix("base_model.model.").split(".lora_")
        if kind.startswith("A") and f"{stem}.weight" in merged:
            pair = [name, name.replace("lora_A", "lora_B")]
            leaves |= {key: own[key].detach().double().requires_grad_() for key in pair}
            merged[f"{stem}.weight"] = merged[f"{stem}.weight"] + leaves[pair[1]] @ leaves[pair[0]]
    want = reference.forward(merged, case.config, ids, mask)
    wanted = _gradients((want.nan_to_num() * _weights(want)).sum(), leaves)
    with bench.kernels(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = (logits.double() * _weights(want)).sum()
    with bench.kernels():
        loss.backward()
    got = {name: p.grad.double() for name, p in own.items() if p.grad is not None and name in wanted}
    return max(_error(logits, want), _furthest(got, wanted) if gradient else 0)


class Case(NamedTuple):
    run: Callable[[Bench], float]
    allowed: float = FLOAT


def _cases() -> dict[str, Case]:
    found = {
        "prompt, eval": Case(prompt),
        "prompt, train": Case(partial(prompt, train=True)),
        "prompt and single tokens": Case(tokens),
        "several tokens after a cache": Case(partial(tokens, steps=(20, 9, 1, 7, 3))),
        "4 heads: prompt, eval": Case(partial(prompt, n_mamba_heads=4)),
        "4 heads: prompt, train": Case(partial(prompt, train=True, n_mamba_heads=4)),
        "4 heads: single tokens": Case(partial(tokens, n_mamba_heads=4)),
        "4 heads: gradients": Case(partial(gradients, n_mamba_heads=4)),
        "time_step_limit: prompt": Case(partial(prompt, time_step_limit=(0.01, 0.2))),
        "time_step_limit: single tokens": Case(partial(tokens, time_step_limit=(0.01, 0.2))),
        "time_step_limit: inner padding": Case(partial(padding, side="inner", time_step_limit=(0.01, 0.2))),
        "gradients": Case(gradients),
    }
    for side in ("left", "right", "inner"):
        found[f"{side} padding, eval"] = Case(partial(padding, side=side))
        found[f"{side} padding, train"] = Case(partial(padding, side=side, train=True))
        found[f"{side} padding, gradients"] = Case(partial(gradients, side=side))
    for side in ("left", "inner"):
        found[f"{side} padding and further tokens"] = Case(partial(padded_tokens, side=side))
    found |= {
        "packed samples, eval": Case(packed),
        "packed samples, train": Case(partial(packed, train=True)),
        "packed samples, gradients": Case(partial(packed, train=True, gradient=True)),
        "packed samples, seq_idx": Case(partial(packed, how="seq_idx", train=True, rows=1)),
        "LoRA, in_proj": Case(lora),
        "LoRA, out_proj": Case(partial(lora, targets=("in_proj", "out_proj"))),
        "LoRA, left padding": Case(partial(lora, targets=("in_proj", "out_proj"), side="left")),
        "LoRA, autocast": Case(partial(lora, autocast=True), SHORT),
    }
    for method in ("nf4", "int8"):
        found[f"{method}, eval"] = Case(partial(quantized, method=method, train=False), QUANTIZED)
        found[f"{method}, train"] = Case(partial(quantized, method=method, train=True), QUANTIZED)
        found[f"{method} + LoRA"] = Case(partial(lora, method=method), QUANTIZED)
        found[f"{method} + LoRA, left padding"] = Case(partial(lora, method=method, side="left"), QUANTIZED)
        found[f"{method} + LoRA, autocast"] = Case(partial(lora, method=method, autocast=True), SHORT)
        found[f"{method} + LoRA, checkpointed"] = Case(partial(lora, method=method, prepared=True), QUANTIZED)
        found[f"{method} + LoRA, checkpointed, autocast"] = Case(
            partial(lora, method=method, prepared=True, autocast=True), SHORT
        )
    return found


CASES = _cases()

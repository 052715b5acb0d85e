"""What a release computes in a small model, held against the recurrence written down once more.

Two groups, padding inside a row, more tokens than a chunk, steps of time below time_step_min, and a state carried from
one call to the next: the cases in which releases have been wrong without an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from . import Fault

LENGTH, CHUNK, TOLERANCE = 21, 8, 1e-3


def faults() -> list[Fault]:
    """What is wrong, as clauses; empty when all is right. Leaves the random state and the defaults as they are."""
    found: list[Fault] = []
    with _small_model() as model:
        for judge in (_padding, _carried):
            try:
                what = judge(model)
            except Exception as error:  # what a release may have renamed is what this is for
                what = f"a small model fails: {type(error).__name__}: {error}"
            if what is not None:
                found.append(Fault("numbers", what))
    return found


@contextmanager
def _small_model() -> Iterator[Any]:
    from transformers import Zamba2Config, Zamba2ForCausalLM

    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        try:
            config = Zamba2Config(
                vocab_size=32, hidden_size=32, num_hidden_layers=3, layers_block_type=["mamba", "hybrid", "hybrid"],
                mamba_d_state=8, mamba_ngroups=2, n_mamba_heads=4, mamba_headdim=16, chunk_size=CHUNK,
                intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, adapter_rank=2, num_mem_blocks=1,
                time_step_min=0.05, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )  # fmt: skip
            yield Zamba2ForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(default)


def _padding(model: Any) -> str | None:
    return _mixer(model) or _padded(model)


def _mixer(model: Any) -> str | None:
    """A mixer with padding between tokens, against the recurrence over the tokens alone."""
    mixer = model.model.layers[0].mamba
    # A state that lasts: fast decay hides what is lost between chunks.
    mixer.A_log.fill_(-3.0)
    mixer.dt_bias.fill_(-4.0)
    hidden = torch.randn(2, LENGTH, model.config.hidden_size)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, [5, 6, 12]] = mask[1, :3] = 0
    names = [name for name in inspect.signature(mixer.forward).parameters if "mask" in name]
    got = mixer(hidden, **{names[0] if names else "attention_mask": mask})
    got = got[0] if isinstance(got, tuple) else got
    for row in range(2):
        kept = mask[row].bool()
        want = recurrence(mixer, hidden[row, kept].double())
        error = (got[row, kept].double() - want).norm() / want.norm()
        if not error < TOLERANCE:
            return f"{type(mixer).__name__}.forward is {error:.1e} off with padding between tokens"
    return None


def _padded(model: Any) -> str | None:
    """A row with padding between tokens, against its tokens alone: whether the layers take it into account."""
    kept = torch.ones(1, LENGTH, dtype=torch.bool)
    kept[0, [5, 6, 12]] = False
    ids = torch.arange(LENGTH)[None] % (model.config.vocab_size - 3) + 3
    positions = (kept.cumsum(-1) - 1).clamp_min(0)
    got = model(ids, attention_mask=kept.long(), position_ids=positions, use_cache=False).logits[kept]
    want = model(ids[kept][None], use_cache=False).logits[0]
    error = (got - want).norm() / want.norm()
    return None if error < TOLERANCE else f"{type(model).__name__}.forward is {error:.1e} off with inner padding"


def recurrence(mixer: Any, tokens: Tensor) -> Tensor:
    """A Mamba2 mixer over one row, token by token in float64: arXiv 2405.21060, equation (1) and section 7.

    tokens: [seq, hidden_size]. Returns the same shape.
    """
    weight = {name: parameter.double() for name, parameter in mixer.named_parameters()}
    inner, groups, size = mixer.intermediate_size, mixer.n_groups, mixer.ssm_state_size
    heads = mixer.num_heads
    gate, xbc, dt = torch.split(tokens @ weight["in_proj.weight"].T, [inner, inner + 2 * groups * size, heads], -1)
    taps = weight["conv1d.weight"][:, 0]
    padded = torch.cat((xbc.new_zeros(taps.shape[1] - 1, xbc.shape[1]), xbc))
    xbc = weight["conv1d.bias"] + sum(padded[tap : tap + len(xbc)] * taps[:, tap] for tap in range(taps.shape[1]))
    x, b, c = torch.split(torch.nn.functional.silu(xbc), [inner, groups * size, groups * size], -1)
    dt = torch.nn.functional.softplus(dt + weight["dt_bias"])
    decay = torch.exp(-dt * weight["A_log"].exp())
    x = x.view(-1, heads, inner // heads)
    b, c = (m.view(-1, groups, size).repeat_interleave(heads // groups, 1) for m in (b, c))
    state, outputs = x.new_zeros(heads, inner // heads, size), []
    for t in range(len(tokens)):
        state = decay[t, :, None, None] * state + dt[t, :, None, None] * x[t, :, :, None] * b[t, :, None, :]
        outputs.append((state @ c[t, :, :, None])[..., 0] + weight["D"][:, None] * x[t])
    y = torch.stack(outputs).flatten(1) * torch.nn.functional.silu(gate)
    grouped = y.view(len(y), groups, -1)
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + mixer.norm.variance_epsilon)
    out: Tensor = (grouped.flatten(1) * weight["norm.weight"]) @ weight["out_proj.weight"].T
    return out


def _carried(model: Any) -> str | None:
    """Some tokens, and the rest after their cache, one by one and several at once, against all in one call."""
    ids = torch.arange(LENGTH)[None] % (model.config.vocab_size - 3) + 3
    want = model(ids, use_cache=False).logits
    for lengths in ((LENGTH - 2, 1, 1), (LENGTH - 7, 7)):
        past: dict[str, Any] = {}
        start, parts = 0, []
        for length in lengths:
            out = model(ids[:, start : start + length], use_cache=True, **past)
            start += length
            parts.append(out.logits)
            name = next(name for name in ("cache", "past_key_values") if getattr(out, name, None) is not None)
            past = {name: getattr(out, name)}
        got = torch.cat(parts, 1)
        error = (got - want).norm() / want.norm()
        if not error < TOLERANCE:
            return f"{type(model).__name__}.forward after a cache is {error:.1e} off"
    return None

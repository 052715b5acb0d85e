"""The path with the fused kernels, on stand-ins for them: everything in support/simulated.py, under every release.

What stock gets wrong of it is in docs/gpu.md, by tools/check_simulated.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.quantization import bnb_config
from support import fused_kernels, simulated

pytestmark = pytest.mark.ours


@pytest.fixture(scope="module", params=simulated.PATTERNS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> simulated.Bench:
    return simulated.Bench(request.param, tmp_path_factory.mktemp("models"), stock=False)


FUSED = (
    "zamba2-fused-path-hybrid-cache",
    "zamba2-fused-path-layer-cache",
    "zamba2-fused-path-numbered-states",
    "zamba2-fused-path",
)
PACKED = ("zamba2-packed-samples-own-mask", "zamba2-packed-samples")


@pytest.mark.relies_on(*FUSED, when=lambda p: p["name"] in ("inner padding, train", "4 heads: gradients"))
@pytest.mark.relies_on(*PACKED, when=lambda p: p["name"].startswith("packed samples"))
@pytest.mark.parametrize("name", simulated.CASES)
def test_case(name: str, bench: simulated.Bench) -> None:
    if "nf4" in name or "int8" in name:
        pytest.importorskip("bitsandbytes")
    if "LoRA" in name:
        try:
            import peft  # noqa: F401
        except ImportError as error:  # absent, or it does not take this transformers release
            pytest.skip(f"no PEFT for this release: {error}")
    case = simulated.CASES[name]
    error = case.run(bench)
    assert error <= case.allowed


def ran(bench: simulated.Bench, model: Any, **kwargs: Any) -> set[str]:
    """The kernels that a forward called."""
    fused_kernels.calls.clear()
    with bench.kernels():
        model(bench.case().ids, use_cache=False, **kwargs)
    return set(fused_kernels.calls)


def test_the_kernel_of_a_whole_mixer_is_used_where_it_is_right(bench: simulated.Bench) -> None:
    whole = "mamba_split_conv1d_scan_combined"
    model = bench.model().train()
    assert whole in ran(bench, model)
    mask = torch.ones_like(bench.case().ids)
    assert whole in ran(bench, model, attention_mask=mask)
    mask[0, :3] = 0
    assert whole not in ran(bench, model, attention_mask=mask) > {"causal_conv1d_fn"}
    assert ran(bench, model.eval()) == {"causal_conv1d_fn", "mamba_chunk_scan_combined"}


def test_a_hook_on_out_proj_is_called(bench: simulated.Bench) -> None:
    model, seen = bench.model().train(), []
    model.model.layers[0].mamba.out_proj.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with bench.kernels():
        model(bench.case().ids, use_cache=False)
    assert len(seen) == 1


def test_packed_samples_with_a_cache_are_refused(bench: simulated.Bench) -> None:
    from zamba_compat.errors import PackedSamplesError

    model, ids = bench.model(), bench.case().ids[:, :6]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    cache = model(ids[:, :1], use_cache=True).past_key_values
    with pytest.raises(PackedSamplesError, match="cache"):
        model(ids, position_ids=positions, past_key_values=cache, use_cache=True)
    assert model(ids, position_ids=positions, use_cache=True).past_key_values is None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
def test_packed_samples_on_a_cpu(implementation: str, padded: bool, bench: simulated.Bench) -> None:
    case, model = bench.case(), bench.model(attn_implementation=implementation)
    lengths = (9, 14, 1, 16)
    pieces = [model(part, use_cache=False).logits for part in case.ids.split(lengths, 1)]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids, mask, kept = case.ids, None, slice(0, 40)
    if padded:
        ids = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
        positions = torch.cat([torch.zeros(1, 5, dtype=torch.long), positions], 1)
        mask, kept = (torch.arange(45) >= 5).long()[None], slice(5, 45)
    with torch.no_grad():
        got = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, kept]
    want = torch.cat(pieces, 1)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
STEPS, TOKENS = 50, 32


def qlora_losses(kernels: Any) -> list[float]:
    """A QLoRA run on the trained pair: NF4, gradient checkpointing, left padding in one row of two."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        TINY / "base", torch_dtype=torch.float32, quantization_config=bnb_config("nf4")
    )
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["in_proj", "out_proj", "q_proj"])).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    text = transformers.AutoTokenizer.from_pretrained(TINY / "base")((TINY / "text_tuned.txt").read_text()[:4000])
    ids = torch.tensor(text["input_ids"])
    losses = []
    for step in range(STEPS):
        start = step % 5 * TOKENS
        rows = torch.stack([ids[start : start + TOKENS], ids[start + 20 : start + 20 + TOKENS]])
        mask = torch.ones_like(rows)
        rows[1, :7], mask[1, :7] = 0, 0
        labels = rows.clone()
        labels[1, :8] = -100  # nothing is foretold from padding
        with kernels():
            loss = model(input_ids=rows, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_qlora_run_goes_as_on_a_cpu() -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    on_cpu, with_kernels = qlora_losses(nullcontext), qlora_losses(fused_kernels.in_use)
    assert with_kernels == pytest.approx(on_cpu, rel=1e-3)
    assert sum(with_kernels[-10:]) < 0.95 * sum(with_kernels[:10])

"""The trained pair on a GPU against the same on the CPU: with fused kernels where there are some, and without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda import kernels

TINY = Path(__file__).parents[1] / "fixtures" / "tiny" / "base"
FLOAT, BFLOAT, FOUR_BIT = 1e-3, 5e-2, 5e-2  # relative; kernels multiply float32 by tensor cores' rules
LENGTH = 300  # beyond chunk_size 256
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load() -> Load:
    from transformers import AutoModelForCausalLM

    loaded: dict[Any, Any] = {}

    def make(device: str, dtype: torch.dtype = torch.float32, quantization: Any = None) -> Any:
        key = (device, dtype, quantization is not None)
        if key not in loaded:
            more = {} if quantization is None else {"quantization_config": quantization}
            loaded[key] = AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype, device_map={"": device}, **more)
        return copy.deepcopy(loaded[key]).eval()

    return make


@pytest.fixture(params=["kernels", "plain"])
def path(request: pytest.FixtureRequest, load: Load) -> Iterator[None]:
    """Runs a test with the installed kernels, and without."""
    if request.param == "kernels" and not kernels.found(load("cuda")):
        pytest.skip("mamba_ssm and causal_conv1d are not installed, and no kernels of the hub")
    with nullcontext() if request.param == "kernels" else kernels.none():
        yield


def ids(rows: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(0))


def relative(got: Tensor, want: Tensor) -> float:
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    return ((got - want).abs().max() / want.abs().max()).item()


def padded(side: str) -> tuple[Tensor, Tensor]:
    tokens, mask = ids(2), torch.ones(2, LENGTH, dtype=torch.long)
    holes = {"none": [], "left": [slice(0, 70)], "right": [slice(230, 300)], "inner": [slice(5, 9), slice(100, 170)]}
    for hole in holes[side]:
        mask[1, hole] = 0
    return tokens, mask


@pytest.mark.parametrize("side", ["none", "left", "right", "inner"])
@pytest.mark.parametrize("train", [False, True])
def test_logits(side: str, train: bool, load: Load, path: None) -> None:
    tokens, mask = padded(side)
    with torch.no_grad():
        want = load("cpu")(tokens, attention_mask=mask, use_cache=False).logits
        model = load("cuda").train(train)
        got = model(tokens.cuda(), attention_mask=mask.cuda(), use_cache=False).logits.cpu()
    assert relative(got[mask.bool()], want[mask.bool()]) < FLOAT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype, load: Load, path: None) -> None:
    with torch.no_grad():
        want = load("cpu")(ids(), use_cache=False).logits
        got = load("cuda", dtype)(ids().cuda(), use_cache=False).logits
    assert relative(got, want) < BFLOAT


@pytest.mark.parametrize("steps", [(290, *[1] * 10), (200, 60, 1, 30, 9)])
@torch.no_grad()
def test_in_steps(steps: tuple[int, ...], load: Load, path: None) -> None:
    want = load("cpu")(ids(), use_cache=False).logits
    model, cache, found, past = load("cuda"), None, [], 0
    for step in steps:
        out = model(ids()[:, past : past + step].cuda(), past_key_values=cache, use_cache=True)
        found.append(out.logits)
        cache, past = out.past_key_values, past + step
    assert relative(torch.cat(found, 1), want) < FLOAT


@pytest.mark.parametrize("side", ["none", "left"])
def test_gradients(side: str, load: Load, path: None) -> None:
    tokens, mask = padded(side)

    def gradients(device: str) -> dict[str, Tensor]:
        model = load(device).train()
        out = model(tokens.to(device), attention_mask=mask.to(device), use_cache=False).logits
        (out * mask.to(device)[..., None]).square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    want, got = gradients("cpu"), gradients("cuda")
    assert want.keys() == got.keys()
    for name, gradient in want.items():
        difference = torch.linalg.vector_norm(got[name].cpu() - gradient) / torch.linalg.vector_norm(gradient)
        assert difference < 2e-2, name


def test_packed_samples(load: Load, path: None) -> None:
    lengths = (70, 1, 129, 100)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    model = load("cuda")
    with torch.no_grad():
        got = model(ids().cuda(), position_ids=positions.cuda()).logits
        want = torch.cat([model(part.cuda(), use_cache=False).logits for part in ids().split(lengths, 1)], 1)
    assert relative(got, want) < FLOAT


def four_bits(dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def test_nf4(load: Load, path: None, tmp_path: Path) -> None:
    """The bits of the CPU, the blocks held once, no 16-bit model on the device at once; saved and read again."""
    from transformers import AutoModelForCausalLM

    pytest.importorskip("bitsandbytes")
    ours, theirs = load("cuda", torch.bfloat16, four_bits()), load("cpu", torch.bfloat16, four_bits())
    for (name, got), want in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(got.cpu(), want), name
    with torch.no_grad():
        want = theirs(ids(), use_cache=False).logits
        assert relative(ours(ids().cuda(), use_cache=False).logits, want) < FOUR_BIT
        ours.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cuda"})
        assert torch.equal(again(ids().cuda()).logits, ours(ids().cuda()).logits)


def test_qlora_step(load: Load, path: None) -> None:
    peft = pytest.importorskip("peft")
    losses = {}
    for device in ("cpu", "cuda"):
        model = peft.prepare_model_for_kbit_training(load(device, torch.bfloat16, four_bits()))
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["in_proj", "out_proj", "q_proj", "v_proj"])
        model = peft.get_peft_model(model, config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
        tokens, losses[device] = ids(2, 128).to(device), []
        for _ in range(5):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[device].append(loss.item())
    assert losses["cuda"][-1] < losses["cuda"][0]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=3e-2)


def test_generate(load: Load, path: None) -> None:
    prompts, mask = ids(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[0, :13] = 0
    prompts[0, :13] = 0
    wanted = load("cpu").generate(prompts, attention_mask=mask, max_new_tokens=20, do_sample=False)
    found = load("cuda").generate(prompts.cuda(), attention_mask=mask.cuda(), max_new_tokens=20, do_sample=False)
    assert torch.equal(found.cpu(), wanted)

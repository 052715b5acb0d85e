"""Packed weights stay the weights that quantization produced.

On a CPU without AVX512-BF16 the kernel is simulated (conftest.py): the layouts, the quant states and who unpacks when
are tested there, the kernel's own arithmetic is not. On a CPU with it the same tests run with the real kernel.
"""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from zamba_compat.patches.bitsandbytes import cpu_packing, cpu_product
from zamba_compat.patches.bitsandbytes.cpu_packing import is_packed, pack, unpack_all

from support.native import there
from zamba_compat._engine.registry import Registry
from zamba_compat._engine.releases import place
from zamba_compat.cpu import nf4
from zamba_compat.cpu.bnb_packed import packed_bytes, plain_bytes
from zamba_compat.cpu.native.quantized import loops

from .conftest import ADAPTERS, reload, weights

bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.49")
from bitsandbytes import functional  # noqa: E402

Linear = Callable[..., Any]
KERNEL = 2e-2  # of bfloat16 arithmetic
FORMATS = [
    {"quant_type": quant_type, "compress_statistics": nested, "quant_storage": storage}
    for quant_type in ("nf4", "fp4")
    for nested in (False, True)
    for storage in (torch.uint8, torch.bfloat16, torch.float32)
]
ROUNDED = [32, 64, 80, 33, 1]  # rows, also no multiples of 32


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().float() - wanted.float()).norm() / wanted.float().norm())


def forward(module: Any, rows: int = 3) -> Tensor:
    """A forward in eval mode, which packs; its result is right."""
    x = torch.randn(2, rows, module.in_features)
    with torch.no_grad():
        y = module(x)
    wanted = x @ weights(module).float().T + (0 if module.bias is None else module.bias)
    assert y.shape == wanted.shape and off(y, wanted) < KERNEL
    return y  # type: ignore[no-any-return]


def packed(module: Any) -> bool:
    return is_packed(module.weight, module.weight.quant_state)


class TestStock:
    """Each symptom, so that it is known when one has gone."""

    pytestmark = pytest.mark.usefixtures("kernel")

    def test_rows(self, linear: Linear) -> None:
        with pytest.raises(AssertionError, match="divisible by block_n"):
            forward(linear(80, 128))

    def test_columns(self, linear: Linear) -> None:
        with pytest.raises(RuntimeError, match="invalid for input"):
            forward(linear(64, 96))

    @pytest.mark.parametrize("nested", [False, True])
    def test_saving(self, linear: Linear, nested: bool) -> None:
        module = linear(64, 256, compress_statistics=nested)
        wanted = weights(module)
        module(torch.randn(1, 256))
        assert off(weights(reload(module)), wanted) > (1e-4 if nested else 0.1)

    def test_moving_dequantizing_and_copying(self, linear: Linear) -> None:
        module = linear(64, 256)
        wanted = weights(module)
        module(torch.randn(1, 256))
        for weight in (module.weight, module.weight.to("cpu"), copy.deepcopy(module.weight)):
            assert off(functional.dequantize_4bit(weight.data, weight.quant_state), wanted) > 0.5

    def test_gradients(self, linear: Linear) -> None:
        module = linear(64, 256)
        module(torch.randn(1, 256))
        module.train()
        x = torch.randn(1, 256, requires_grad=True)
        y = module(x)
        if y.requires_grad:  # some releases of torch mark the result all the same
            y.sum().backward()
        assert x.grad is None or not x.grad.any()

    def test_strides(self, linear: Linear) -> None:
        module = linear(64, 256)
        wanted = weights(module)
        x = torch.randn(1, 256, 5).transpose(1, 2)
        assert off(module(x), x @ wanted.T) > 0.5


@pytest.mark.parametrize("rows", ROUNDED)
@pytest.mark.parametrize("pairs", [1, 32, 48])
def test_layout_is_a_permutation_of_nibbles(rows: int, pairs: int) -> None:
    plain = torch.randint(0, 256, (rows, pairs), dtype=torch.uint8)
    packed = packed_bytes(plain)
    assert packed.shape == (rows + -rows % 32, pairs) and packed.is_contiguous()
    assert torch.equal(plain_bytes(packed, rows), plain)
    padded = torch.cat((plain, plain.new_zeros(-rows % 32, pairs)))
    for block, bytes_ in zip(padded.split(32), packed.split(32), strict=True):
        for row in (0, 15, 16, 31):
            for pair in (0, pairs - 1):
                even, odd = bytes_.reshape(pairs, 32)[pair, 2 * (row % 16) :][:2].tolist()
                shift = 4 * (row // 16)
                assert block[row, pair].item() == (even >> shift & 15) << 4 | odd >> shift & 15


def test_layout_is_that_of_bitsandbytes(linear: Linear) -> None:
    module = linear(96, 128)
    plain = module.weight.data.clone().reshape(96, 64)
    theirs, _ = functional._convert_weight_packed_for_cpu(module.weight.data, copy.deepcopy(module.weight.quant_state))
    assert torch.equal(packed_bytes(plain), torch.as_tensor(theirs).as_subclass(Tensor))


@pytest.mark.parametrize("release", ["0.48.2", "0.49.0", "0.49.1", "0.49.2", "0.50.0", "0.50.1", "0.50.2", "0.51.0"])
def test_releases(release: str) -> None:
    found = place(cpu_packing.ADAPTER.since, cpu_packing.ADAPTER.fixed, "fixed", release).kind
    assert found == ("outside" if release == "0.48.2" else "inside")


def test_not_needed_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "has_avx512bf16", lambda: False)
    registry = Registry(ADAPTERS)
    registry.arm()
    try:
        states = {status.name: status.state for status in registry.status()}
    finally:
        registry.disarm()
    assert states["bitsandbytes-cpu-packing"] == "not needed"
    assert states["bitsandbytes-carried-cpu-flag"] == "applied"


@pytest.mark.usefixtures("kernel", "armed")
class TestMended:
    @pytest.mark.parametrize("rows", ROUNDED)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_rows(self, linear: Linear, rows: int, bias: bool, dtype: torch.dtype) -> None:
        module = linear(rows, 256, bias=bias, compute_dtype=dtype)
        y = forward(module)
        assert packed(module) == (dtype != torch.float32) and y.is_contiguous()
        assert forward(module, 0).numel() == 0 if rows == 0 else module(torch.randn(0, 256)).shape == (0, rows)

    @pytest.mark.parametrize("columns", [96, 100])
    def test_columns_that_the_kernel_cannot_take(self, linear: Linear, columns: int) -> None:
        module = linear(64, columns)
        forward(module)
        assert not packed(module)

    @pytest.mark.parametrize("kwargs", FORMATS, ids=lambda f: "-".join(str(v) for v in f.values()))
    @pytest.mark.parametrize("rows", [64, 80])
    def test_bits(self, linear: Linear, rows: int, kwargs: dict[str, Any]) -> None:
        module = linear(rows, 256, **kwargs)
        wanted, before = weights(module), {k: v.clone() for k, v in module.state_dict().items()}

        def check(weight: Any) -> None:
            found = functional.dequantize_4bit(weight.data, weight.quant_state)
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)

        for use in (
            lambda: check(module.weight),
            lambda: check(module.weight.to("cpu")),
            lambda: check(module.weight.cpu()),
            lambda: check(copy.deepcopy(module).weight),
            lambda: check(copy.copy(module.weight)),
            lambda: check(reload(module).weight),
            lambda: check(pickled(module).weight),
            lambda: check(module.to("cpu").weight),
            lambda: check(module.to(torch.float16).weight),
            lambda: check(module.half().weight),
            lambda: check(module.float().weight),
            lambda: check(module.share_memory().weight),
        ):
            forward(module)
            assert packed(module)
            use()
        forward(module)
        after = module.state_dict()
        assert list(after) == list(before)
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype, name
            # As bytes: what is stored as floats may be nan, which equals nothing.
            assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name

    def test_quant_state_is_left_alone(self, linear: Linear) -> None:
        module = linear(64, 256)
        state = module.weight.quant_state
        before = copy.deepcopy(state)
        forward(module)
        assert module.weight.quant_state is state is module.quant_state
        assert state == before and state.dtype == before.dtype and state.nested
        assert state.as_dict(packed=True).keys() == before.as_dict(packed=True).keys()

    def test_plain_tensor_beside_a_packed_weight(self, linear: Linear) -> None:
        module = linear(64, 256)
        data, wanted = module.weight.data, weights(module)
        forward(module)
        assert torch.equal(functional.dequantize_4bit(data, module.weight.quant_state), wanted)
        x = torch.randn(3, 256)
        plain = data if bitsandbytes.__version__ >= "0.50" else data.t()
        assert off(bitsandbytes.matmul_4bit(x, plain, module.weight.quant_state), x @ wanted.T) < 1e-5

    def test_copy_taken_before(self, linear: Linear) -> None:
        module, other = linear(64, 256), linear(64, 256)
        other.weight = copy.copy(module.weight)  # one quant state for two weights
        wanted = weights(module)
        for first, second in ((module, other), (other, module)):
            forward(first)
            forward(second)
            first.state_dict()
            forward(second)
            for weight in (first.weight, second.weight):
                assert torch.equal(functional.dequantize_4bit(weight.data, weight.quant_state), wanted)

    @pytest.mark.parametrize("training", [False, True])
    def test_gradients(self, linear: Linear, training: bool) -> None:
        module = linear(80, 256, bias=True, compute_dtype=torch.float32)
        wanted = weights(module)
        pack(module.weight)
        module.train(training)
        x = torch.randn(3, 256, requires_grad=True)
        y = module(x)
        y.sum().backward()
        assert x.grad is not None and off(x.grad, wanted.sum(0).expand(3, -1)) < 1e-5
        assert off(y.detach(), x.detach() @ wanted.T + module.bias.detach()) < 1e-5
        assert module.bias.grad is not None
        assert not packed(module)

    def test_gradients_of_a_direct_call(self, linear: Linear) -> None:
        module = linear(64, 256)
        wanted = weights(module)
        forward(module)
        x = torch.randn(3, 256, requires_grad=True)
        bitsandbytes.matmul_4bit(x, module.weight, module.weight.quant_state).sum().backward()
        assert x.grad is not None and off(x.grad, wanted.sum(0).expand(3, -1)) < 1e-5

    @pytest.mark.parametrize("rows", [64, 80])
    def test_direct_call_with_out(self, linear: Linear, rows: int) -> None:
        module = linear(rows, 256)
        forward(module)
        x, out = torch.randn(3, 256), torch.empty(3, rows)
        assert bitsandbytes.matmul_4bit(x, module.weight, module.weight.quant_state, out=out) is out
        assert off(out, x @ weights(module).T) < KERNEL

    def test_strides(self, linear: Linear) -> None:
        module = linear(64, 256)
        for x in (
            torch.randn(1, 256, 5).transpose(1, 2),
            torch.randn(5, 257)[:, :256],
            torch.randn(5, 512)[:, ::2],
            torch.randn(1, 256).expand(5, 256),
        ):
            assert off(module(x), x @ weights(module).T) < KERNEL

    @pytest.mark.parametrize("tokens", [1, 4, 16, 300])
    @pytest.mark.parametrize("asked", [torch.bfloat16, torch.float32, None], ids=str)
    def test_float32_is_not_rounded(self, linear: Linear, asked: Any, tokens: int) -> None:
        """Neither at first nor after the weight was packed for another dtype."""
        module = linear(80, 128, compute_dtype=asked, bias=True)
        wanted = weights(module)
        for _ in range(2):
            x = torch.randn(1, tokens, 128)
            with torch.no_grad():
                far = off(module(x), x @ wanted.T + module.bias)
            assert far < 1e-5 if asked in (torch.float32, None) else far > 1e-4
            pack(module.weight)

    @pytest.mark.parametrize("tokens", [1, 4, 16, 300])
    @pytest.mark.parametrize("kwargs", FORMATS[::3], ids=lambda f: "-".join(str(v) for v in f.values()))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_the_kernels_own_bits(self, linear: Linear, dtype: torch.dtype, kwargs: Any, tokens: int) -> None:
        """Whatever does not ask for float32 gets what bitsandbytes alone computes."""
        module = linear(64, 256, bias=True, **kwargs)
        x = torch.randn(2, tokens, 256).to(dtype)
        data, state = functional._convert_weight_packed_for_cpu(
            module.weight.data.clone(), copy.deepcopy(module.weight.quant_state)
        )
        sizes = list(state.shape), state.absmax, state.code, state.blocksize
        with torch.no_grad():
            found = module(x)
            kernel = torch.ops.bitsandbytes.gemv_4bit.default(x.to(torch.bfloat16), torch.as_tensor(data), *sizes)
        assert torch.equal(found, (kernel + module.bias.detach().to(torch.bfloat16)).to(dtype))
        assert packed(module)

    @pytest.mark.parametrize("shape", [(0, 128), (2, 0, 128), (128,), (1, 1, 1, 128), (3, 5, 128)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_shapes_of_the_input(self, linear: Linear, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        module = linear(80, 128)
        x = torch.randn(shape).to(dtype)
        for _ in range(2):
            with torch.no_grad():
                y = module(x)
            assert y.shape == (*shape[:-1], 80) and y.dtype == dtype
            assert x.numel() == 0 or off(y, x.float() @ weights(module).T) < KERNEL

    def test_wrong_width(self, linear: Linear) -> None:
        module = linear(64, 256)
        forward(module)
        with pytest.raises(RuntimeError):
            module(torch.randn(3, 128))

    def test_shared_weight_is_packed_once(self, linear: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[Tensor] = []
        monkeypatch.setattr(cpu_packing, "packed_bytes", lambda plain: calls.append(plain) or packed_bytes(plain))
        model = torch.nn.Sequential(linear(128, 128), linear(128, 128), linear(128, 128)).eval()
        model[2].weight = model[0].weight
        wanted = weights(model[0])
        for _ in range(3):
            model(torch.randn(2, 128))
        assert len(calls) == 2 and model[2].weight is model[0].weight
        saved = model.state_dict()
        assert torch.equal(saved["0.weight"], saved["2.weight"]) and not packed(model[2])
        model.to("cpu")
        assert model[2].weight is model[0].weight and torch.equal(weights(model[2]), wanted)

    def test_inference_mode_leaves_ordinary_tensors(self, linear: Linear) -> None:
        module = linear(80, 256)
        with torch.inference_mode():
            module(torch.randn(1, 256))
            assert packed(module) and not module.weight.is_inference()
            module.state_dict()
            assert not module.weight.is_inference() and not module.weight.data.is_inference()

    def test_quantized_in_inference_mode(self, linear: Linear) -> None:
        with torch.inference_mode():
            module = linear(80, 256)
            wanted = weights(module)
            module(torch.randn(1, 256))
            assert packed(module)
        with torch.no_grad():
            forward(module)
            assert torch.equal(weights(reload(module)), wanted)
            forward(module)

    def test_weights_that_pass_are_not_packed(self, linear: Linear) -> None:
        module = linear(64, 256)
        module._hf_hook = SimpleNamespace(offload=True)
        forward(module)
        assert not packed(module)
        gathered = linear(64, 256)  # as a sharding wrapper leaves it: a bare weight and the module's quant state
        gathered.weight = torch.nn.Parameter(gathered.weight.data.as_subclass(Tensor), requires_grad=False)
        gathered(torch.randn(1, 256))
        assert gathered.weight.shape == (64 * 128, 1)

    def test_embedding_that_shares_the_weight(self, linear: Linear) -> None:
        module = linear(64, 256, compress_statistics=False)
        embedding = bitsandbytes.nn.Embedding4bit(64, 256, quant_type="nf4")
        embedding.weight = module.weight
        forward(module)
        assert torch.equal(embedding(torch.tensor([5, 2])), weights(module)[[5, 2]])

    def test_unpickled(self, linear: Linear) -> None:
        module = linear(80, 256)
        forward(module)
        read = pickled(module)
        assert read.weight.shape == (80 * 128, 1)
        wanted = weights(read)
        forward(read)
        assert torch.equal(weights(reload(read.to("cpu"))), wanted)

    def test_released_weights_are_forgotten(self, linear: Linear) -> None:
        module = linear(64, 256)
        forward(module)
        assert len(cpu_packing._packed) == 1
        del module
        gc.collect()
        assert len(cpu_packing._packed) == 0

    @pytest.mark.slow
    @pytest.mark.skipif(bitsandbytes.__version__ < "0.50", reason="compiled, the kernel of 0.49 refuses several tokens")
    @pytest.mark.filterwarnings("ignore")
    def test_compiled(self, linear: Linear) -> None:
        module = linear(80, 256)
        wanted = weights(module)
        x = torch.randn(3, 256)
        compiled = torch.compile(module, backend="eager")
        with torch.no_grad():
            for _ in range(3):
                assert off(compiled(x), x @ wanted.T) < KERNEL
        assert torch.equal(weights(reload(module)), wanted)

    @pytest.mark.slow
    def test_merging_with_peft(self, linear: Linear) -> None:
        peft = pytest.importorskip("peft")

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.proj = linear(80, 256)
                self.is_loaded_in_4bit = True

            def forward(self, x: Tensor) -> Tensor:
                return self.proj(x)  # type: ignore[no-any-return]

        base = Model().eval()
        wanted = weights(base.proj)
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["proj"], r=4)).eval()
        layer = model.base_model.model.proj
        with torch.no_grad():
            layer.lora_B["default"].weight.normal_()
            model(torch.randn(2, 256))
        assert packed(layer.base_layer)
        merged = wanted + layer.get_delta_weight("default").detach()
        model.merge_and_unload()
        expected = bitsandbytes.functional.dequantize_4bit(
            *bitsandbytes.functional.quantize_4bit(merged, compress_statistics=True, quant_type="nf4")
        )
        assert torch.equal(weights(base.proj), expected) and off(wanted, merged) > 0.1


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("use", ["forward", "save", "gradient"])
def test_packed_by_bitsandbytes_before(linear: Linear, nested: bool, use: str) -> None:
    module = linear(64, 256, compress_statistics=nested)
    wanted = weights(module)
    module(torch.randn(1, 256))
    registry = Registry(ADAPTERS)
    registry.arm()
    try:
        x = torch.randn(3, 256, requires_grad=use == "gradient")
        if use != "save":
            assert off(module(x), x.detach() @ wanted.T) < KERNEL
        assert packed(module) == (use == "forward")
        # absmax has been rounded to bfloat16, and quantized a second time if it had been quantized.
        assert off(weights(reload(module)), wanted) < 2e-2
        assert packed(module) is False
    finally:
        registry.disarm()


@pytest.mark.usefixtures("kernel")
def test_unpacked_before_the_adapter_goes(linear: Linear) -> None:
    module = linear(64, 256)
    wanted = weights(module)
    registry = Registry(ADAPTERS)
    registry.arm()
    forward(module)
    pack(module.weight)
    unpack_all()
    registry.disarm()
    assert torch.equal(weights(module), wanted) and module.weight.shape == (64 * 128, 1)
    x = torch.randn(3, 256)
    assert off(module(x), x @ wanted.T) < KERNEL


class Looking(TorchFunctionMode):
    """Counts the functions of PyTorch that pass by."""

    seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("kernel", "armed")
@pytest.mark.parametrize("bias", [True, False])
def test_a_token_passes_by_no_mode(linear: Linear, bias: bool) -> None:
    module = linear(64, 128, bias=bias)
    x, seen = torch.randn(1, 1, module.in_features), []
    with torch.no_grad(), nf4.running():
        alone = module(x)
        for rows in (x, x.expand(1, 2, -1)):
            with Looking() as mode:
                found = module(rows)
            assert off(found, alone.expand_as(found)) < KERNEL
            seen.append(mode.seen)
    assert seen[0] < 20 < seen[1]


def pickled(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


class TestLoops:
    """AVX512-BF16, and loops in C for a Zamba: in its forward pass nothing is packed."""

    @pytest.fixture(autouse=True)
    def adapters(self, kernel: None) -> Iterator[None]:
        there(loops())
        registry = Registry((*ADAPTERS[:-1], cpu_product.ADAPTER, ADAPTERS[-1]))
        registry.arm()
        with nf4.running():
            yield
        unpack_all()
        registry.disarm()

    @pytest.mark.parametrize("tokens", [1, 3, 40])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_nothing_is_packed(self, linear: Linear, dtype: torch.dtype, tokens: int) -> None:
        module = linear(96, 256, compute_dtype=dtype)
        before, x = module.weight.data_ptr(), torch.randn(2, tokens, 256).bfloat16()
        with torch.no_grad():
            found = module(x)
        assert off(found, x.float() @ weights(module).float().T) < 5e-3
        assert module.weight.data_ptr() == before and not packed(module)

    def test_what_was_packed_elsewhere_is_unpacked(self, linear: Linear) -> None:
        module = linear(80, 256)
        wanted = module.weight.data.clone()
        pack(module.weight)
        assert packed(module)
        with torch.no_grad():
            module(torch.randn(1, 256).bfloat16())
        assert not packed(module) and torch.equal(module.weight.data, wanted)

    def test_columns_that_the_loops_cannot_take(self, linear: Linear) -> None:
        module = linear(64, 96)
        x = torch.randn(3, 96).bfloat16()
        with torch.no_grad():
            assert off(module(x), x.float() @ weights(module).float().T) < KERNEL

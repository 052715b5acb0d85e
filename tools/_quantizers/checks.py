"""What is checked of one format."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _bench.footprint import held_bytes
from _tiny.perplexity import perplexity
from zamba_compat import SharingMap
from zamba_compat.errors import ZambaCompatError

from .compressed import write
from .layouts import rewrite
from .rows import Row

HEADER = (
    "| format | shared blocks | MB held | perplexity | logits, relative to the dequantized weights' | reloaded |"
    " expanded | partial |\n|---|---|---|---|---|---|---|---|"
)
EXACT, ROUNDED = 1e-4, 0.1  # relative; the second where the library rounds activations too
# What a library says of a format that it writes into no file, whichever model it is.
_UNSAVED = {"is not serializable": "transformers", "Unsupported tensor type": "torchao"}
_IDS = (torch.arange(120) * 7 % 250 + 3)[None]


@dataclass(frozen=True)
class Result:
    """A line of the table, and whether it is as it should be."""

    line: str
    right: bool


def check(row: Row, models: Path, temporary: Path) -> Result:
    """Everything about one format; an error of the library's own is its answer, one of this package's a fault."""
    try:
        model, source = _load(row, models / "base", temporary)
    except ZambaCompatError as error:
        return Result(f"| {row.name} | **refused by zamba_compat: {error}** |", False)
    except Exception as error:
        own = _fails_alike(row, error)
        said = f"{type(error).__name__}: {row.because or _short(error)}"
        return Result(f"| {row.name} | {'a Llama too' if own else '**not for a Llama**'}: {said} |", own)
    held = _held(model)
    text = (models / "text_base.txt").read_bytes()
    value = perplexity(lambda ids: _computed(model, ids), text)
    got = _logits(model)
    away = _relative(got, _logits(_dequantized(model, models / "base")))
    shared = _shared(model)
    cells = [shared, f"{held / 1e6:.2f}", f"{value:.3f}", f"{away:.1e}"]
    right = shared == "quantized once" and away < (ROUNDED if row.rounds_activations else EXACT)
    saved = temporary / "saved"
    try:
        if source is not None:  # compressed-tensors decompresses at the first forward, and then saves that
            model = _reload(source)
        model.save_pretrained(saved)
    except ValueError as error:
        refusing = next((library for words, library in _UNSAVED.items() if words in str(error)), None)
        if refusing is None or source is not None:
            return Result(_line(row, cells, [f"**{type(error).__name__}: {error}**"]), False)
        return Result(_line(row, cells, [f"{refusing} refuses to save it", "-", "-"]), right)
    for layout in ("", "expanded", "partial"):
        try:
            where = rewrite(saved, temporary / layout, layout) if layout else saved
            equal = torch.equal(got, _logits(_reload(where)))
        except Exception as error:
            cells.append(f"**{type(error).__name__}: {_short(error)}**")
            right = False
        else:
            cells.append("equal" if equal else "**differs**")
            right &= equal
    return Result(_line(row, cells, []), right)


def _line(row: Row, cells: list[str], more: list[str]) -> str:
    return f"| {row.name} | {' | '.join([*cells, *more])} |"


def _load(row: Row, base: Path, temporary: Path) -> tuple[Any, Path | None]:
    from transformers import AutoModelForCausalLM

    if row.scheme is not None:
        source = write(base, temporary / "compressed", row.scheme)
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval(), source
    assert row.config is not None
    made = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=row.config())
    return made.eval(), None


def _fails_alike(row: Row, error: Exception) -> bool:
    """Whether a model that has nothing to do with this package cannot be loaded either, for the same reason."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    assert row.config is not None
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=99, num_hidden_layers=1, **sizes))
    with tempfile.TemporaryDirectory() as directory:
        llama.save_pretrained(directory)
        try:
            AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, quantization_config=row.config())
        except Exception as other:
            return type(other) is type(error) and _short(other) == _short(error)
    return False


def _reload(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def _dequantized(model: Any, base: Path) -> Any:
    """A plain float32 model with the weights that `model` computes with."""
    plain = _reload(base)
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.Linear) and ".layers." in name:
                module.weight.copy_(_weight(model.get_submodule(name)))
    return plain


def _computed(model: Any, ids: Tensor) -> Any:
    # quanto's 4-bit tensors cannot be used in inference mode.
    with torch.inference_mode(False), torch.no_grad():
        return model(ids.clone(), use_cache=False)


def _weight(module: Any) -> Tensor:
    weight = module.weight
    if type(weight).__name__ == "Int4OpaqueTensor":  # in the kernel's own order: what it makes of the unit vectors
        return module(torch.eye(module.in_features)).T
    if type(module).__name__ == "Linear4bit":
        import bitsandbytes.functional as F

        return F.dequantize_4bit(weight.data, weight.quant_state).float()
    if type(module).__name__ == "Linear8bitLt":
        state = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.data.float() * state.float().view(-1, 1) / 127
    if hasattr(weight, "dequantize") and type(weight) is not nn.Parameter:
        return weight.dequantize().float()
    return weight.float()


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    return model(_IDS, use_cache=False).logits.clone()


def _relative(got: Tensor, wanted: Tensor) -> float:
    return (torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted)).item()


def _shared(model: Any) -> str:
    sharing = SharingMap.from_config(model.config)
    keys = [key.removesuffix(".weight") for key in sharing.shared_keys() if "norm" not in key]
    if not all(_is_quantized(model.get_submodule(key)) for key in keys):
        return "**not quantized**"
    once = all(
        model.get_submodule(alias).weight is model.get_submodule(key).weight
        for key in keys
        for alias in sharing.aliases(key)
    )
    return "quantized once" if once else "**quantized several times**"


def _is_quantized(module: Any) -> bool:
    return type(module.weight) is not nn.Parameter or hasattr(module, "quantization_scheme")


def _held(model: Any) -> int:
    """Bytes of all distinct tensors, those within tensors of other classes too."""
    tensors: dict[int, Tensor] = {}

    def add(tensor: Any) -> None:
        if hasattr(tensor, "__tensor_flatten__"):
            for name in tensor.__tensor_flatten__()[0]:
                add(getattr(tensor, name))
        else:
            tensors[tensor.data_ptr()] = tensor

    for tensor in (*model.parameters(), *model.buffers()):
        add(tensor)
    plain = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return max(plain, held_bytes(model)) if _is_bitsandbytes(model) else plain


def _is_bitsandbytes(model: Any) -> bool:
    return any(type(module).__name__ in ("Linear4bit", "Linear8bitLt") for module in model.modules())


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160].replace("|", "/")

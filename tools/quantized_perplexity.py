"""Perplexity per byte of the trained tiny pair, by how its weights are stored. Nothing is downloaded.

python tools/quantized_perplexity.py [--models DIR] [--files [--vllm VLLM]]

--files: of the files that `zamba-compat quantize` writes for servers and of the base with what `extract-lora` writes,
with the bytes of their tensors. Everything but the weights (and with fp8 the activations) is computed in float32. GPTQ
sees pieces of the training text, none of what is measured on. --vllm: what tools/check_vllm.py finds, in a column.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from _bench.footprint import held_bytes
from _tiny.perplexity import perplexity

TINY = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
ROWS: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "bfloat16": None,
    "int8": {"load_in_8bit": True},
    "NF4": NF4,
    "NF4, double quantization": {**NF4, "bnb_4bit_use_double_quant": True},
    "NF4, shared blocks in 16 bits": NF4,
    "FP4": {**NF4, "bnb_4bit_quant_type": "fp4"},
}
GROUP = {"group_size": 64}  # 128 does not divide the tiny model's adapters
FILES: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "NF4": {"quantize": "nf4", "compute_dtype": "float32"},
    "w8a16": {"quantize": "w8a16", **GROUP},
    "fp8": {"quantize": "fp8"},
    "w4a16": {"quantize": "w4a16", **GROUP},
    "w4a16, GPTQ": {"quantize": "w4a16", "gptq": "text", **GROUP},
    "w4a16, GPTQ, act order": {"quantize": "w4a16", "gptq": "text", "act_order": True, **GROUP},
}
ADAPTERS = {"base + extract-lora, rank 64": 64, "base + extract-lora, full rank": 256}
PIECES, PIECE = 16, 512  # of the training text, evenly spaced, bytes
SWAPPED = "bfloat16, the two blocks swapped"


def load(directory: Path, row: str) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    import zamba_compat

    options = ROWS.get(row)
    zamba_compat.configure(quantize_shared="16 bits" not in row)
    more = {} if options is None else {"quantization_config": BitsAndBytesConfig(**options)}
    dtype = torch.float32 if row == "float32" else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(directory, torch_dtype=dtype, **more).eval()


def swap_blocks(source: Path, out: Path) -> None:
    """A checkpoint whose first two blocks have changed places, adapters left where they are."""
    import shutil

    from safetensors.torch import load_file, save_file

    from zamba_compat import SharingMap

    sharing = SharingMap.from_config(source)
    first, second = (sharing.canonical_layer(block) for block in (0, 1))
    other = {first: second, second: first}
    tensors = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        shared = sharing.parse(key)
        moved = shared is not None and shared.adapter is None
        tensors[sharing.at_layer(key, other[shared.layer]) if moved and shared else key] = tensor
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    shutil.copy(source / "config.json", out)


def table(models: Path) -> dict[str, dict[str, tuple[float, int]]]:
    """row -> model -> (perplexity on its own text, bytes held)."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("base", "tuned"):
            text = (models / f"text_{name}.txt").read_bytes()
            swapped = Path(temporary) / name
            swapped.mkdir()
            swap_blocks(models / name, swapped)
            for row in (*ROWS, SWAPPED):
                model = load(swapped if row == SWAPPED else models / name, row)
                value = perplexity(lambda ids, model=model: model(ids, use_cache=False), text)
                found.setdefault(row, {})[name] = (value, held_bytes(model))
    return found


def files(models: Path, vllm: Path | None = None) -> tuple[dict[str, dict[str, tuple[float, int]]], dict[str, str]]:
    """row -> model -> (perplexity on its own text, bytes of tensors); row -> what vLLM's loader makes of the files."""
    from transformers import AutoModelForCausalLM

    from _tiny import corpus
    from zamba_compat.operations.convert import Options, convert

    found: dict[str, dict[str, tuple[float, int]]] = {}
    loaded: dict[str, str] = {}
    for name, text in (("base", corpus.source_code()), ("tuned", corpus.prose())):
        held_out = (models / f"text_{name}.txt").read_bytes()
        for row, options in FILES.items():
            with tempfile.TemporaryDirectory() as temporary:
                seen = Path(temporary, "text.txt")
                starts = (len(text.train) // PIECES * i for i in range(PIECES))
                seen.write_bytes(b"".join(text.train[start : start + PIECE] for start in starts))
                more = {**options, "gptq": str(seen)} if "gptq" in options else options
                report = convert(models / name, Path(temporary, "made"), Options(**more))
                model = AutoModelForCausalLM.from_pretrained(Path(temporary, "made"), torch_dtype=torch.float32).eval()
                value = perplexity(lambda ids, model=model: model(ids, use_cache=False), held_out)
                if vllm is not None and name == "base" and row != "NF4":  # bitsandbytes' is not checked
                    loaded[row] = checked(vllm, Path(temporary, "made"))
            found.setdefault(row, {})[name] = (value, report.bytes)
            print(f"{name}, {row}: {value:.4f}", file=sys.stderr, flush=True)
    for row, rank in ADAPTERS.items():
        found[row] = {"tuned": adapted(models, rank)}
    return found, loaded


def checked(vllm: Path, checkpoint: Path) -> str:
    """What becomes of a checkpoint in vLLM's own loader, in a few words."""
    from _vllm.loading import load as load_in_vllm

    got = load_in_vllm(vllm, checkpoint)
    return got.error or f"{got.keys} keys, {len(got.unread)} unread; {got.parameters} filled, {len(got.unfilled)} not"


def adapted(models: Path, rank: int) -> tuple[float, int]:
    """The base with what makes the tuned model of it: perplexity on the tuned model's text, bytes of the adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import zamba_compat
    from zamba_compat.operations.extract_lora import ExtractOptions, extract_lora

    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "adapter")
        report = extract_lora(models / "base", models / "tuned", out, ExtractOptions(rank=rank))
        base = AutoModelForCausalLM.from_pretrained(models / "base", torch_dtype=torch.float32)
        zamba_compat.separate_modules(base)
        model: Any = PeftModel.from_pretrained(base, out).eval()
        text = (models / "text_tuned.txt").read_bytes()
        return perplexity(lambda ids: model(ids, use_cache=False), text), report.bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=TINY, help="where base/ and tuned/ and their texts are")
    parser.add_argument("--files", action="store_true", help="what `zamba-compat quantize` writes for servers")
    parser.add_argument("--vllm", type=Path, help="with --files: the directory that holds vllm/, see check_vllm.py")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    loaded: dict[str, str] = {}
    if options.files:
        found, loaded = files(options.models, options.vllm)
    else:
        found = table(options.models)
    whole = found["bfloat16" if options.files else "float32"]
    more = " vLLM's loader |" if loaded else ""
    print(f"| weights | base | | tuned | | MB {'stored' if options.files else 'held'} |{more}")
    print(f"|{'---|' * (7 if loaded else 6)}")
    for row, models in found.items():
        cells = [
            f"{models[name][0]:.3f} | {models[name][0] / whole[name][0] - 1:+.1%}" if name in models else " | "
            for name in ("base", "tuned")
        ]
        size = next(iter(models.values()))[1] + (whole["base"][1] if row in ADAPTERS else 0)
        read = f" {loaded.get(row, '-')} |" if loaded else ""
        print(f"| {row} | {' | '.join(cells)} | {size / 1e6:.2f} |{read}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

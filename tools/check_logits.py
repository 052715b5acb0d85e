"""Logits of a published shape against the float64 recurrence, token by token, of tests/support/reference.py.

    python tools/check_logits.py [--shape 1.2B] [--tokens 300] [--dtypes float32 bfloat16]

The same random bfloat16 weights throughout, so what is measured is the arithmetic: exit status 1 where float32 is not
within 1e-4, as ||got - wanted|| / ||wanted|| over all logits. The last 4 tokens come one by one, after a cache.
bfloat16 rounds every result to 8 bits; how far that leads is shown, not judged. 1.2B takes 10 GB and some minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import make_checkpoint
import zamba_compat  # noqa: F401
from zamba_compat.layout.published import PUBLISHED

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conformance.helpers import relative
from support.reference import forward

ALONE = 4  # tokens decoded one by one
LIMIT = 1e-4


def computed(directory: Path, ids: Tensor, dtype: str) -> Tensor:
    """Logits of all tokens by the model that the import makes, [1, tokens, vocab]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=getattr(torch, dtype)).eval()
    with torch.inference_mode():
        first = model(ids[:, :-ALONE], use_cache=True)
        parts, cache = [first.logits], first.past_key_values
        for position in range(ids.shape[1] - ALONE, ids.shape[1]):
            step = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            parts.append(step.logits)
    return torch.cat(parts, 1).double()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(PUBLISHED), default="1.2B")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    right = True
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "model"
        make_checkpoint.write(directory, PUBLISHED[options.shape].config, 1 << 40, 0, torch.bfloat16)
        config = json.loads((directory / "config.json").read_text())
        ids = torch.randint(5, config["vocab_size"], (1, options.tokens), generator=torch.Generator().manual_seed(0))
        state = {name: part for file in directory.glob("*.safetensors") for name, part in load_file(file).items()}
        with torch.inference_mode():
            wanted = forward(state, config, ids)
        del state
        for dtype in options.dtypes:
            got = computed(directory, ids, dtype)
            prompt, alone = (relative(got[:, part], wanted[:, part]) for part in (slice(-ALONE), slice(-ALONE, None)))
            same = float((got.argmax(-1) == wanted.argmax(-1)).double().mean())
            print(
                f"{options.shape}, {dtype}: prompt {prompt:.1e}, one by one {alone:.1e}, same first choice {same:.1%}"
            )
            right &= dtype != "float32" or max(prompt, alone) < LIMIT
            del got
            gc.collect()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

"""Train the tiny Zamba2 fixtures: a base model on source code and a second one tuned from it on prose.

    python tools/train_tiny.py --out DIR

writes DIR/base, DIR/tuned, the held-out texts and perplexity.json. About 8 minutes on two free cores.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from _tiny import ablations, checkpoint, corpus, train, verify
from _tiny.model import TinyZamba2
from _tiny.perplexity import WINDOW, perplexity
from _tiny.sample import sample
from _tiny.shape import Shape

NAMES = ("base", "tuned")


def say(line: str) -> None:
    """Print at once, also into a file."""
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Train, save, measure and check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write, made if missing")
    parser.add_argument("--steps", type=float, default=1.0, metavar="FACTOR", help="scale the number of steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    seconds = build(options.out, options.steps, options.seed)
    report = measure(options.out, options.seed)
    command = f"python tools/train_tiny.py --out DIR --seed {options.seed} --steps {options.steps:g}"
    report |= {"command": command, "seed": options.seed, "training_seconds": seconds}
    (options.out / "perplexity.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    say(json.dumps(report, indent=2))
    say(sample(checkpoint.load(options.out / "base"), b"def ", 200, options.seed).decode(errors="replace"))
    return 0


def build(out: Path, factor: float, seed: int) -> dict[str, float]:
    """Train both models and write them beside the held-out texts; seconds of training by name."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = TinyZamba2(Shape())
    seconds = {}
    for name, text, plan in zip(NAMES, (corpus.source_code(), corpus.prose()), (train.BASE, train.TUNED), strict=True):
        (out / f"text_{name}.txt").write_bytes(text.held_out)
        say(f"{name}: {len(text.train)} bytes to train on, {len(text.held_out)} held out")
        seconds[name] = round(train.fit(model, text.train, plan.scaled(factor), seed, say))
        checkpoint.save(model, out / name)
    return seconds


def measure(out: Path, seed: int) -> dict[str, Any]:
    """Perplexities of what lies on disk, right and mis-tied, after a check against transformers if it is there."""
    texts = {name: (out / f"text_{name}.txt").read_bytes() for name in NAMES}
    models: dict[str, Any] = {}
    for name in NAMES:
        model = checkpoint.load(out / name)
        count = sum(p.numel() for p in model.parameters())
        shared = sum(p.numel() for block in model.model.blocks for p in block.parameters())
        entry: dict[str, Any] = {"parameters": count, "in_shared_blocks": shared}
        entry["perplexity"] = {text: _figures(perplexity(model, content)) for text, content in texts.items()}
        entry["mistied"] = ablations.measure(model, texts[name], seed)
        if verify.reference_available():
            entry["difference_from_transformers"] = verify.check(out / name, texts[name])
        models[name] = entry
        say(f"{name}: measured")
    return {
        "definition": f"exp(mean nats per byte), windows of {WINDOW} bytes, each after the begin token; float32",
        "bytes": {text: len(content) for text, content in texts.items()},
        "models": models,
    }


def _figures(value: float) -> dict[str, float]:
    return {"perplexity": round(value, 4), "bits_per_byte": round(math.log2(value), 4)}


if __name__ == "__main__":
    sys.exit(main())

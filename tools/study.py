"""The study end to end on the trained tiny pair: its configuration, merge, load in NF4 through one import, measure.

    python tools/study.py [--out DIR]

Only the names and the number of layers in the configuration are others (tests/fixtures/merges/study.yml). The same is
merged by mergekit after the import, and the two results are compared number by number.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import overlays
import zamba_compat
from _tiny.perplexity import perplexity
from bench_merge import STUDY, configuration
from zamba_compat.operations.merge import merge

PARENTS = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "tiny"
PROMPT = "def read_lines(path):\n"
MERGEKIT = "import zamba_compat\nfrom mergekit.scripts.run_yaml import main\nmain()"


def by_mergekit(config: Path, out: Path) -> None:
    """What `zamba-compat run -- mergekit-yaml CONFIG OUT` does."""
    command = [sys.executable, "-c", MERGEKIT, str(config), str(out), "--quiet"]
    done = subprocess.run(command, env=overlays.environment(overlays.mergekit()), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def differences(one: Path, other: Path) -> tuple[int, int]:
    """Numbers that differ, and those further apart than a rounding step of their dtype and of float32's arithmetic.

    The latter is taken as 1e-6 of the tensor's largest number: where terms cancel, nothing smaller means anything.
    """
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    if a.keys() != b.keys():
        raise RuntimeError(f"other names: {sorted(a.keys() ^ b.keys())[:4]}")
    count, beyond = 0, 0
    for key in a:
        x, y = a[key].double(), b[key].double()
        apart, size = (x - y).abs(), torch.maximum(x.abs(), y.abs())
        count += int((apart > 0).sum())
        beyond += int((apart > torch.finfo(a[key].dtype).eps * size + 1e-6 * size.max()).sum())
    return count, beyond


def load(directory: Path, *, nf4: bool) -> Any:
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    words = {"quantization_config": quantization} if nf4 else {}
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **words).eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a directory to make, for both results")
    options = parser.parse_args()
    zamba_compat.install()
    torch.set_num_threads(1)  # the models are too small to gain from more
    logging.disable(logging.WARNING)
    texts = {name: (PARENTS / f"text_{name}.txt").read_bytes() for name in ("base", "tuned")}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.out or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        parents = [PARENTS / "base", PARENTS / "tuned"]
        layers = json.loads((parents[0] / "config.json").read_text())["num_hidden_layers"]
        config = work / STUDY.name
        config.write_text(yaml.safe_dump(configuration(parents, layers)))
        report = merge(config, work / "merged")
        print(f"merged {report.merged} tensors by {STUDY.name}, {report.copied} copied")
        by_mergekit(config, work / "by-mergekit")
        count, beyond = differences(work / "merged", work / "by-mergekit")
        print(f"mergekit after the import: {count} numbers differ in rounding, {beyond} by more")
        print("\n| perplexity per byte | text_base | text_tuned |\n| --- | --- | --- |")
        for name, directory, nf4 in (
            ("base", parents[0], False),
            ("tuned", parents[1], False),
            ("merged", work / "merged", False),
            ("merged, NF4", work / "merged", True),
        ):
            model = load(directory, nf4=nf4)
            found = [perplexity(model, text) for text in texts.values()]
            print(f"| {name} | {found[0]:.3f} | {found[1]:.3f} |", flush=True)
        tokenizer = AutoTokenizer.from_pretrained(work / "merged")
        torch.manual_seed(0)
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=120, do_sample=True, temperature=0.7, top_k=20)
        print("\nthe merged model in NF4 writes:")
        print(textwrap.indent(tokenizer.decode(out[0], skip_special_tokens=True), "    | "))
    return 0 if beyond == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

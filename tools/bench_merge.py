"""Benchmark: two checkpoints of a published shape merged by `zamba-compat merge`, by mergekit, by the study's script.

    python tools/bench_merge.py [--repeat 3]    # 1.2B + 1.2B, everything in turn, beside `cp -r` of one parent
    python tools/bench_merge.py --shape 7B      # 7B + 7B by zamba-compat alone in a hard 8 GB, then loaded in NF4
    python tools/bench_merge.py --shape 7B --methods ties    # the same by another method
    python tools/bench_merge.py --quick         # a tiny shape: does it run?

The configuration is the study's, its curves stretched over the layers. mergekit takes a tensor as one vector and the
study's script takes every row as one, so zamba-compat does both and each is compared with its like. mergekit runs with
its defaults: on a CPU its flags for speed (--async-write, --write-threads) save nothing on one shard, and
--lazy-unpickle is for pickles. It and the study's script leave the writing to the kernel; zamba-compat hashes what it
writes and waits until it is on disk.
Seconds are of the merge alone, without starting Python and importing torch.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml

import make_checkpoint
import overlays
from _bench import in_process, methods
from _bench.limit import limited
from _bench.repeated import copy, line, ratio
from zamba_compat.layout.published import PUBLISHED

STUDY = Path(__file__).parents[1] / "tests" / "fixtures" / "merges" / "study.yml"
OURS = """
import json, sys
from _bench import measured
from _bench.limit import join
import torch
from zamba_compat.operations.merge import merge
if len(sys.argv) > 3: join(sys.argv[3])
with measured() as result:
    merge(sys.argv[1], sys.argv[2])
print(json.dumps(result))
"""
MERGEKIT = """
import json, sys, yaml
from _bench import measured
if sys.argv[3] != "without": import zamba_compat
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
if sys.argv[3] == "exact":
    from _bench.exactly import arm
    arm()
text = open(sys.argv[1]).read()
with measured() as result:
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    run_merge(config, sys.argv[2], MergeOptions(quiet=True, copy_tokenizer=False), config_source=text)
assert ("zamba_compat" in sys.modules) == (sys.argv[3] != "without")
print(json.dumps(result))
"""
STUDYS = """
import json, sys
from pathlib import Path
from _bench import measured
from _bench.rowwise import merge, t_of
base, other, out = map(Path, sys.argv[1:4])
layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
with measured() as result:
    merge(base, other, out, lambda key: t_of(key, layers))
print(json.dumps(result))
"""
LOAD = """
import json, sys
from _bench import measured
from _bench.limit import join
import zamba_compat, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
if len(sys.argv) > 2: join(sys.argv[2])
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
with measured() as result, torch.inference_mode():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=nf4, dtype=torch.bfloat16)
    logits = model(torch.arange(3, 67)[None]).logits
    result["finite"] = bool(logits.isfinite().all())
    # Of weights that mean nothing: near the size of the vocabulary.
    result["perplexity"] = float(torch.nn.functional.cross_entropy(logits[0, :-1].float(), torch.arange(4, 67)).exp())
    result["generated"] = model.generate(torch.arange(3, 11)[None], max_new_tokens=8, do_sample=False)[0, 8:].tolist()
print(json.dumps(result))
"""


def configuration(parents: list[Path], layers: int) -> dict[str, Any]:
    """The study's, for other parents and another depth."""
    words: dict[str, Any] = yaml.safe_load(STUDY.read_text())
    words["base_model"] = str(parents[0])
    for source, parent in zip(words["slices"][0]["sources"], parents, strict=True):
        source.update(model=str(parent), layer_range=[0, layers])
    return words


def shape_of(name: str, *, quick: bool) -> dict[str, Any]:
    """A published config, or one with its layers and hardly any width."""
    config = deepcopy(PUBLISHED[name].config)
    if quick:
        small = {"hidden_size": 128, "intermediate_size": 256, "attention_hidden_size": 256, "vocab_size": 512}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "attention_head_dim": 64, "n_mamba_heads": 4}
        config.update(small, **heads, mamba_headdim=64, kv_channels=32, num_query_groups=4, adapter_rank=8)
    return config


def compare(work: Path, parents: list[Path], config: Path, repeat: int) -> None:
    """Everything in turn, each output removed before the next, and all of it `repeat` times."""
    by_rows = work / "by_rows.yml"
    by_rows.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"merge_method": "slerp_rowwise"}))
    out, env = work / "out", {"PYTHONPATH": ":".join(map(str, overlays.mergekit()))}
    contestants = {
        "cp -r": lambda: copy(parents[0], out),
        "zamba-compat merge": lambda: in_process(OURS, str(config), str(out)),
        "zamba-compat merge, by rows": lambda: in_process(OURS, str(by_rows), str(out)),
        "mergekit 0.1.5": lambda: in_process(MERGEKIT, str(config), str(out), "without", env=env),
        "mergekit 0.1.5, import": lambda: in_process(MERGEKIT, str(config), str(out), "with", env=env),
        "the study's script": lambda: in_process(STUDYS, *map(str, parents), str(out)),
    }
    runs: dict[str, list[dict[str, Any]]] = {what: [] for what in contestants}
    for _ in range(repeat):
        for what, run in contestants.items():
            runs[what].append(run())
            shutil.rmtree(out)
    for what, measured in runs.items():
        like = "zamba-compat merge, by rows" if what == "the study's script" else "zamba-compat merge"
        print(f"{line(what, measured)}; {ratio(measured, runs[like]):.2f} x as long as {like}", flush=True)


def within(work: Path, config: Path, limit: int) -> None:
    """zamba-compat alone, and loading what it wrote, each in a group of processes that may hold `limit` bytes."""
    out = work / "out"
    for what, code, arguments in (
        ("zamba-compat merge", OURS, [str(config), str(out)]),
        ("load in NF4, generate, evaluate", LOAD, [str(out)]),
    ):
        with limited(limit) as group:
            run = in_process(code, *arguments, str(group.folder))
            peak = group.peak_bytes
        assert run.get("finite", True)
        print(f"{line(what, [run])}, {peak / 1e9:.2f} GB with the page cache, limit {limit / 1e9:.1f} GB", flush=True)
        if "generated" in run:
            print(f"  tokens {run['generated']}, perplexity {run['perplexity']:.0f} on 63 tokens", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=PUBLISHED, default="1.2B")
    parser.add_argument("--limit", type=float, help="GB; merges with zamba-compat alone, as --shape 7B does with 8")
    parser.add_argument("--quick", action="store_true", help="the shape's layers, hardly any width")
    parser.add_argument("--methods", nargs="*", metavar="NAME", help="every method (or these) beside mergekit, once")
    parser.add_argument(
        "--exact", action="store_true", help="where a method's result differs, once more: see exactly.py"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, help="a directory with room for three times the checkpoint")
    options = parser.parse_args()
    limit = options.limit or (8.0 if options.shape == "7B" else None)

    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work, shape = Path(temporary), shape_of(options.shape, quick=options.quick)
        parents = [
            work / name for name in ("base", "other", "third", "fourth")[: 2 if limit or options.methods is None else 4]
        ]
        for seed, parent in enumerate(parents):
            size = make_checkpoint.write(parent, shape, 5 * 10**9, seed, torch.bfloat16)
        if options.methods is not None and limit is None:
            env = {"PYTHONPATH": ":".join(map(str, overlays.mergekit()))}
            methods.table(
                work,
                parents,
                lambda *paths: in_process(OURS, *map(str, paths)),
                lambda *paths: in_process(MERGEKIT, *map(str, paths), "with", env=env),
                lambda *paths: in_process(methods.LIMIT, *map(str, paths)),
                lambda *paths: in_process(MERGEKIT, *map(str, paths), "exact", env=env) if options.exact else None,
                options.methods,
            )
            return 0
        config = work / "config.yml"
        found = configuration(parents, shape["num_hidden_layers"])
        if options.methods:
            found = methods.configuration(options.methods[0], parents)
        config.write_text(yaml.safe_dump(found))
        said = f"{size / 1e9:.2f} GB each in bfloat16, {found['merge_method']}"
        print(f"{options.shape} + {options.shape}, {said}:", flush=True)
        if limit is None:
            compare(work, parents, config, options.repeat)
        else:
            within(work, config, int(limit * 1e9))
    return 0


if __name__ == "__main__":
    sys.exit(main())

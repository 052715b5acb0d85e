"""The main job on real input: a merged checkpoint that stock transformers cannot load, loaded after one import.

Two small trained parents (tests/fixtures/tiny) are written out key by key and merged by SLERP with an interpolation
factor that depends on depth, as merge scripts do that know nothing of shared blocks. Then, in transformers 5.16.1 and
in the release of this environment: stock, and after `import zamba_compat`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from _tiny.perplexity import perplexity

ROOT = Path(__file__).resolve().parents[1]
PARENTS = ROOT / "tests" / "fixtures" / "tiny"
OLDER = "5.16.1"
PROMPT = "def read_lines(path):\n"


def slerp(t: float, a: Tensor, b: Tensor) -> Tensor:
    """Spherical interpolation of two tensors as vectors; linear where they are nearly parallel."""
    x, y = a.double().flatten(), b.double().flatten()
    cosine = torch.dot(x, y) / (x.norm() * y.norm())
    if cosine.abs() > 0.9995:
        return ((1 - t) * x + t * y).reshape(a.shape).to(a.dtype)
    angle = torch.arccos(cosine)
    mixed = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return mixed.reshape(a.shape).to(a.dtype)


def expanded(directory: Path) -> dict[str, Tensor]:
    """Every key that `model.state_dict()` has: each block at every layer that uses it."""
    from zamba_compat.layout.sharing import SharingMap

    sharing = SharingMap.from_config(directory)
    state = load_file(directory / "model.safetensors")
    return {alias: tensor.clone() for key, tensor in state.items() for alias in sharing.aliases(key)}


def merge(out: Path) -> None:
    """Merge the parents key by key, t from 0.3 at the first layer to 0.7 at the last."""
    base, tuned = expanded(PARENTS / "base"), expanded(PARENTS / "tuned")
    layers = json.loads((PARENTS / "base" / "config.json").read_text())["num_hidden_layers"]
    merged = {}
    for key, tensor in base.items():
        parts = key.split(".")
        depth = int(parts[2]) / (layers - 1) if parts[1] == "layers" else 0.5
        merged[key] = slerp(0.3 + 0.4 * depth, tensor, tuned[key])
    out.mkdir(parents=True)
    save_file(merged, out / "model.safetensors", {"format": "pt"})
    for file in (PARENTS / "base").glob("*.json"):
        (out / file.name).write_text(file.read_text())


def use(directory: Path, armed: bool) -> None:
    """Load, measure, write: what runs in a process of its own per release."""
    if armed:
        import zamba_compat  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # the model is too small to gain from more
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
    for name in ("base", "tuned"):
        text = (PARENTS / f"text_{name}.txt").read_bytes()
        print(f"perplexity per byte on text_{name}.txt: {perplexity(model, text):.3f}")
    if armed:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
        torch.manual_seed(0)
        out = model.generate(ids, max_new_tokens=120, do_sample=True, temperature=0.7, top_k=20)
        print("it writes:")
        print(textwrap.indent(tokenizer.decode(out[0], skip_special_tokens=True), "    | "))


def run(title: str, directory: Path, release: str | None, armed: bool) -> bool:
    """`use` in a subprocess under a release; says how it went and whether it did."""
    print(f"\n--- {title}", flush=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--use", str(directory)]
    command += ["--armed"] if armed else []
    if release is not None:
        command = [sys.executable, str(ROOT / "tools" / "overlays.py"), "run", release, *command]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    if done.returncode:
        error = next((line for line in reversed(done.stderr.splitlines()) if line[:1].strip()), "no message")
        print(f"FAILS: {error[:300]}")
    else:
        warnings = [line for line in done.stderr.splitlines() if "shared tensors are stored" in line]
        print("\n".join([*warnings, done.stdout.rstrip()]))
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--armed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.use:
        use(options.use, options.armed)
        return 0
    from importlib.metadata import version

    with tempfile.TemporaryDirectory() as temporary:
        merged = Path(temporary) / "merged"
        merge(merged)
        keys = len(load_file(merged / "model.safetensors"))
        print(f"merged {PARENTS / 'base'} and {PARENTS / 'tuned'}: {keys} keys, shared blocks in differing copies")
        for name in ("base", "tuned"):
            run(f"the parent {name!r}, with the import", PARENTS / name, None, armed=True)
        failed = not run(f"the merge, transformers {OLDER}, stock", merged, OLDER, armed=False)
        loaded = [
            run(f"the merge, transformers {OLDER}, after `import zamba_compat`", merged, OLDER, armed=True),
            run(f"the merge, transformers {version('transformers')}, after the import", merged, None, armed=True),
        ]
    print("\n--- the study's configuration, merged with the sharing understood (tools/study.py)", flush=True)
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    study = [sys.executable, str(Path(__file__).with_name("study.py"))]
    done = subprocess.run(study, env={**os.environ, **quiet}, capture_output=True, text=True)
    print(done.stdout.rstrip() or done.stderr[-2000:])
    right = failed and all(loaded) and done.returncode == 0
    print("\nstock fails, the import loads" if right else "\nNOT AS IT SHOULD BE")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

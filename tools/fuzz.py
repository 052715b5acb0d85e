"""Fuzz the readers of untrusted files for longer than the tests do; whatever fails is kept in tests/fuzz/corpus.

    python tools/fuzz.py --seconds 60            # structure-aware mutations, every target
    python tools/fuzz.py --atheris --seconds 600 # guided by coverage; pip install atheris first

Anything but an error of the package is a bug: its input and traceback are printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the changes (default: a new one)")
    parser.add_argument("--target", nargs="+", help="these only")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, one process for each target")
    options = parser.parse_args()
    from fuzz.targets import TARGETS

    names = options.target or list(TARGETS)
    if options.atheris:
        return max(_atheris(name, options.seconds / len(names)) for name in names)
    tried, bugs = fuzz(names, options.seconds, random.randrange(2**32) if options.seed is None else options.seed)
    print(f"{sum(tried.values())} inputs ({', '.join(f'{name} {n}' for name, n in tried.items())}), {bugs} bugs")
    return 1 if bugs else 0


def fuzz(names: list[str], seconds: float, seed: int) -> tuple[dict[str, int], int]:
    """Run changed files through the targets. Returns how many inputs each took, and how many bugs there were."""
    from fuzz.targets import TARGETS, checkpoint, keep, seeds

    print(f"seed {seed}")
    draw, tried, bugs = random.Random(seed), dict.fromkeys(names, 0), 0
    with tempfile.TemporaryDirectory() as top:
        directory = checkpoint(Path(top, "checkpoint"))
        known = {name: seeds(name, directory) for name in names}
        for name in names:
            end = time.monotonic() + seconds / len(names)
            while time.monotonic() < end:
                data = TARGETS[name].mutate(draw.choice(known[name]), draw)
                tried[name] += 1
                try:
                    TARGETS[name].run(directory, data)
                except Exception:
                    bugs += 1
                    print(f"{name}: {keep(name, data)}")
                    traceback.print_exc()
                    if bugs >= 10:
                        return tried, bugs
    return tried, bugs


def _atheris(name: str, seconds: float) -> int:
    """libFuzzer in a process of its own: it ends the process it runs in."""
    import subprocess

    program = f"import sys; sys.path[:0] = {sys.path[:2]!r}; from fuzz.guided import run; run({name!r}, {int(seconds)})"
    return subprocess.run([sys.executable, "-c", program]).returncode


if __name__ == "__main__":
    sys.exit(main())

"""The conformance suite with the newest release of everything that the package index serves, torch as installed here.

    python tools/newest.py              run the suite; arguments after -- go to pytest
    python tools/newest.py --list       say which releases those are, and run nothing

What is newer than the environment goes into folders of its own, first on the path, as tools/overlays.py does it for
releases of transformers. Exit status: 0 all right, 1 a failure, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

import overlays

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "tests" / "conformance"
NAMES = ("transformers", "huggingface_hub", "tokenizers", "accelerate", "bitsandbytes", "peft", "safetensors")
REPORT = ROOT / "build" / "reports" / "newest.jsonl"


def newest() -> dict[str, str]:
    """The releases that pip would install for NAMES today, with what they need, where the environment has others.

    Raises:
        OverlayError: pip finds no set of releases that fit together.
    """
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run", "--upgrade",
        "--upgrade-strategy", "eager", "--report", "-", *NAMES, f"torch=={version('torch').partition('+')[0]}",
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise overlays.OverlayError(f"pip finds no newest set: {done.stderr.strip()[-2000:]}")
    found: list[dict[str, Any]] = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return {canonicalize_name(item["name"]): item["version"] for item in found if item["name"] != "torch"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say which releases are newest; run nothing")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="more arguments for pytest")
    options = parser.parse_args(arguments)
    try:
        newer = newest()
        for name in map(canonicalize_name, NAMES):
            print(f"{name:<16} {newer.get(name) or version(name)}{'' if name in newer else ' (as installed)'}")
        if options.list:
            return 0
        paths = [overlays.build(name, release) for name, release in newer.items()]
    except overlays.OverlayError as error:
        print(f"newest: {error}", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "pytest", "-q", f"--record={REPORT}", str(SUITE), *options.arguments]
    return subprocess.run(command, cwd=ROOT, env=overlays.environment(paths)).returncode


if __name__ == "__main__":
    sys.exit(main())

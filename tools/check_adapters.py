"""Switch every adapter off by itself, and name those that no conformance test misses.

    python tools/check_adapters.py                                the installed release
    python tools/check_adapters.py --releases 4.57.6,5.16.1
    python tools/check_adapters.py --adapters zamba2-tie-map

A test says with `mended_by` or `relies_on` which adapters it needs (tests/conformance/mending.py). In every release in
which an adapter applies, one of the tests that name it must fail while it is off.

Exit status: 0 every adapter is missed, 1 one is not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

import overlays
from _matrix import runner

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "build" / "adapters"

EXEMPT_GROUPS = {
    "speed": "speed: right without it",
    "release": "for releases outside the matrix",
    "merging": "tests/patches/mergekit",
}
EXEMPT = {
    "bitsandbytes-too-old-for-a-cpu": "old releases of bitsandbytes: tests/zamba_compat/runtime/test_bitsandbytes.py",
    "four-bit-dtype-left-out": "a warning: tests/patches/transformers",
    "bitsandbytes-carried-cpu-flag": "CPUs without AVX512-BF16: tests/patches/bitsandbytes",
}
"""What the conformance suite need not or cannot show, and why or where else it is."""
EXEMPT_BEFORE = {"quant-state-per-module": ("5.0", "there for bitsandbytes before 0.48 only")}
"""The same in the releases before one."""


def reason(name: str, group: str, release: str) -> str | None:
    """Why nothing need notice, in a release of transformers, that an adapter is off; None if something must."""
    until, why = EXEMPT_BEFORE.get(name, ("0", ""))
    if Version(release) < Version(until):
        return why
    return EXEMPT.get(name) or EXEMPT_GROUPS.get(group)


def check(release: str, adapters: str | None, search: bool) -> list[str]:
    """Say who notices what in a release; returns the adapters that nobody notices.

    Raises:
        overlays.OverlayError: the release cannot be set up.
        subprocess.CalledProcessError: pytest itself failed; its log is next to the results.
    """
    plan = runner.Plan("import", ROOT / "tests" / "conformance", ROOT, REPORTS)
    REPORTS.mkdir(parents=True, exist_ok=True)
    out, log = REPORTS / f"{release}.json", plan.log(release)
    command = [
        sys.executable, "-m", "pytest", str(plan.suite), "-q", "-p", "no:cacheprovider", "-p", "_matrix.switched_off",
        "-p", "_matrix.recorder", "--expect-transformers", release, "--switch-off", str(out),
        *(["--adapters", adapters] if adapters else []), *(["--search"] if search else []),
    ]  # fmt: skip
    env = runner.environment(plan, overlays.overlay(release))
    with log.open("wb") as file:
        subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)
    missed_by_none = []
    for name, what in json.loads(out.read_text(encoding="utf-8")).items():
        exempt = reason(name, what["group"], release)
        print(f"  {name:<38} {what['tests']:>3} tests  {what['noticed_by'] or exempt or 'NOBODY NOTICES'}")
        if what["noticed_by"] is None and exempt is None:
            missed_by_none.append(name)
    return missed_by_none


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", metavar="LIST", default=version("transformers"), help="separated by commas")
    parser.add_argument("--adapters", metavar="LIST", help="these only, separated by commas")
    parser.add_argument("--search", action="store_true", help="run every test for an adapter that no test names")
    options = parser.parse_args(arguments)
    holes = {}
    for release in options.releases.split(","):
        print(f"transformers {release}", flush=True)
        holes[release] = check(release, options.adapters, options.search)
    for release, names in holes.items():
        if names:
            print(f"transformers {release}: nobody notices that {', '.join(names)} is off")
    return 1 if any(holes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Take the next release of a library in: what changed for the adapters, both runs of the suite, and the record of it.

    python tools/next_release.py 5.24.0

1. Fingerprints of every target against the last verified release, with the diff of each that changed and the adapters
   that it concerns. No adapter is edited when nothing changed.
2. The conformance suite with the import and stock.
3. When both are green: patches/verified.json, the list of releases, docs/support.json and the tables. When not:
   docs/support.json says what was found, and what to touch is printed.

Exit status: 0 verified, 1 something is to be done, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.version import InvalidVersion, Version

import fingerprints
import overlays
from _matrix import results

ROOT = Path(__file__).resolve().parents[1]
RELEASES = ROOT / "tools" / "_matrix" / "releases.py"
REPORTS = ROOT / "build" / "matrix"
SUPPORT = "docs/support.json"
MATRIX = [sys.executable, str(ROOT / "tools" / "matrix.py")]


def last_verified(release: str) -> str:
    """The newest release of transformers in the record that is older than this one."""
    record = json.loads(fingerprints.RECORD.read_text(encoding="utf-8"))
    return max((r for r in record["transformers"]["releases"] if Version(r) < Version(release)), key=Version)


def folder(release: str) -> str | None:
    """Where a release lies; None for the one that is installed."""
    return None if overlays.installed("transformers") == release else str(overlays.overlay(release)[0])


def changes(last: str, release: str) -> dict[str, str]:
    """Every target whose fingerprint changed -> the diff."""
    old, new = (fingerprints.read("transformers", folder(r)) for r in (last, release))
    return {
        target: fingerprints.unified(target, (last, old[target][1]), (release, new[target][1]))
        for target in new
        if old[target][0] != new[target][0]
    }


def concerned(target: str) -> list[str]:
    """The names of the adapters that replace a target or rely on it."""
    from zamba_compat.patches import ADAPTERS

    return [adapter.name for adapter in ADAPTERS if target in (*adapter.targets, *adapter.relies)]


def with_release(text: str, release: str) -> str:
    """tools/_matrix/releases.py with a release in RELEASES, in the place of an older one of its minor line."""
    head, _, rest = text.partition("RELEASES = (\n")
    body, _, tail = rest.partition(")")
    listed = re.findall(r'"([^"]+)"', body)
    minor = Version(release).release[:2]
    kept = [r for r in listed if Version(r).release[:2] != minor or Version(r) > Version(release)]
    ordered = sorted({*kept, release}, key=Version)
    lines = [ordered[start : start + 10] for start in range(0, len(ordered), 10)]
    body = "".join("    " + ", ".join(f'"{r}"' for r in line) + ",\n" for line in lines)
    return f"{head}RELEASES = (\n{body}){tail}"


def run_suite(release: str) -> tuple[bool, list[str]]:
    """Run the suite with the import and stock; whether both are green, and what is to be done."""
    todo = []
    for mode, flags in (("import", []), ("stock", ["--stock"])):
        command = [*MATRIX, *flags, "--releases", release, "--keep-going", "--json", SUPPORT]
        status = subprocess.run(command, cwd=ROOT).returncode
        if status > 1:
            raise SystemExit(status)
        found = results.read(release, REPORTS / mode / f"{release}.jsonl")
        if found.broke:
            todo.append(f"{mode}: the run broke: {found.broke}")
        for test in found.failures:
            mended = found.outcomes[test] == "unexpected"
            word = "passes without an adapter: the defect is mended, set `fixed`" if mended else "fails"
            todo.append(f"{mode}: {test.rpartition('conformance/')[2]} {word}{_because(found.messages.get(test))}")
    return not todo, todo


def _because(message: str | None) -> str:
    return f" ({message})" if message else ""


def write(release: str) -> list[str]:
    """Put a verified release into the record, the list of releases and the tables; the files written."""
    RELEASES.write_text(with_release(RELEASES.read_text(encoding="utf-8"), release), encoding="utf-8")
    where = folder(release)
    fingerprints.main(["transformers", release if where is None else f"{release}={where}"])
    subprocess.run([*MATRIX, "--no-run", "--write-docs"], cwd=ROOT, check=True)
    return ["patches/verified.json", str(RELEASES.relative_to(ROOT)), SUPPORT, "docs/support.md", "docs/adapters.md"]


def show(changed: dict[str, str], last: str) -> None:
    if not changed:
        print(f"no target of an adapter changed since {last}")
    for target, text in changed.items():
        print(f"\n== {target} changed since {last}; see {', '.join(concerned(target))}\n{text}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="a release of transformers")
    options = parser.parse_args(arguments)
    try:
        Version(options.release)
    except InvalidVersion:
        parser.error(f"{options.release} is no version")
    try:
        last = last_verified(options.release)
        changed = changes(last, options.release)
    except overlays.OverlayError as error:
        print(f"next release: {error}", file=sys.stderr)
        return 1
    show(changed, last)
    green, todo = run_suite(options.release)
    say(f"transformers {options.release}: {len(changed)} targets changed since {last}")
    if green:
        say(f"both runs are green; written: {', '.join(write(options.release))}")
        return 0
    say("not verified yet. To touch:", *todo, *(f"{target}: {', '.join(concerned(target))}" for target in changed))
    return 1


def say(*lines: str | Iterable[str]) -> None:
    print(*lines, sep="\n  ", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Write patches/verified.json: the releases that were tested, and what each adapter's targets looked like there.

    python tools/fingerprints.py transformers 5.24.0=FOLDER ...   add releases, each from the folder it is installed in
    python tools/fingerprints.py transformers 5.24.0              the release that is installed here
    python tools/fingerprints.py --again                          every recorded release anew, for adapters that are new
    python tools/fingerprints.py --diff transformers 5.23.0=FOLDER 5.24.0=FOLDER   what changed, as a diff

A release is added after the whole suite has passed with it: `make next-release` does both.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

RECORD = Path(__file__).resolve().parents[1] / "patches" / "verified.json"

READ = """
import json, sys
from zamba_compat._engine.fingerprints import fingerprint, source
from zamba_compat.patches import ADAPTERS
mine = [a for a in ADAPTERS if a.library == sys.argv[1] and a.group != "release"]
targets = sorted({target for a in mine for target in (*a.targets, *a.relies)})
print(json.dumps({t: [fingerprint(t), source(t)] for t in targets}))
"""


def read(library: str, folder: str | None) -> dict[str, tuple[str | None, str | None]]:
    """Fingerprint and source of every target of a library's adapters, in the release that a folder holds."""
    search = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": search, "ZAMBA_COMPAT_DISABLE": ""}
    done = subprocess.run(
        [sys.executable, "-c", READ, library], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, tuple[str | None, str | None]] = json.loads(done.stdout)
    return found


def marks(library: str, folder: str | None) -> dict[str, str | None]:
    """Every target's fingerprint in the release that a folder holds, or in the one that is installed."""
    return {target: mark for target, (mark, _) in read(library, folder).items()}


def again() -> dict[str, Any]:
    """The record made anew for all of its releases, each from a folder of its own."""
    import overlays

    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    made: dict[str, Any] = {}
    for library, entry in record.items():
        found = {}
        for release in entry["releases"]:
            here = release == overlays.installed(library)
            found[release] = marks(library, None if here else str(overlays.build(library, release)))
        made = added(made, library, found)
    return made


def write(record: dict[str, Any]) -> None:
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse_release(text: str, library: str) -> tuple[str, str | None]:
    release, _, folder = text.partition("=")
    if not folder and version(library) != release:
        raise SystemExit(f"{library} {release} is not installed here; give it as {release}=FOLDER")
    return release, folder or None


def added(record: dict[str, Any], library: str, found: dict[str, dict[str, str | None]]) -> dict[str, Any]:
    """The record with further releases of a library: release -> target -> fingerprint."""
    old = record.get(library, {"releases": [], "fingerprints": {}})
    per_release = {release: at(old, release) for release in old["releases"]}
    for release, fingerprints in found.items():
        per_release[release] = fingerprints
    releases = sorted(per_release, key=Version)
    targets = sorted({target for fingerprints in per_release.values() for target in fingerprints})
    history: dict[str, dict[str, str | None]] = {}
    for target in targets:
        entries = history[target] = {}
        current: str | None = ""
        for release in releases:
            mark = per_release[release].get(target)
            if mark != current:
                entries[release] = current = mark
    return {**record, library: {"releases": releases, "fingerprints": history}}


def at(entry: dict[str, Any], release: str) -> dict[str, str | None]:
    """Every target's fingerprint in a release of the record."""
    marks: dict[str, str | None] = {}
    for target, history in entry["fingerprints"].items():
        mark = None
        for known in entry["releases"]:
            mark = history.get(known, mark)
            if known == release:
                break
        marks[target] = mark
    return marks


def diff(library: str, before: tuple[str, str | None], after: tuple[str, str | None]) -> str:
    """What changed in the targets between two releases, as a unified diff of each."""
    old, new = read(library, before[1]), read(library, after[1])
    return "\n".join(
        unified(target, (before[0], old[target][1]), (after[0], new[target][1]))
        for target in new
        if old[target][0] != new[target][0]
    )


def unified(target: str, before: tuple[str, str | None], after: tuple[str, str | None]) -> str:
    """The diff of a target's source between two releases, each given as (release, source)."""
    texts = [(text or "").splitlines(keepends=True) for _, text in (before, after)]
    return "".join(difflib.unified_diff(*texts, f"{target} {before[0]}", f"{target} {after[0]}"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diff", action="store_true", help="show what changed between two releases; write nothing")
    parser.add_argument("--again", action="store_true", help="read every recorded release again")
    parser.add_argument("library", nargs="?")
    parser.add_argument("releases", nargs="*", metavar="RELEASE[=FOLDER]")
    options = parser.parse_args(arguments)
    if options.again == bool(options.releases):
        parser.error("name a library and its releases, or --again alone")
    if options.again:
        write(again())
        return 0
    releases = [parse_release(text, options.library) for text in options.releases]
    if options.diff:
        if len(releases) != 2:
            parser.error("--diff takes two releases")
        print(diff(options.library, *releases))
        return 0
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    write(added(record, options.library, {release: marks(options.library, folder) for release, folder in releases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run tests/conformance under transformers releases, and make the support table from what came out.

    python tools/matrix.py                        every release, with the import
    python tools/matrix.py --ci                   CI's releases: between them every adapter (tools/_matrix/ci.py)
    python tools/matrix.py --releases 5.1.0,5.17.0 -- -k rotary
    python tools/matrix.py --stock                without the import: what an adapter mends must fail
    python tools/matrix.py --json docs/support.json --new tests/conformance/test_x.py
                                                  a file that no release has run yet, beside what they have
    python tools/matrix.py --no-run --write-docs

Exit status: 0 all right, 1 a failure, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from _matrix import ci, results, runner, table
from _matrix.releases import RELEASES
from _matrix.results import Mode, Result

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "tests" / "conformance"
DOCS = ROOT / "docs"
SUPPORT = DOCS / "support.json"
REPORTS = ROOT / "build" / "matrix"
PAGES = {table.SUPPORT: "support.md", table.ADAPTERS: "adapters.md"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--releases", metavar="LIST", help="these releases, separated by commas")
    which.add_argument("--ci", action="store_true", help="the releases that CI runs")
    which.add_argument("--no-run", action="store_true", help="run nothing; for --write-docs")
    which.add_argument("--tally", nargs="+", type=Path, metavar="FILE", help="run nothing; add records up")
    parser.add_argument("--but-installed", action="store_true", help="not the one that is installed: make test runs it")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--with-import", dest="mode", action="store_const", const="import", help="the default")
    mode.add_argument("--stock", dest="mode", action="store_const", const="stock", help="without zamba_compat")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the results into FILE")
    parser.add_argument("--new", nargs="+", type=Path, metavar="TEST", help="these files alone; --json adds up")
    parser.add_argument("--write-docs", action="store_true", help="make the tables in docs/ anew")
    parser.add_argument("--keep-going", action="store_true", help="run all releases even if one fails")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="releases at a time")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="S", help="seconds per release")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="more arguments for pytest")
    parser.set_defaults(mode="import")
    options = parser.parse_args(arguments)
    if options.arguments and options.json:
        parser.error("a run with arguments for pytest may leave tests out: no --json")
    return options


def chosen(options: argparse.Namespace) -> tuple[str, ...]:
    releases = tuple(ci.releases()) if options.ci else RELEASES
    if options.releases:
        releases = tuple(part.strip() for part in options.releases.split(",") if part.strip())
    installed = version("transformers") if options.but_installed else None
    return tuple(release for release in releases if release != installed)


def run(options: argparse.Namespace) -> int:
    """Run the suite, keep what is asked for, and say whether all is well."""
    mode: Mode = options.mode
    plan = runner.Plan(
        mode=mode, suite=SUITE, cwd=ROOT, reports=REPORTS / (f"{mode}-new" if options.new else mode),
        jobs=max(options.jobs, 1), only=[path.resolve() for path in options.new or ()],
        timeout=options.timeout, keep_going=options.keep_going, arguments=options.arguments,
    )  # fmt: skip
    releases = chosen(options)
    found = runner.run(plan, releases)
    if options.json:
        results.merge(options.json, mode, found, built_with(), more=bool(options.new))
    missing = [release for release in releases if release not in {result.release for result in found}]
    if missing:
        print(f"not run: {', '.join(missing)}")
    print(total(found))
    return 0 if all(result.ok for result in found) and not missing else 1


def built_with() -> dict[str, str]:
    python = platform.python_version_tuple()
    return {"Python": f"{python[0]}.{python[1]}", "torch": version("torch")}


def total(found: Iterable[Result]) -> str:
    """One plain line: a run that broke counts as a failure more, an expected failure as skipped."""
    sums: Counter[str] = Counter()
    for result in found:
        sums["passed"] += result.counts["passed"] + result.counts["xpassed"]
        sums["failed"] += len(result.failures) + (result.broke is not None)
        sums["skipped"] += result.counts["skipped"] + result.counts["xfailed"]
    return f"{sums['passed']} passed, {sums['failed']} failed, {sums['skipped']} skipped"


def tally(paths: Sequence[Path]) -> int:
    found = [results.read(path.stem, path) for path in paths]
    print(total(found))
    return 0 if all(result.ok for result in found) else 1


def write_docs() -> None:
    """The tables in docs/support.md and docs/adapters.md."""
    from zamba_compat.patches import ADAPTERS

    support: dict[str, Any] = json.loads(SUPPORT.read_text(encoding="utf-8"))
    made = {table.SUPPORT: table.releases(support, ADAPTERS), table.ADAPTERS: table.listing(ADAPTERS)}
    for name, text in made.items():
        page = DOCS / PAGES[name]
        page.write_text(table.splice(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.tally:
        return tally(options.tally)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        status = 0 if options.no_run else run(options)
    except KeyboardInterrupt:
        return 130
    if options.write_docs:
        write_docs()
    return status


if __name__ == "__main__":
    sys.exit(main())

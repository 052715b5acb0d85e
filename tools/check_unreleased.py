"""What becomes of users on releases of transformers that do not exist: a table of variants by scenarios.

    python tools/check_unreleased.py                               made from the installed release
    python tools/check_unreleased.py --base 5.24.0
    python tools/check_unreleased.py --variants "loader renamed,ties copied" --unverified warn

Exit status 1 when a cell is silent: a wrong number, or a block held twice or in 16 bits, without a word.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

import overlays  # noqa: E402
from support import invented  # noqa: E402
from support.invented import VARIANTS, Base  # noqa: E402
from unreleased.judge import Cell, Judge  # noqa: E402

Row = tuple[list[Cell], dict[str, Any]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="RELEASE", help="an overlay's release (default: the installed one)")
    parser.add_argument("--variants", metavar="LIST", help=f"of: {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--version", default=invented.VERSION, help="what it calls itself (%(default)s)")
    parser.add_argument("--unverified", metavar="CHOICE", help="ZAMBA_COMPAT_UNVERIFIED: error, warn or ignore")
    parser.add_argument("--stock", action="store_true", help="without zamba_compat")
    return parser.parse_args()


def main() -> int:
    options = parse()
    base = Base.at(overlays.overlay(options.base) if options.base else ())
    chosen = options.variants.split(",") if options.variants else list(VARIANTS)
    settings = {"ZAMBA_COMPAT_UNVERIFIED": options.unverified} if options.unverified else {}
    if options.stock:
        settings["ZAMBA_COMPAT_TEST_STOCK"] = "1"

    rows: dict[str, Row] = {}
    with Judge() as judge, tempfile.TemporaryDirectory() as folder:
        for number, variant in enumerate(chosen):
            paths = invented.make(variant, Path(folder) / str(number), base, options.version)
            rows[variant] = judge(paths, settings=settings)
    print(table(rows))
    print(details(rows))
    counts = Counter(cell.verdict for cells, _ in rows.values() for cell in cells)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("right", "refused", "warned", "failed", "silent")))
    return 1 if counts["silent"] else 0


def table(rows: dict[str, Row]) -> str:
    """A Markdown table, a variant a row; "doctor" is its exit status."""
    scenarios = [cell.scenario for cell in next(iter(rows.values()))[0]]
    lines = [["", *scenarios, "doctor"], ["---"] * (len(scenarios) + 2)]
    for variant, (cells, doctor) in rows.items():
        words = [cell.verdict.upper() if cell.verdict == "silent" else cell.verdict for cell in cells]
        lines.append([variant, *words, str(doctor["status"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def details(rows: dict[str, Row]) -> str:
    """What is not right, one line for each text, with the scenarios that it is about."""
    lines = []
    for variant, (cells, doctor) in rows.items():
        lines += ["", f"{variant}: doctor: {doctor['verdict'] or doctor['faults'] or 'no faults found'}"]
        texts = dict.fromkeys((cell.verdict, cell.detail) for cell in cells if cell.verdict != "right")
        for verdict, detail in texts:
            about = [cell.scenario for cell in cells if (cell.verdict, cell.detail) == (verdict, detail)]
            lines.append(f"  {verdict} ({', '.join(about)}): {detail}")
        lines += [f"  warning: {message}" for message in dict.fromkeys(doctor["warnings"])]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

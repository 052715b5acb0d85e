"""docs/faults.md, from the rows and from the results of the long run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faults.commands import COMMANDS
from faults.rows import CASES

ROWS = 59
_MARKS = {"refused": "R", "told": "T", "accepted": "ok", "library": "r", "n/a": "-"}


def document(results: Mapping[str, Any]) -> str:
    """docs/faults.md: the promises of rows.py, each of which test_rows.py holds against the command, and the figures.

    Args:
        results: of the long run, as docs/faults.json holds them.
    """
    lines = [
        "<!-- made by `make faults`; do not edit -->",
        "",
        "# Bad input and faults",
        "",
        "Checkpoints may be broken or hostile, disks full, processes killed. The table says what each command then",
        "does; a test holds every cell of it. [SECURITY.md](../SECURITY.md) says what is promised.",
        "",
        "## What each command does",
        "",
        "R: refused before anything appears at the destination, with one line that says what, where and the remedy;",
        "the source stays as it is; exit status 3. T: listed as a fault, exit status 1. r: transformers or safetensors",
        "refuses it with an error of their own. ok: accepted, and what is made or loaded is right. A number: the exit",
        "status, with nothing left behind. -: does not apply. Numbers in brackets: the notes below. Alone,",
        "quantize writes NF4; with --method w8a16, w4a16 and fp8 by turns. extract-lora has the broken one as TUNED.",
        "",
        f"| row | what | {' | '.join(COMMANDS)} |",
        f"| --- | --- |{' --- |' * len(COMMANDS)}",
    ]
    notes: dict[str, int] = {}
    for case in CASES:
        cells = []
        for command in COMMANDS:
            expect = case.expects[command]
            note = f" [{notes.setdefault(expect.why, len(notes) + 1)}]" if expect.why else ""
            cells.append(_MARKS.get(expect.outcome, expect.outcome) + note)
        lines.append(f"| {case.row} | {case.name} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {note}" for note, number in notes.items())]
    covered = {case.row for case in CASES}
    absent = [row for row in range(1, ROWS + 1) if row not in covered]
    if absent:
        lines += ["", f"Not in this table: {', '.join(f'{row} ({ELSEWHERE[row]})' for row in absent)}."]
    lines += [
        "",
        "## The long run",
        "",
        "`make faults` kills every writing command again and again, takes its disk away, and fuzzes the readers:",
        "",
        *figures(results),
    ]
    return "\n".join(lines) + "\n"


ELSEWHERE = {53: "killed at any moment, every writing command: tests/faults/test_crashes.py"}


def figures(results: Mapping[str, Any]) -> list[str]:
    """The table of the long run, line by line."""
    crashes = results["crashes"]
    lines = [
        "| | |",
        "| --- | --- |",
        f"| rows in the table | {len({case.row for case in CASES})} of {ROWS}, {len(CASES)} ways to bring them about |",
        f"| outcomes checked | {outcomes()} |",
    ]
    for command, kinds in crashes.items():
        kills = sum(count for kind, count in kinds.items() if kind.startswith("SIGKILL"))
        lines.append(f"| {command}: SIGKILLs, other faults | {kills}, {sum(kinds.values()) - kills} |")
    return [
        *lines,
        f"| faults survived | {results['survived']} of {sum(sum(kinds.values()) for kinds in crashes.values())} |",
        f"| inputs fuzzed | {sum(results['fuzzed'].values()):,} |",
        f"| lost | {results['lost']} |",
        f"| let in | {results['bugs']} |",
    ]


def outcomes() -> int:
    """How many promises there are, those left out that do not apply."""
    return sum(expect.outcome != "n/a" for case in CASES for expect in case.expects.values())

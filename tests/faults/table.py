"""docs/faults.md and the README's figures, from the rows and from the results of the long run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faults.commands import COMMANDS
from faults.rows import CASES

BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
ROWS = 59
_MARKS = {"refused": "R", "told": "T", "accepted": "ok", "library": "r", "n/a": "-"}


def document() -> str:
    """docs/faults.md: the promises of rows.py, each of which test_rows.py holds against the command."""
    lines = [
        "<!-- made by `make faults`; do not edit -->",
        "",
        "# Bad input and faults: what each command does with them",
        "",
        "R: refused before anything appears at the destination, with one line that says what, where and the remedy;",
        "the source stays as it is; exit status 3. T: listed as a fault, exit status 1. r: transformers or safetensors",
        "refuses it with an error of their own. ok: accepted, and what is made or loaded is right. A number: the exit",
        "status, with nothing left behind. -: does not apply. Numbers in brackets: the notes below.",
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
    return "\n".join(lines) + "\n"


ELSEWHERE = {53: "killed at any moment, every writing command: tests/faults/test_crashes.py"}


def figures(results: Mapping[str, Any]) -> str:
    """What the README has between the markers, of the long run in docs/faults.json."""
    crashes = results["crashes"]
    lines = [
        "<!-- made by `make faults`; do not edit -->",
        "",
        "| | |",
        "| --- | --- |",
        f"| rows in the table | {len({case.row for case in CASES})} of {ROWS}, {len(CASES)} ways to bring them about |",
        f"| outcomes checked | {outcomes()} |",
    ]
    for command, kinds in crashes.items():
        kills = sum(count for kind, count in kinds.items() if kind.startswith("SIGKILL"))
        lines.append(f"| {command}: SIGKILLs, other faults | {kills}, {sum(kinds.values()) - kills} |")
    lines += [
        f"| faults survived | {results['survived']} of {sum(sum(kinds.values()) for kinds in crashes.values())} |",
        f"| inputs fuzzed | {sum(results['fuzzed'].values()):,} |",
        f"| lost | {results['lost']} |",
        f"| let in | {results['bugs']} |",
    ]
    return "\n".join(lines)


def outcomes() -> int:
    """How many promises there are, those left out that do not apply."""
    return sum(expect.outcome != "n/a" for case in CASES for expect in case.expects.values())


def section(readme: str) -> str:
    return readme.partition(BEGIN)[2].partition(END)[0].strip("\n")


def splice(readme: str, text: str) -> str:
    """The README with other figures between its markers."""
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"

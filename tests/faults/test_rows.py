"""Every row of the table against every command: each gets what is promised, in docs/faults.md too."""

from __future__ import annotations

import pytest

from faults.arena import Arena
from faults.commands import COMMANDS, METHODS, outcome
from faults.rows import CASES, Case

# A fault that a command cannot meet is no test of it; docs/faults.md has the reason.
ROWS = [(case, command) for command in COMMANDS for case in CASES if case.expects[command].outcome != "n/a"]


@pytest.mark.parametrize(("case", "command"), ROWS, ids=[f"{case.id}-{command}" for case, command in ROWS])
def test_row(case: Case, command: str, arena: Arena) -> None:
    expect = case.expects[command]
    arena.method = METHODS[case.row % len(METHODS)]
    case.make(arena)
    assert outcome(command, arena, expect) == expect.outcome

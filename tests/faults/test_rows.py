"""Every row of the table against every command: each gets what is promised, in docs/faults.md too."""

from __future__ import annotations

import pytest

from faults.arena import Arena
from faults.commands import COMMANDS, outcome
from faults.rows import CASES, Case


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_row(case: Case, command: str, arena: Arena) -> None:
    expect = case.expects[command]
    if expect.outcome == "n/a":
        assert expect.why
        return
    case.make(arena)
    assert outcome(command, arena, expect) == expect.outcome

"""Every row of the table against every command: each gets what is promised, in docs/faults.md too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.arena import Arena, build
from faults.commands import COMMANDS, outcome
from faults.rows import CASES, Case


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session", autouse=True)
def warm(armed: bool) -> Iterator[None]:
    """What every forked process would import again."""
    import bitsandbytes  # noqa: F401
    import transformers.models.zamba2.modeling_zamba2  # noqa: F401

    yield


@pytest.fixture
def arena(base: Path, tmp_path: Path) -> Arena:
    return build(base, tmp_path / "arena")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_row(case: Case, command: str, arena: Arena) -> None:
    expect = case.expects[command]
    if expect.outcome == "n/a":
        assert expect.why
        return
    case.make(arena)
    assert outcome(command, arena, expect) == expect.outcome

"""Killed, interrupted, out of room, unreadable, raced: the destination is the old one whole or the new one whole."""

from __future__ import annotations

import os
import sys

import pytest

from faults.arena import Arena
from faults.commands import WRITING
from faults.crashes import Bench, campaign

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, namespaces and resource limits")
KILLS = int(os.environ.get("ZAMBA_COMPAT_TEST_KILLS", "32"))  # per command and kind of destination


@pytest.mark.parametrize("old", [False, True], ids=["nothing there", "an old one there"])
@pytest.mark.parametrize("command", WRITING)
def test_nothing_is_lost(command: str, old: bool, arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(command, arena, old=old)
    tally = campaign(bench, KILLS, seed=2 * WRITING.index(command) + old)
    with capsys.disabled():
        print(f"\n{command}, {bench.duration * 1000:.0f} ms:", dict(tally.crashes), dict(tally.phases), tally.statuses)
    assert not tally.lost, "\n".join(tally.lost)
    assert sum(tally.crashes.values()) > KILLS
    assert sum(tally.phases.values()) > KILLS / 3  # enough of them were alive when they were killed
    assert len(tally.phases) >= 3

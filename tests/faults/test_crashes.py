"""Killed, interrupted, out of room, unreadable, raced: the destination is the old one whole or the new one whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.commands import WRITING

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, namespaces and resource limits")
KILLS = int(os.environ.get("ZAMBA_COMPAT_TEST_KILLS", "32"))  # per command and kind of destination


ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(str(ROOT / name) for name in (".", "tests", "tools"))


@pytest.mark.parametrize("kind", ["nothing", "old"])
@pytest.mark.parametrize("command", WRITING)
def test_nothing_is_lost(command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = 2 * WRITING.index(command) + (kind == "old")
    done = subprocess.run(
        [sys.executable, "-m", "faults.campaign", command, kind, str(KILLS), str(seed), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        shown = (found[name] for name in ("crashes", "phases", "statuses"))
        print(f"\n{command}, {kind} there, {found['duration'] * 1000:.0f} ms:", *shown)
    assert not found["lost"], "\n".join(found["lost"])
    assert sum(found["crashes"].values()) > KILLS
    assert sum(found["phases"].values()) > KILLS / 3  # enough of them were alive when they were killed
    assert len(found["phases"]) >= 3

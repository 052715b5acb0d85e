"""What was measured several times, in one line; and the peer that only copies."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path
from typing import Any


def copy(source: Path, out: Path) -> dict[str, Any]:
    """Measure `cp -r`, as `in_process` measures."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    return {"seconds": time.perf_counter() - start}


def line(what: str, runs: list[dict[str, Any]]) -> str:
    """What `in_process` measured several times, with the median of the seconds and the highest peak."""
    seconds = [run["seconds"] for run in runs]
    text = f"  {what:<28} {statistics.median(seconds):7.2f} s (of {', '.join(f'{s:.2f}' for s in seconds)})"
    peak = max((run.get("peak_bytes", 0) for run in runs), default=0)
    return text + (f", {peak / 1e9:.2f} GB anonymous memory" if peak else "")


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Of the median seconds."""
    mine, peer = (statistics.median(run["seconds"] for run in runs) for runs in (ours, theirs))
    return float(mine / peer)

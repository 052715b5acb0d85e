"""What the benchmarks share: a command's time and memory, measured from inside a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(field)


@contextmanager
def measured(interval: float = 0.005) -> Iterator[dict[str, float]]:
    """Seconds, those of processors, and the peaks of anonymous and of all resident memory above that before, in bytes.

    Anonymous memory is what the process cannot give back; pages mapped from files are the kernel's to drop.
    """
    result: dict[str, float] = {}
    fields = {"RssAnon": "peak_bytes", "VmRSS": "resident_bytes"}
    before = {field: _status(field) for field in fields}
    peaks, done = dict(before), threading.Event()

    def look() -> None:
        for field in fields:
            peaks[field] = max(peaks[field], _status(field))

    def watch() -> None:
        while not done.wait(interval):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    start, spent = time.perf_counter(), time.process_time()
    try:
        yield result
    finally:
        result["seconds"] = time.perf_counter() - start
        result["cpu_seconds"] = time.process_time() - spent
        done.set()
        thread.join()
        look()
        for field, name in fields.items():
            result[name] = peaks[field] - before[field]


def in_process(code: str, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run Python code in a process of its own; it prints one JSON object as its last line."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **quiet, **(env or {})},
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]

"""A pytest plugin: `--record FILE` writes what becomes of every test as it happens, a JSON object a line.

Lines: {"collected": n}, then {"test": nodeid, "outcome": ..., "message": ...} per test and phase that
matters, then {"finished": exit status}. A file without the last line is of a run that died.
`--expect-transformers VERSION` refuses to run with any other release, so that no result is credited to the
wrong one.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

STRICT = "[XPASS(strict)]"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("matrix")
    group.addoption("--record", metavar="FILE", help="write every outcome to FILE, one JSON object a line")
    group.addoption("--expect-transformers", metavar="VERSION", help="stop unless this release is what runs")


def pytest_configure(config: pytest.Config) -> None:
    expected = config.getoption("--expect-transformers")
    if expected is not None:
        found = importlib.metadata.version("transformers")
        if found != expected:
            raise pytest.UsageError(f"transformers {found} is on the path, not {expected}")
    path = config.getoption("--record")
    if path is not None and not hasattr(config, "workerinput"):  # pytest-xdist's workers report to the first process
        config.pluginmanager.register(Recorder(Path(path)), "outcome-recorder")


def outcome(report: pytest.TestReport) -> str | None:
    """passed, failed, skipped, xfailed, xpassed or unexpected (passed against a strict xfail), if any."""
    if report.failed:
        return "unexpected" if report.when == "call" and str(report.longrepr).startswith(STRICT) else "failed"
    if report.skipped:
        return "xfailed" if hasattr(report, "wasxfail") else "skipped"
    if report.when == "call":
        return "xpassed" if hasattr(report, "wasxfail") else "passed"
    return None


def message(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why it failed, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr or "")
    lines = text.strip().splitlines() or [""]
    return (lines[0] if crash is not None else lines[-1])[:300]


class Recorder:
    """Writes the lines; each is flushed, so that they survive a crash and a reader can follow."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def _write(self, **entry: Any) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", message=f"not collected: {message(report)}")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write(collected=len(session.items))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        what = outcome(report)
        if what in ("failed", "unexpected"):
            self._write(test=report.nodeid, outcome=what, message=message(report))
        elif what is not None:
            self._write(test=report.nodeid, outcome=what)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._write(finished=int(exitstatus))

    def pytest_unconfigure(self) -> None:
        self._file.close()

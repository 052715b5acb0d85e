"""A pytest plugin: `--switch-off FILE` runs the conformance tests that name an adapter while this adapter is off.

Each adapter has a process of its own, forked once everything is imported, which ends at the first test that fails.
FILE gets a JSON object: for every adapter that applies to the installed releases, how many tests name it and the first
that fails without it, if any does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

SECONDS = 300  # for one adapter


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("matrix")
    group.addoption("--switch-off", metavar="FILE", help="switch adapters off, one at a time; FILE gets what came out")
    group.addoption("--adapters", metavar="LIST", help="these only, separated by commas")
    group.addoption("--search", action="store_true", help="run every test for an adapter that no test names")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Instead of running the tests once."""
    path = session.config.getoption("--switch-off")
    if path is None:
        return None
    from conformance.mending import bounds  # type: ignore[import-not-found]

    named = tests_by_adapter(session.items)
    chosen = session.config.getoption("--adapters")
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one for all processes
    found, groups = {}, {name: own.group for name, own in bounds().items()}
    for name, items in named.items():
        if chosen is None or name in chosen.split(","):
            search = session.config.getoption("--search") and not items
            missed = first_failure(name, session.items if search else items)
            control = [item for item in session.items if item.nodeid == missed]
            if control and first_failure("", control):
                raise RuntimeError(f"{missed} fails with every adapter in place")
            found[name] = {"tests": len(items), "noticed_by": missed, "group": groups[name]}
            print(f"\n{name}: {missed or 'nobody notices'}", file=sys.__stderr__, flush=True)
    Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return True


def tests_by_adapter(items: Sequence[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """For every adapter that applies here, the tests that name it; first those that name it alone."""
    from conformance.mending import adapters_of, applies, bounds

    release = version("transformers")
    tests: dict[str, list[pytest.Item]] = {name: [] for name, own in bounds().items() if applies(own, release)}
    for item in items:
        names = {*adapters_of(item, release, "mended_by"), *adapters_of(item, release, "relies_on")}
        for name in names:
            tests[name].append(item)
    return tests


def first_failure(name: str, items: Sequence[pytest.Item]) -> str | None:
    """The first of the tests that fails, or ends its process, while the adapter is off."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(SECONDS)
        status = 1
        try:
            switch_off(name)
            status = 2 if run(items, writing) else 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as lines:
        started = lines.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 1:
        raise RuntimeError(f"{name} could not be switched off:\n" + "\n".join(started))
    if status == 0:
        return None
    return started[-1] if status == 2 else f"{started[-1] if started else name} (ended by signal {-status})"


def run(items: Sequence[pytest.Item], progress: int) -> bool:
    """Whether a test fails; the name of each is written before it starts."""
    for item, following in zip_longest(items, items[1:]):
        os.write(progress, f"{item.nodeid}\n".encode())
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return True
    return False


def switch_off(name: str) -> None:
    import zamba_compat

    os.environ["ZAMBA_COMPAT_DISABLE"] = name  # "" is none; for the processes that a test starts
    zamba_compat.configure(disable=name)

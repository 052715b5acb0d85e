"""Run the conformance suite under each release, a few at a time, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import overlays

from . import results
from .results import Mode, Result

TOOLS = Path(__file__).resolve().parents[1]
BYTECODE = TOOLS.parent / "build" / "bytecode"
SHOWN = 10  # failures printed per release; the log has all


@dataclass
class Plan:
    """How to run.

    Attributes:
        mode: "import" tests with zamba_compat, "stock" without it.
        suite: the folder of tests, and `cwd` where pytest runs. only: files of it; all of it if there are none.
        reports: gets RELEASE.log and RELEASE.jsonl.
        jobs: runs at a time. threads: OMP_NUM_THREADS of each.
        timeout: seconds after which a run is ended and counted as broken.
        keep_going: start further releases after one has failed.
        arguments: more arguments for pytest.
    """

    mode: Mode
    suite: Path
    cwd: Path
    reports: Path
    jobs: int = 2
    threads: int = 1
    timeout: float = 1800.0
    keep_going: bool = False
    arguments: Sequence[str] = ()
    only: Sequence[Path] = ()
    setup: Callable[[str], tuple[Path, ...]] = overlays.overlay
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def record(self, release: str) -> Path:
        return self.reports / f"{release}.jsonl"

    def log(self, release: str) -> Path:
        return self.reports / f"{release}.log"


def environment(plan: Plan, paths: Sequence[Path]) -> dict[str, str]:
    """The environment of one run: the release first on the path, no setting of this package or of pytest.

    Bytecode is kept: compiling torch and a release anew would take a third of a run.
    """
    env = {
        name: value
        for name, value in overlays.environment(paths, TOOLS).items()
        if not name.startswith(("ZAMBA_COMPAT_", "PYTEST_")) and name != "PYTHONDONTWRITEBYTECODE"
    }
    env["PYTHONPYCACHEPREFIX"] = str(BYTECODE)
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    env["OMP_NUM_THREADS"] = str(plan.threads)
    if plan.mode == "stock":
        env["ZAMBA_COMPAT_TEST_STOCK"] = "1"
    return env


def run_one(plan: Plan, release: str) -> Result | None:
    """The result of one release; None if the plan was stopped before it began."""
    if plan._stop.is_set():
        return None
    plan.record(release).unlink(missing_ok=True)
    start = time.monotonic()
    try:
        paths = plan.setup(release)
    except overlays.OverlayError as error:
        result = Result(release, broke=str(error), seconds=time.monotonic() - start)
    else:
        result = execute(plan, release, paths)
    if not result.ok and not plan.keep_going:
        plan._stop.set()
    return result


def execute(plan: Plan, release: str, paths: Sequence[Path]) -> Result:
    """Run the suite with these folders on the path, and read what was recorded."""
    command = [
        sys.executable, "-m", "pytest", *map(str, plan.only or [plan.suite]), "-q", "-p", "no:cacheprovider",
        "-p", "_matrix.recorder", "--record", str(plan.record(release)), "--expect-transformers", release,
        *plan.arguments,
    ]  # fmt: skip
    start = time.monotonic()
    with plan.log(release).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=plan.cwd, env=environment(plan, paths), stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        plan._running[release] = process
        try:
            status: int | None = process.wait(plan.timeout)
        except subprocess.TimeoutExpired:
            end(process)
            status = None
        finally:
            del plan._running[release]
    seconds = time.monotonic() - start
    result = results.read(release, plan.record(release), status=status, seconds=seconds)
    return result if status is not None else replace(result, broke=f"ended after {plan.timeout:.0f} s")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a run and whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(plan: Plan, releases: Sequence[str]) -> list[Result]:
    """Run the suite under each release and say how it goes; the results are in the order given.

    Without `keep_going`, releases that had not begun when one failed are missing from the results.
    """
    plan.reports.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(plan.jobs) as pool:
        waiting: set[Future[Result | None]] = {pool.submit(run_one, plan, release) for release in releases}
        found: dict[str, Result] = {}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    if result is not None:
                        found[result.release] = result
                        clear()
                        tell(plan, result)
                show(plan, len(found), len(releases))
        except BaseException:
            plan._stop.set()
            for process in list(plan._running.values()):
                end(process)
            raise
        finally:
            clear()
    return [found[release] for release in releases if release in found]


def tell(plan: Plan, result: Result) -> None:
    """One line for a release that is done, and the first failures."""
    print(result.line(), flush=True)
    for test in result.failures[:SHOWN]:
        print(f"    {test}\n        {result.messages.get(test, '')}")
    if len(result.failures) > SHOWN:
        print(f"    and {len(result.failures) - SHOWN} more")
    if not result.ok and plan.log(result.release).exists():
        print(f"    log: {plan.log(result.release)}", flush=True)


def show(plan: Plan, done: int, total: int) -> None:
    """The progress line, on a terminal only."""
    if not sys.stdout.isatty():
        return
    parts = [f"{done}/{total} releases"]
    for release in list(plan._running):
        at, of = results.progress(plan.record(release))
        parts.append(f"{release} {at}/{of or '?'}")
    print("\r\x1b[K" + "  ".join(parts), end="", flush=True)


def clear() -> None:
    if sys.stdout.isatty():
        print("\r\x1b[K", end="", flush=True)

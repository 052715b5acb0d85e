"""Judge a release: every scenario in one process, and what was said where its result is wrong.

Run as a program, this reads tasks from standard input and forks a process for each; `Judge` is its other end.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

Verdict = Literal["right", "refused", "warned", "failed", "silent"]
ROOT = Path(__file__).resolve().parents[2]
GROUPS = (
    "config", "tying", "saving", "loading", "placement", "quantization", "numbers", "speed", "finetuning", "merging",
)  # fmt: skip
TIME_LIMIT = 600  # seconds for one release
FINE = ("applied", "armed", "not needed")


class Cell(NamedTuple):
    """What became of one scenario.

    Attributes:
        verdict: "right"; "refused", an error that speaks of the release; "warned", a wrong result or another error,
            after a warning of zamba_compat that names one of the scenario's groups; without such a warning, "failed"
            for an error that says nothing of the release, and "silent" for a wrong result.
        detail: the error, or what is wrong.
        groups: those named by the error, or by the warnings.
    """

    scenario: str
    verdict: Verdict
    detail: str = ""
    groups: tuple[str, ...] = ()


def named_groups(text: str) -> tuple[str, ...]:
    """The groups of adapters that a message speaks of: "group loading"."""
    return tuple(group for group in GROUPS if re.search(rf"\bgroup {group}\b", text))


class Died(Exception):
    """The process of a release ended before all its scenarios were run."""


class Judge:
    """Runs scenarios under releases, each in a process of its own.

    They are forks of one that has imported what no release changes, which takes twice as long as the rest. To be used
    as a context manager.
    """

    def __init__(self) -> None:
        env = {name: text for name, text in os.environ.items() if not name.startswith(("ZAMBA_COMPAT_", "PYTEST_"))}
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tools")))
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            env={**env, **quiet, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *details: object) -> None:
        self._process.communicate()
        self._errors.close()

    def __call__(
        self, paths: Sequence[Path], scenarios: Sequence[str] = (), settings: Mapping[str, str] | None = None
    ) -> tuple[list[Cell], dict[str, Any]]:
        """The cells of scenarios, by default all, and doctor's report with the release in `paths`.

        settings: environment variables of the release's process.
        Raises Died, with the last words.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        task = {"paths": [str(path) for path in paths], "scenarios": list(scenarios), "settings": dict(settings or {})}
        print(json.dumps(task), file=self._process.stdin, flush=True)
        cells: list[Cell] = []
        for line in self._process.stdout:
            told = json.loads(line)
            if "doctor" in told:
                return cells, told["doctor"]
            if "status" in told:
                break
            cells.append(Cell(**{**told, "groups": tuple(told["groups"])}))
        self._errors.seek(0)
        raise Died(f"after {len(cells)} scenarios: {self._errors.read()[-3000:]}")


class _Heard(logging.Handler):
    """The warnings of zamba_compat since the process began: each is given once, whoever needs it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "zamba_compat":
            self.messages.append(record.getMessage())


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of: lazily importing modules wrap what an import raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_refusal(error: BaseException) -> bool:
    """By name: without the import there is nothing to compare with."""
    return bool({"AdapterError", "UnverifiedReleaseError"} & {kind.__name__ for kind in type(error).__mro__})


def observed(name: str, heard: _Heard) -> Cell:
    """One scenario, run here."""
    from unreleased.scenarios import SCENARIOS, Wrong

    scenario = SCENARIOS[name]
    try:
        with tempfile.TemporaryDirectory() as folder:
            scenario.run(Path(folder))
    except Exception as error:
        ours = next((e for e in causes(error) if is_refusal(e)), None)
        if ours is not None:
            return Cell(name, "refused", str(ours), named_groups(str(ours)))
        said = named_groups("\n".join(heard.messages))
        detail = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"[:600]
        if set(said) & set(scenario.groups):
            return Cell(name, "warned", detail, said)
        return Cell(name, "silent" if isinstance(error, Wrong) else "failed", detail, said)
    return Cell(name, "right")


def doctor() -> dict[str, Any]:
    """What `zamba-compat doctor --json` says in this process, its exit status, and what is not right with adapters."""
    from zamba_compat.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["doctor", "--json"])
    report = json.loads(said.getvalue()) if status in (0, 1) else {}
    off = {a["name"]: a["reason"] for a in report.get("adapters", ()) if a["state"] not in FINE}
    verdict = next((v for v in report.get("verdicts", ()) if v["library"] == "transformers"), {})
    told = {"ok": report.get("ok"), "faults": report.get("faults"), "verdict": verdict.get("sentence", "")}
    return {**told, "changed": verdict.get("changed", []), "status": status, "off": off}


def run(task: dict[str, Any]) -> None:
    """Judge one release in this process, a line of JSON for each scenario and one for doctor."""
    signal.alarm(TIME_LIMIT)
    sys.path[:0] = task["paths"]
    os.environ.update(task["settings"])
    heard = _Heard()
    logging.getLogger("zamba_compat").addHandler(heard)
    if os.environ.get("ZAMBA_COMPAT_TEST_STOCK") != "1":
        import zamba_compat  # noqa: F401
    from unreleased.scenarios import SCENARIOS

    for name in task["scenarios"] or SCENARIOS:
        print(json.dumps(observed(name, heard)._asdict()), flush=True)
    print(json.dumps({"doctor": {**doctor(), "warnings": heard.messages}}), flush=True)


def main() -> None:
    """Read tasks, and fork for each. A fork that dies is told by its exit status."""
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401

    assert not {"transformers", "zamba_compat"} & sys.modules.keys()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run(json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    main()

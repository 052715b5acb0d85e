"""Judge one release: every scenario in one process, and what was said where the result is wrong.

    python tests/unreleased/judge.py [SCENARIO ...]

prints a line of JSON for each, and one for `zamba-compat doctor --json`. `judge` runs that under a release.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

Verdict = Literal["right", "refused", "warned", "failed", "silent"]
ROOT = Path(__file__).resolve().parents[2]
GROUPS = (
    "config", "tying", "saving", "loading", "placement", "quantization", "numbers", "speed", "finetuning", "merging",
)  # fmt: skip
DOCTOR = "doctor"
FINE = ("applied", "armed", "not needed")


class Cell(NamedTuple):
    """What became of one scenario.

    Attributes:
        verdict: "right"; "refused", an AdapterError; "warned", a wrong result after a warning of zamba_compat that
            names one of the scenario's groups; "failed", an error that is not ours to explain the release; "silent",
            a wrong result without either.
        detail: the error, or what is wrong.
        groups: those named by the error, or by the warnings.
    """

    scenario: str
    verdict: Verdict
    detail: str = ""
    groups: tuple[str, ...] = ()


def named_groups(text: str) -> tuple[str, ...]:
    return tuple(group for group in GROUPS if re.search(rf"\b{group}\b", text))


def environment(paths: Sequence[Path], settings: dict[str, str]) -> dict[str, str]:
    """This process's environment with a release first on the path, and only these settings of zamba_compat."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ZAMBA_COMPAT_", "PYTEST_"))}
    path = os.pathsep.join(map(str, [*paths, ROOT, ROOT / "tests", ROOT / "tools"]))
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    return {**env, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **quiet, **settings, "PYTHONPATH": path}


def judge(
    paths: Sequence[Path],
    scenarios: Iterable[str] = (),
    *,
    settings: dict[str, str] | None = None,
    timeout: float = 600,
) -> tuple[list[Cell], dict[str, Any]]:
    """Run scenarios, by default all, with a release on the path; their cells, and doctor's report.

    Raises:
        RuntimeError: the process ended before all was run; with its last words.
    """
    command = [sys.executable, str(Path(__file__).resolve()), *scenarios]
    done = subprocess.run(
        command, env=environment(paths, settings or {}), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines or DOCTOR not in lines[-1]:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    return [Cell(**{**line, "groups": tuple(line["groups"])}) for line in lines[:-1]], lines[-1][DOCTOR]


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


def observed(name: str, heard: _Heard) -> Cell:
    """One scenario, run here."""
    try:
        from unreleased.scenarios import SCENARIOS, Wrong

        scenario = SCENARIOS[name]
        with tempfile.TemporaryDirectory() as folder:
            scenario.run(Path(folder))
    except Exception as error:
        from zamba_compat.errors import AdapterError

        ours = next((e for e in causes(error) if isinstance(e, AdapterError)), None)
        if ours is not None:
            return Cell(name, "refused", str(ours), named_groups(str(ours)))
        if not isinstance(error, Wrong):
            return Cell(name, "failed", f"{type(error).__name__}: {error}".strip()[:600])
        said = named_groups("\n".join(heard.messages))
        return Cell(name, "warned" if set(said) & set(scenario.groups) else "silent", str(error), said)
    return Cell(name, "right")


def doctor() -> dict[str, Any]:
    """What `zamba-compat doctor --json` says in this process, its exit status, and what is not right with adapters."""
    from zamba_compat.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["doctor", "--json"])
    report = json.loads(said.getvalue()) if status in (0, 1) else {}
    off = {a["name"]: a["reason"] for a in report.get("adapters", ()) if a["state"] not in FINE}
    return {**{key: report.get(key) for key in ("ok", "verdict", "faults")}, "status": status, "off": off}


def main(names: Sequence[str]) -> int:
    heard = _Heard()
    logging.getLogger("zamba_compat").addHandler(heard)
    if os.environ.get("ZAMBA_COMPAT_TEST_STOCK") != "1":
        import zamba_compat  # noqa: F401
    from unreleased.scenarios import SCENARIOS

    for name in names or SCENARIOS:
        print(json.dumps(observed(name, heard)._asdict()), flush=True)
    print(json.dumps({DOCTOR: {**doctor(), "warnings": heard.messages}}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

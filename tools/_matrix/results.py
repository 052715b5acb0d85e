"""What came out of a run: read from its record, counted, and kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version

Mode = Literal["import", "stock"]

# Among the records of one test (call and teardown, say) the worst counts.
WORST_FIRST = ("failed", "unexpected", "xfailed", "xpassed", "skipped", "passed")

COUNTED = ("passed", "failed", "skipped")  # in the support file


@dataclass(frozen=True)
class Result:
    """The outcome of one run of the suite.

    Attributes:
        release: the transformers release it ran with, or the name of another run.
        outcomes: node id of each test -> passed, failed, unexpected, skipped, xfailed or xpassed.
        messages: node id of each failure -> why.
        broke: why the run as a whole cannot be relied on, None if it can.
        seconds: wall time.
    """

    release: str
    outcomes: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    broke: str | None = None
    seconds: float = 0.0

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.outcomes.values())

    @property
    def failures(self) -> list[str]:
        """The tests that failed, or passed where a failure is expected."""
        return sorted(test for test, what in self.outcomes.items() if what in ("failed", "unexpected"))

    @property
    def wrong(self) -> list[str]:
        """The tests that what was tested does not satisfy, expected or not."""
        return sorted(test for test, what in self.outcomes.items() if what in ("failed", "xfailed"))

    @property
    def ok(self) -> bool:
        return self.broke is None and not self.failures

    def line(self) -> str:
        """The summary, in pytest's words."""
        counts = self.counts
        words = [f"{counts['passed'] + counts['xpassed']} passed", f"{len(self.failures)} failed"]
        words += [f"{counts[what]} {what}" for what in ("skipped", "xfailed") if counts[what]]
        text = f"{self.release:<8} {', '.join(words)} in {self.seconds:.0f} s"
        return text if self.broke is None else f"{text}: {self.broke}"

    def as_dict(self) -> dict[str, Any]:
        """What is worth keeping: no times, so that a run that says the same writes the same."""
        counts = self.counts
        wrong = self.wrong
        entry: dict[str, Any] = {
            "passed": counts["passed"] + counts["xpassed"] + counts["unexpected"],
            "failed": len(wrong),
            "skipped": counts["skipped"],
        }
        return entry if self.broke is None else {**entry, "broke": self.broke}


def progress(path: Path) -> tuple[int, int]:
    """How many tests of a run in progress are done, and how many it has."""
    done, collected = set(), 0
    for entry in entries(path):
        if "test" in entry:
            done.add(entry["test"])
        collected = entry.get("collected", collected)
    return len(done), collected


def entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a record; a last line that is still being written is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def read(release: str, path: Path, *, status: int | None = None, seconds: float = 0.0) -> Result:
    """The result that a record holds. `status` is the exit status of the process that wrote it, if known."""
    outcomes: dict[str, str] = {}
    messages: dict[str, str] = {}
    finished: int | None = None
    for entry in entries(path):
        finished = entry.get("finished", finished)
        if "test" not in entry:
            continue
        test, what = entry["test"], entry["outcome"]
        before = outcomes.get(test, what)
        outcomes[test] = min(before, what, key=WORST_FIRST.index)
        if "message" in entry:
            messages.setdefault(test, entry["message"])
    result = Result(release, outcomes, messages, None, seconds)
    return Result(release, outcomes, messages, _broke(result, finished, status), seconds)


def _broke(result: Result, finished: int | None, status: int | None) -> str | None:
    if finished is None:
        how = "" if status is None else f" (exit status {status})"
        return f"died before its end{how}"
    if not result.outcomes or set(result.outcomes.values()) == {"skipped"}:
        return "ran no test"
    if finished not in (0, 1) or (finished == 1 and not result.failures):
        return f"pytest ended with exit status {finished}"
    return None


def merge(
    path: Path, mode: Mode, results: Iterable[Result], built_with: Mapping[str, str], *, more: bool = False
) -> dict[str, Any]:
    """Put results into the support file; what it says of other releases and of the other mode stays.

    more: they are of tests that the file does not have yet, and are added to what it says.
    """
    support: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    releases: dict[str, Any] = support.get("releases", {})
    for result in results:
        entry, before = result.as_dict(), releases.setdefault(result.release, {}).get(mode, {})
        if more:
            entry = {**before, **entry, **{what: entry[what] + before.get(what, 0) for what in COUNTED}}
        releases[result.release][mode] = entry
    support = {"environment": dict(built_with), "releases": dict(sorted(releases.items(), key=_by_version))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(support, indent=1) + "\n", encoding="utf-8")
    return support


def _by_version(item: tuple[str, Any]) -> Version:
    return Version(item[0])

"""Write docs/upstream.md: a report ready to file for every defect of which no upstream report is known.

    python tools/upstream_reports.py

What it says stands in tests/upstream/reports.yaml, the reproductions beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "upstream"
DOCUMENT = ROOT / "docs" / "upstream.md"

HEAD = """# Reports for upstream

<!-- made by tools/upstream_reports.py from tests/upstream; do not edit -->

One section for each defect of which no upstream report is known, ready to file. A reproduction is a file of at most 25
lines in tests/upstream/ that needs nothing of this package, and ends with a status other than 0 where the defect is; a
test runs those that the installed releases should show. When upstream fixes one, its adapter gets a `fixed=`.
"""


def reports() -> list[dict[str, Any]]:
    """Every report, as reports.yaml has it."""
    return [entry for entry in _entries() if "pending" not in entry]


def pending() -> list[str]:
    """Adapters whose report is still to be written."""
    return [name for entry in _entries() for name in entry.get("pending", ())]


def _entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((FOLDER / "reports.yaml").read_text(encoding="utf-8"))
    return found


def affected(report: dict[str, Any]) -> str:
    """The releases that have a defect, in words."""
    until = f", before {report['fixed']}" if report["fixed"] else ", not fixed yet"
    return f"{report['library']} from {report['since']} on{until}"


def section(report: dict[str, Any]) -> str:
    """A report as Markdown."""
    code = (FOLDER / f"{report['file']}.py").read_text(encoding="utf-8").rstrip()
    lines = [f"## {report['title']}", "", f"**Affected**: {affected(report)}."]
    if report.get("machine"):
        lines[-1] += f" Machine: {report['machine']}."
    if report.get("shown_from"):
        lines[-1] += (
            f" The reproduction is for transformers from {report['shown_from']} on; before, saving fails first."
        )
    lines += ["", f"**Cause**: {report['cause']}", "", f"**Proposed fix**: {report['fix']}", ""]
    lines += [f"**Reproduction** (tests/upstream/{report['file']}.py):", "", "```python", code, "```", ""]
    return "\n".join([*lines, f"Adapters: {', '.join(f'`{name}`' for name in report['adapters'])}.", ""])


def document() -> str:
    """All of docs/upstream.md."""
    found = reports()
    contents = "\n".join(f"- {one['library']}: {one['title']}" for one in found)
    rest = f"To be written: {', '.join(f'`{name}`' for name in pending())}.\n" if pending() else ""
    return "\n".join([HEAD, contents, "", rest, *map(section, found)])


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")

"""Reports for upstream: one for every defect of which none is known, and reproductions that reproduce."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from zamba_compat.patches import ADAPTERS

import upstream_reports

HERE = Path(__file__).parent
REPORTS = upstream_reports.reports()
LINES = 25  # of a reproduction, empty ones not counted


def installed(library: str) -> Version | None:
    try:
        return Version(version(library))
    except PackageNotFoundError:
        return None


def run(file: str) -> subprocess.CompletedProcess[str]:
    """Without this package, of which stock libraries know nothing."""
    releases = os.pathsep.join(path for path in sys.path if ".overlays" in Path(path).parts)
    environment = {**os.environ, "PYTHONPATH": releases, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(HERE / f"{file}.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def has_defect(report: dict[str, Any]) -> bool:
    """Whether the release that is installed should show it."""
    here = installed(report["library"])
    if here is None or here < Version(report["since"]):
        return False
    return report["fixed"] is None or here < Version(report["fixed"])


def test_every_adapter_without_an_upstream_report_has_one_here() -> None:
    listed = [name for report in REPORTS for name in report["adapters"]]
    listed += upstream_reports.pending()
    assert sorted(listed) == sorted(adapter.name for adapter in ADAPTERS if "none known" in adapter.upstream)


def test_the_document_is_the_reports() -> None:
    assert upstream_reports.DOCUMENT.read_text(encoding="utf-8") == upstream_reports.document(), (
        "run: python tools/upstream_reports.py"
    )


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report["file"])
def test_a_report_is_whole(report: dict[str, Any]) -> None:
    mine = [adapter for adapter in ADAPTERS if adapter.name in report["adapters"]]
    assert report["library"] in {"torch", *(adapter.library for adapter in mine)}
    if report["library"] != "torch":
        assert min(Version(adapter.since) for adapter in mine) <= Version(report["since"])
        ends = [adapter.fixed for adapter in mine]
        assert report["fixed"] is None or (None not in ends and Version(report["fixed"]) in map(Version, ends))
        assert report["fixed"] is not None or None in ends
    assert all(report[key].strip() for key in ("title", "cause", "fix")) and len(report["title"]) < 120
    code = (HERE / f"{report['file']}.py").read_text(encoding="utf-8")
    assert len([line for line in code.splitlines() if line.strip()]) <= LINES
    assert "zamba_compat" not in code
    compile(code, report["file"], "exec")


def test_every_reproduction_belongs_to_a_report() -> None:
    text = (HERE / "reports.yaml").read_text(encoding="utf-8")
    for path in HERE.glob("*.py"):
        assert path.name.startswith("test_") or f"{path.stem}" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "report", [report for report in REPORTS if not report.get("machine")], ids=lambda report: report["file"]
)
def test_reproduced(report: dict[str, Any]) -> None:
    """On the releases that have the defect it shows; where it is fixed it does not."""
    here = installed(report["library"])
    if here is None or here < Version(report["since"]):
        pytest.skip(f"{report['library']} is {here}")
    transformers = installed("transformers")
    if transformers is None or transformers < Version(report.get("shown_from", "0")):
        pytest.skip(f"it is for transformers from {report['shown_from']} on")
    done = run(report["file"])
    if "ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr:
        assert report["fixed"] is not None, done.stderr  # what it is about is gone
        return
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode == 1) == has_defect(report), done.stdout + done.stderr

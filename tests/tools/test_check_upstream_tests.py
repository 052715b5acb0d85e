"""The runner of transformers' own tests, on an invented checkout: what the import changes is told, and judged."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

import check_upstream_tests
from _matrix.results import Result
from check_upstream_tests import UpstreamTestsError, check, compare, is_tagged, unpack

HERE = version("transformers")
TESTS = {
    "tests/models/zamba/test_modeling_zamba.py": """
import sys
import unittest
from ...common import Common

class ZambaTest(Common, unittest.TestCase):
    def test_changes_nothing(self): pass
    def test_only_stock(self): assert "zamba_compat" not in sys.modules, "armed"
    def test_only_armed(self): assert "zamba_compat" in sys.modules, "stock"
""",
    "tests/models/zamba2/test_modeling_zamba2.py": """
import sys
import unittest
from ...common import Common

class Zamba2Test(Common, unittest.TestCase):
    def test_model_weights_reload_no_missing_tied_weights(self):
        if "zamba_compat" in sys.modules:
            from zamba_compat.errors import MissingTensorError
            raise MissingTensorError("stored nowhere", where="here", remedy="none")
""",
    "tests/common.py": """
import unittest

class Common:
    @unittest.skip("slow")
    def test_skipped(self): pass
    def test_wrong_either_way(self): assert False
""",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone with a tag, whose branch has gone on since."""
    folder = tmp_path / "clone"
    for name, text in TESTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for package in ("tests", "tests/models", "tests/models/zamba", "tests/models/zamba2"):
        (folder / package / "__init__.py").touch()
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "tests")
    git(folder, "tag", f"v{HERE}")
    (folder / "tests/models/zamba2/test_modeling_zamba2.py").write_text("def test_later(): pass\n")
    git(folder, "commit", "-q", "-a", "-m", "later")
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True)


def options(*releases: str, reports: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(releases=list(releases), only="", reports=reports)


def no_overlay(release: str) -> Sequence[Path]:
    return ()


def test_what_differs_is_told(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(checkout, HERE, options(HERE, reports=tmp_path / "reports"), no_overlay)
    worse, better, refused = (
        next(d for d in found if d.test.endswith(name))
        for name in ("test_only_stock", "test_only_armed", "test_model_weights_reload_no_missing_tied_weights")
    )
    assert len(found) == 3 and found[0] is worse
    assert (worse.stock, worse.armed, worse.is_fault) == ("passed", "failed", True)
    assert (better.stock, better.armed, better.is_worse) == ("failed", "passed", False)
    assert (refused.stock, refused.armed, refused.is_worse, refused.is_fault) == ("passed", "failed", True, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{HERE} stock: 3 passed, 3 failed, 2 skipped; with the import: 2 passed, 4 failed, 2 skipped"
    assert lines[1].startswith("  FAULT passed -> failed: tests/models/zamba/") and "armed" in lines[1]
    assert any(line.startswith("  meant passed -> failed") and "random weights are refused" in line for line in lines)
    assert (tmp_path / "reports" / f"{HERE}-armed.log").read_text().count("test_only_stock")


def test_refused_for_another_reason() -> None:
    name = "tests/a.py::A::test_model_weights_reload_no_missing_tied_weights"
    stock = Result(HERE, {name: "passed"})
    meant = Result(HERE, {name: "failed"}, {name: "zamba_compat.errors.MissingTensorError: stored nowhere"})
    other = Result(HERE, {name: "failed"}, {name: "KeyError: 'weight'"})
    assert [d.is_fault for d in compare(stock, meant)] == [False]
    assert [d.is_fault for d in compare(stock, other)] == [True]
    assert [d.is_fault for d in compare(stock, Result(HERE, {}))] == [True]  # it did not run
    assert compare(stock, stock) == []


def test_exit_status(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_upstream_tests, "check", lambda *_: compare(Result(HERE, {"a": "passed"}), Result(HERE)))
    assert check_upstream_tests.main([str(checkout), "--releases", HERE]) == 1
    monkeypatch.setattr(check_upstream_tests, "check", lambda *_: [])
    assert check_upstream_tests.main([str(checkout), "--releases", HERE]) == 0


def test_the_tests_of_the_tag(checkout: Path, tmp_path: Path) -> None:
    package = check_upstream_tests.installed_package(())
    folder = unpack(checkout, HERE, tmp_path / "unpacked", package)
    assert (folder / "src/transformers/models/zamba2").is_dir()
    text = (folder / "tests/models/zamba2/test_modeling_zamba2.py").read_text()
    assert "MissingTensorError" in text and folder == tmp_path / "unpacked"
    assert is_tagged(checkout, HERE, only_one=False)
    assert not is_tagged(checkout, "0.1.0", only_one=True)  # as it lies


def test_nothing_to_run(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UpstreamTestsError, match=r"no tag v0.1.0; the folder as it lies can be one release's only"):
        is_tagged(checkout, "0.1.0", only_one=False)
    with pytest.raises(UpstreamTestsError, match=r"neither a tag v0.1.0 nor tests/models/zamba2"):
        is_tagged(tmp_path, "0.1.0", only_one=True)
    assert check_upstream_tests.main([str(tmp_path), "--releases", "0.1.0"]) == 2
    assert "Fetch the tag" in capsys.readouterr().err


def test_a_run_that_breaks_off(checkout: Path, tmp_path: Path) -> None:
    (checkout / "tests/common.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(UpstreamTestsError, match="died before its end"):
        check(checkout, "0.1.0", options("0.1.0"), no_overlay)
    git(checkout, "checkout", "-q", ".")
    with pytest.raises(UpstreamTestsError, match=f"transformers {HERE} is on the path, not 0.1.0"):
        check(checkout, "0.1.0", options("0.1.0"), no_overlay)

"""The workflows: what they run is what a person runs, and their scripts do what they are for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from zamba_compat import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def steps(name: str) -> list[dict[str, Any]]:
    found = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    return [step for job in found["jobs"].values() for step in job["steps"]]


def script(name: str, step: str) -> str:
    (found,) = (one["run"] for one in steps(name) if one.get("name") == step)
    return str(found)


def test_what_they_run() -> None:
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "next-release.yml", "release.yml"}
    assert [step["run"] for step in steps("ci.yml") if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    words = yaml.safe_load((ROOT / ".github" / "workflows" / "next-release.yml").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d+ \d+ \* \* \*", words[True]["schedule"][0]["cron"])  # YAML reads `on` as true
    assert 'make next-release VERSION="$VERSION"' in script("next-release.yml", "Take it in")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert script("release.yml", "Build") == "make wheel"
    assert {"setup", "next-release", "wheel"} <= set(targets)


@bash
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_scripts_are_bash(path: Path) -> None:
    for step in steps(path.name):
        if "run" in step:
            assert "${{" not in step["run"]  # what others write reaches a script as a variable only
            subprocess.run(["bash", "-n", "-c", step["run"]], check=True)


@bash
@pytest.mark.parametrize(("tag", "status"), [("v{}", 0), ("v{}.1", 1), ("v9{}", 1), ("{}0", 1)])
def test_only_the_tag_of_this_version_is_released(tag: str, status: int) -> None:
    words = script("release.yml", "Check that the tag is the version")
    done = subprocess.run(["bash", "-e", "-c", words], cwd=ROOT, env={**os.environ, "TAG": tag.format(__version__)})
    assert done.returncode == status


@bash
@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.parametrize(
    ("asked", "changes", "is_new"), [("4.57.6", "", False), ("99.0.0", "", True), ("99.0.0", "7", False)]
)
def test_only_a_new_release_is_taken_in(asked: str, changes: str, is_new: bool, tmp_path: Path) -> None:
    assert "4.57.6" in json.loads((ROOT / "patches" / "verified.json").read_text())["transformers"]["releases"]
    (tmp_path / "gh").write_text(f"#!/bin/sh\necho '{changes}' | sed '/^$/d'\n")
    (tmp_path / "gh").chmod(0o755)
    output = tmp_path / "output"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": asked, "GITHUB_OUTPUT": str(output)}
    words = script("next-release.yml", "Which release is newest")
    subprocess.run(["bash", "-e", "-c", words], env=environment, cwd=ROOT, check=True)
    assert f"new={'true' if is_new else 'false'}\n" in output.read_text()
    assert f"version={asked}\n" in output.read_text()


@bash
@pytest.mark.parametrize("status", ["0", "1"])
def test_a_change_with_the_table(status: str, tmp_path: Path) -> None:
    """In a repository of its own, with a gh that only writes down what it is told."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "build").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "docs" / "support.md").write_text(
        "x\n<!-- support-table:begin -->\n| 99.0.0 | all |\n<!-- support-table:end -->\ny\n"
    )
    (tmp_path / "build" / "next-release.txt").write_text("what was printed\n")
    (tmp_path / "bin" / "gh").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > build/told\n')
    (tmp_path / "bin" / "gh").chmod(0o755)

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet", "--initial-branch", "main")
    git("init", "--quiet", "--bare", str(tmp_path / "origin"))
    git("remote", "add", "origin", str(tmp_path / "origin"))
    (tmp_path / ".git" / "info" / "exclude").write_text("build\nbin\norigin\n")
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), "STATUS": status}
    environment |= {"VERSION": "99.0.0", "BRANCH": "transformers-99.0.0"}
    words = script("next-release.yml", "Open a change")
    subprocess.run(["bash", "-e", "-c", words], env=environment, cwd=tmp_path, check=True, capture_output=True)
    body = (tmp_path / "build" / "body.md").read_text()
    assert "| 99.0.0 | all |" in body and "what was printed" in body and f"status {status}" in body
    told = (tmp_path / "build" / "told").read_text().splitlines()
    assert told[:2] == ["pr", "create"] and ("--draft" in told) == (status == "1")
    assert "docs/support.md" in git("show", "--stat", "origin/transformers-99.0.0")


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed; CI runs it")
def test_actionlint() -> None:
    subprocess.run(["actionlint", *map(str, WORKFLOWS)], check=True)

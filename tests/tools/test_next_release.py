"""Taking a release in: what is written when all is green, what is said when it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fingerprints
import next_release
from _matrix import results


def test_a_release_goes_where_its_minor_line_is() -> None:
    text = 'RELEASES = (\n    "4.57.6", "5.0.0", "5.1.0",\n)  # fmt: skip\nrest\n'
    assert '"5.1.2",\n)  # fmt: skip\nrest\n' in next_release.with_release(text, "5.1.2")
    assert "5.1.0" not in next_release.with_release(text, "5.1.2")
    assert '"4.57.6", "4.58.0", "5.0.0", "5.1.0",' in next_release.with_release(text, "4.58.0")
    assert next_release.with_release(text, "5.0.0") == text


def test_the_record_keeps_what_changed_only() -> None:
    first = fingerprints.added({}, "lib", {"1.0": {"m:f": "a", "m:g": None}, "1.2": {"m:f": "a", "m:g": "x"}})
    assert first == {
        "lib": {"releases": ["1.0", "1.2"], "fingerprints": {"m:f": {"1.0": "a"}, "m:g": {"1.0": None, "1.2": "x"}}}
    }
    between = fingerprints.added(first, "lib", {"1.1": {"m:f": "b", "m:g": None}})
    assert between["lib"]["fingerprints"] == {
        "m:f": {"1.0": "a", "1.1": "b", "1.2": "a"},
        "m:g": {"1.0": None, "1.2": "x"},
    }
    assert fingerprints.at(between["lib"], "1.1") == {"m:f": "b", "m:g": None}
    assert fingerprints.at(between["lib"], "1.2") == {"m:f": "a", "m:g": "x"}


class Runs:
    """Stands in for the two runs of the suite: what each finds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.commands: list[list[str]] = []
        outcomes = {"import": "passed", "stock": "xfailed"}
        self.found = {mode: results.Result("9.9.0", {"a": outcome}) for mode, outcome in outcomes.items()}
        monkeypatch.setattr(next_release, "changes", lambda last, release: {"m:f": "- old\n+ new\n"})
        monkeypatch.setattr(next_release, "folder", lambda release: str(tmp_path))
        monkeypatch.setattr(next_release.subprocess, "run", self.run)
        monkeypatch.setattr(next_release.results, "read", lambda release, path: self.found[path.parent.name])

    def run(self, command: list[str], **options: Any) -> Any:
        self.commands.append(command)
        return type("Done", (), {"returncode": 0})


def test_green_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    Runs(monkeypatch, tmp_path)
    listed = tmp_path / "releases.py"
    listed.write_text('RELEASES = (\n    "5.23.0",\n)\n')
    added: list[list[str]] = []
    monkeypatch.setattr(next_release, "RELEASES", listed)
    monkeypatch.setattr(next_release, "ROOT", tmp_path)
    monkeypatch.setattr(next_release.fingerprints, "main", lambda arguments: added.append(arguments))
    assert next_release.main(["9.9.0"]) == 0
    assert added == [["transformers", f"9.9.0={tmp_path}"]]
    assert '"5.23.0", "9.9.0"' in listed.read_text()
    assert "both runs are green; written: patches/verified.json" in capsys.readouterr().out


def test_red_says_what_to_touch_and_writes_no_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    runs = Runs(monkeypatch, tmp_path)
    runs.found["import"] = results.Result("9.9.0", {"conformance/t.py::x": "failed"}, {"conformance/t.py::x": "1 off"})
    runs.found["stock"] = results.Result("9.9.0", {"conformance/t.py::y": "unexpected"})
    monkeypatch.setattr(next_release, "write", lambda release: pytest.fail("written all the same"))
    assert next_release.main(["9.9.0"]) == 1
    out = capsys.readouterr().out
    assert "import: t.py::x fails (1 off)" in out
    assert "stock: t.py::y passes without an adapter: the defect is mended, set `fixed`" in out
    assert "m:f: " in out


def test_what_is_no_version_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as caught:
        next_release.main(["newest"])
    assert caught.value.code == 2


def test_the_last_verified_release_is_the_newest_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = tmp_path / "verified.json"
    record.write_text(json.dumps({"transformers": {"releases": ["5.9.0", "5.10.4", "5.24.0"], "fingerprints": {}}}))
    monkeypatch.setattr(fingerprints, "RECORD", record)
    assert next_release.last_verified("5.24.0") == "5.10.4"
    assert next_release.last_verified("6.0") == "5.24.0"


def test_a_target_names_its_adapters() -> None:
    target = "transformers.models.zamba2.modeling_zamba2:Zamba2Model.get_expanded_tied_weights_keys"
    assert next_release.concerned(target) == ["zamba2-tie-map"]

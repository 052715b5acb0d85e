"""The release matrix: every outcome is counted, kept and shown; no failure is lost before the table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import pytest

import matrix
import overlays
from _matrix import results, runner, table
from _matrix.releases import RELEASES
from _matrix.results import Result

ROOT = Path(__file__).resolve().parents[2]
HERE = version("transformers")

SUITE = """
import os
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2, "one is not two"
@pytest.mark.skip(reason="no")
def test_skipped(): pass
@pytest.mark.xfail
def test_known(): assert False
@pytest.mark.xfail(strict=True)
def test_mended(): pass
@pytest.mark.parametrize("n", [0, 1])
def test_many(n): pass
@pytest.fixture
def broken(): raise OSError("no setup")
def test_setup(broken): pass
@pytest.fixture
def untidy():
    yield
    raise OSError("no teardown")
def test_teardown(untidy): pass
def test_environment():
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "ZAMBA_COMPAT_DIVERGENT" not in os.environ
    assert "PYTEST_ADDOPTS" not in os.environ
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
    assert os.environ.get("ZAMBA_COMPAT_TEST_STOCK") == {stock!r}
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runner.Plan:
    """Runs a suite of its own, without an overlay."""
    monkeypatch.setenv("ZAMBA_COMPAT_DIVERGENT", "mean")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    suite = tmp_path / "conformance"
    suite.mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (suite / "test_it.py").write_text(SUITE.format(stock=None))
    reports = tmp_path / "reports"
    return runner.Plan("import", suite, tmp_path, reports, jobs=1, setup=lambda release: ())


def test_every_outcome_is_recorded(plan: runner.Plan, capfd: pytest.CaptureFixture[str]) -> None:
    (result,) = runner.run(plan, [HERE])
    outcomes = {test.partition("::")[2]: what for test, what in result.outcomes.items()}
    assert outcomes == {
        "test_passes": "passed",
        "test_fails": "failed",
        "test_skipped": "skipped",
        "test_known": "xfailed",
        "test_mended": "unexpected",
        "test_many[0]": "passed",
        "test_many[1]": "passed",
        "test_setup": "failed",
        "test_teardown": "failed",
        "test_environment": "passed",
    }
    assert result.broke is None and not result.ok
    assert result.as_dict() == {"passed": 5, "failed": 4, "skipped": 1}
    printed = capfd.readouterr().out
    assert "4 passed, 4 failed, 1 skipped, 1 xfailed" in printed
    assert "one is not two" in printed and "no setup" in printed and "no teardown" in printed
    assert matrix.total([result]) == "4 passed, 4 failed, 2 skipped"


def test_a_stock_run_is_told_so(plan: runner.Plan) -> None:
    (plan.suite / "test_it.py").write_text(SUITE.format(stock="1"))
    (result,) = runner.run(replace(plan, mode="stock"), [HERE])
    assert result.outcomes["conformance/test_it.py::test_environment"] == "passed"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "import os\ndef test_a(): pass\ndef test_b(): os._exit(0)",
            r"died before its end \(exit status 0\)",
        ),
        ("import os, signal\ndef test_a(): os.kill(os.getpid(), signal.SIGSEGV)", "died before its end"),
        ("import nothing_of_that_name", "pytest ended with exit status 2"),
        ("x = 1", "ran no test"),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): pass", "ran no test"),
    ],
    ids=["exit", "crash", "import-error", "empty", "all-skipped"],
)
def test_a_run_that_broke_is_no_success(plan: runner.Plan, source: str, why: str) -> None:
    (plan.suite / "test_it.py").write_text(source)
    (result,) = runner.run(plan, [HERE])
    assert result.broke is not None
    assert re.search(why, result.broke)
    assert not result.ok
    assert matrix.total([result]).split()[2] != "0"


def test_a_run_that_hangs_is_ended(plan: runner.Plan) -> None:
    (plan.suite / "test_it.py").write_text("import time\ndef test_a(): time.sleep(600)")
    (result,) = runner.run(replace(plan, timeout=2.0), [HERE])
    assert result.broke == "ended after 2 s"


def test_another_release_on_the_path_is_refused(plan: runner.Plan) -> None:
    (result,) = runner.run(plan, ["4.49.0"])
    assert result.broke is not None
    assert f"transformers {HERE} is on the path, not 4.49.0" in plan.log("4.49.0").read_text()


@pytest.mark.parametrize(("keep_going", "ran"), [(False, ["1.0"]), (True, ["1.0", "2.0", "3.0"])])
def test_releases_that_cannot_be_set_up(plan: runner.Plan, keep_going: bool, ran: list[str]) -> None:
    def fails(release: str) -> tuple[Path, ...]:
        raise overlays.OverlayError(f"pip has no {release}")

    found = runner.run(replace(plan, setup=fails, keep_going=keep_going), ["1.0", "2.0", "3.0"])
    assert [(result.release, result.broke) for result in found] == [(r, f"pip has no {r}") for r in ran]


# What is kept


def test_a_record_cut_short_is_no_success(tmp_path: Path) -> None:
    record = tmp_path / "1.0.jsonl"
    lines = ['{"collected": 2}', '{"test": "a", "outcome": "passed"}', '{"test": "b", "outc']
    record.write_text("\n".join(lines))
    assert results.progress(record) == (1, 2)
    assert results.read("1.0", record).broke == "died before its end"
    assert results.read("1.0", tmp_path / "none.jsonl").broke == "died before its end"
    record.write_text("\n".join([*lines[:2], '{"finished": 0}', ""]))
    assert results.read("1.0", record).ok


def test_the_tally_of_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passed, failed, skipped = (json.dumps({"test": w, "outcome": w}) for w in ("passed", "failed", "skipped"))
    good, bad = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    good.write_text(f'{passed}\n{{"finished": 0}}\n')
    bad.write_text(f'{failed}\n{skipped}\n{{"finished": 1}}\n')
    assert matrix.main(["--tally", str(good)]) == 0
    assert matrix.main(["--tally", str(good), str(bad)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed, 1 skipped"


def test_results_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "support.json"
    right = [Result(release, {"a": "passed"}) for release in ("5.10.4", "5.2.0")]
    stock = [Result("5.2.0", {"a": "xfailed", "b": "unexpected"})]
    results.merge(path, "import", right, {"torch": "1"})
    support = results.merge(path, "stock", stock, {"torch": "2"})
    assert json.loads(path.read_text()) == support
    assert list(support["releases"]) == ["5.2.0", "5.10.4"]
    assert support["releases"]["5.2.0"] == {
        "import": {"passed": 1, "failed": 0, "skipped": 0},
        "stock": {"passed": 1, "failed": 1, "skipped": 0},
    }
    new = [Result("5.2.0", {"c": "passed", "d": "skipped"}), Result("5.3.0", broke="died")]
    support = results.merge(path, "import", new, {"torch": "1"}, more=True)
    assert support["releases"]["5.2.0"]["import"] == {"passed": 2, "failed": 0, "skipped": 1}
    assert support["releases"]["5.3.0"]["import"]["broke"] == "died"


def test_arguments_that_would_falsify_the_results() -> None:
    with pytest.raises(SystemExit) as stopped:
        matrix.parse(["--ci", "--json", "x", "--", "-k", "y"])
    assert stopped.value.code == 2


def test_the_installed_release_can_be_left_to_make_test() -> None:
    installed = version("transformers")
    every = matrix.chosen(matrix.parse(["--ci"]))
    assert matrix.chosen(matrix.parse(["--ci", "--but-installed"])) == tuple(r for r in every if r != installed)
    assert matrix.chosen(matrix.parse(["--releases", f"5.0.0,{installed}", "--but-installed"])) == ("5.0.0",)


# The table


@dataclass
class Fake:
    name: str
    requires: str
    upstream: str = "none known"
    summary: str = "Mends | it."


ADAPTERS = [
    Fake("first", "transformers>=5.0,<5.17"),
    Fake("second", "transformers>=4.49,<5.2"),
    Fake("third", "bitsandbytes>=0.49"),
]


def test_the_table() -> None:
    entry = {"passed": 3, "failed": 0, "skipped": 1}
    support = {
        "environment": {"torch": "2.13.0"},
        "releases": {
            "5.0.0": {"import": entry, "stock": {**entry, "passed": 1, "failed": 2}},
            "5.16.1": {"import": entry},
            "5.17.0": {"import": {**entry, "broke": "died"}},
        },
    }
    lines = table.releases(support, ADAPTERS).splitlines()
    assert "| 5.0.0 | all 3 | 1 of 3 | 2 |" in lines
    assert "| 5.16.1 | all 3 | not run | 1 |" in lines
    assert "| 5.17.0 | broke: died | not run | 0 |" in lines
    lines = table.listing(ADAPTERS).splitlines()
    assert r"| first | `transformers>=5.0,<5.17` | Mends \| it. | none known |" in lines


@pytest.mark.parametrize("name", [table.SUPPORT, table.ADAPTERS])
def test_only_what_is_between_the_markers_changes(name: str) -> None:
    begin, end = table.markers(name)
    page = f"before\n{begin}\nold\n{end}\nafter\n"
    assert table.splice(page, name, "new") == f"before\n{begin}\nnew\n{end}\nafter\n"
    assert table.section(table.splice(page, name, "new"), name) == "new"
    for bad in ("", begin, end + begin, page + page):
        with pytest.raises(ValueError, match="page needs"):
            table.splice(bad, name, "new")


def test_the_pages_are_in_step() -> None:
    """`make support-table` brings them back in step, after the bounds or the results have changed."""
    from zamba_compat.patches import ADAPTERS as adapters

    support = json.loads((ROOT / "docs" / "support.json").read_text(encoding="utf-8"))
    for name, made in ((table.SUPPORT, table.releases(support, adapters)), (table.ADAPTERS, table.listing(adapters))):
        page = (ROOT / "docs" / matrix.PAGES[name]).read_text(encoding="utf-8")
        assert table.section(page, name) == made


def test_the_support_file_has_every_release() -> None:
    support = json.loads((ROOT / "docs" / "support.json").read_text(encoding="utf-8"))
    assert list(support["releases"]) == list(RELEASES)
    for release, entry in support["releases"].items():
        assert entry["import"]["failed"] == 0 and "broke" not in entry["import"], release
        assert entry["import"]["passed"] > 0


@pytest.mark.parametrize("mode", ["import", "stock"])
def test_the_support_file_is_of_these_tests(mode: str) -> None:
    """A test more or less, and each row is to be made anew: by `make matrix`, or `--new` for a file of new tests."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        ROOT / "tests" / "conformance",
    ]
    env = {**os.environ, **({"ZAMBA_COMPAT_TEST_STOCK": "1"} if mode == "stock" else {})}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    collected = int(re.search(r"(\d+) tests? collected", done.stdout)[1])
    support = json.loads((ROOT / "docs" / "support.json").read_text(encoding="utf-8"))
    counts = {
        release: sum(entry[mode][what] for what in results.COUNTED) for release, entry in support["releases"].items()
    }
    assert {release: count for release, count in counts.items() if count != collected} == {}


def test_the_scripts_say_how_they_are_used() -> None:
    for script in ("matrix.py", "overlays.py"):
        command = [sys.executable, ROOT / "tools" / script, "--help"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "usage" in done.stdout

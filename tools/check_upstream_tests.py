"""transformers' own tests of Zamba and Zamba2, without the import and with it: none may pass stock and fail armed.

    python tools/check_upstream_tests.py CHECKOUT [--releases 4.57.6 5.2.0 5.15.1] [--only EXPRESSION] [--reports DIR]

CHECKOUT is a clone of transformers, bare or not: of each release the tests at its tag are run, v4.57.6 and so on,
unpacked into a temporary folder. A folder without the tag is taken as it lies, for a single release. What the tests
import and transformers does not require is put beside the release, see tools/overlays.py. Exit status 1 if a test
passes stock and fails with the import, but for those in REFUSED; 2 if the tests cannot be run.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import overlays
from _matrix import results

RELEASES = ("4.57.6", "5.2.0", "5.15.1")
TESTED = ("tests/models/zamba", "tests/models/zamba2")
UNPACKED = ("tests", "utils", "conftest.py", "pyproject.toml", "setup.cfg")  # utils has modules that tests import
BESIDE = {"parameterized": "0.9.0", "datasets": "4.4.1", "httpx": "0.28.1", "httpcore": "1.0.9"}
"""What the tests import. This datasets works with every release's huggingface-hub; that of the environment may not."""
TOOLS = Path(__file__).resolve().parent

REFUSED = {
    "test_model_weights_reload_no_missing_tied_weights": (
        "MissingTensorError",
        "it loads a file that holds none of the model's tensors; random weights are refused here",
    )
}
"""By the test's name: the error that it fails with, and why that is meant."""

Setup = Callable[[str], Sequence[Path]]


class Difference(NamedTuple):
    """A test that the import changes. excuse: why that is meant, if it is."""

    test: str
    stock: str
    armed: str
    message: str
    excuse: str | None

    @property
    def is_worse(self) -> bool:
        return self.stock in GOOD and self.armed not in GOOD

    @property
    def is_fault(self) -> bool:
        return self.is_worse and self.excuse is None


GOOD = ("passed", "skipped", "xfailed", "xpassed")


class UpstreamTestsError(Exception):
    """Tests that cannot be run: what is missing, and what to do."""


def is_tagged(checkout: Path, release: str, *, only_one: bool) -> bool:
    """Whether the checkout has the tag of a release; if not, it is that release's as it lies.

    Raises:
        UpstreamTestsError: there is no such tag, and the folder cannot be this release's.
    """
    tag = f"v{release}"
    tags = subprocess.run(["git", "-C", str(checkout), "tag", "--list", tag], capture_output=True, text=True)
    if tags.returncode == 0 and tags.stdout.strip():
        return True
    if not all((checkout / folder).is_dir() for folder in TESTED):
        raise UpstreamTestsError(f"{checkout} has neither a tag {tag} nor {TESTED[1]}. Fetch the tag, or name a clone.")
    if not only_one:
        raise UpstreamTestsError(f"{checkout} has no tag {tag}; the folder as it lies can be one release's only.")
    return False


def unpack(checkout: Path, release: str, target: Path, package: Path) -> Path:
    """A folder with the tests of a release's tag, and the release itself as src/transformers, which some of them read.

    Raises:
        UpstreamTestsError: git cannot read the tag.
    """
    tag, git = f"v{release}", ["git", "-C", str(checkout)]
    there = subprocess.run([*git, "ls-tree", "--name-only", tag], capture_output=True, text=True, check=True)
    wanted = [name for name in UNPACKED if name in there.stdout.splitlines()]
    done = subprocess.run([*git, "archive", tag, "--", *wanted], capture_output=True)
    if done.returncode:
        raise UpstreamTestsError(f"{checkout}, {tag}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(target, filter="data")
    (target / "src").mkdir(exist_ok=True)
    (target / "src" / "transformers").symlink_to(package, target_is_directory=True)
    return target


def run(folder: Path, release: str, armed: bool, reports: Path, only: str, paths: Sequence[Path]) -> results.Result:
    """Every outcome of the tests in a folder, under a release, whose folders are `paths`."""
    record = reports / f"{release}-{'armed' if armed else 'stock'}.jsonl"
    command = [
        sys.executable, "-m", "pytest", *TESTED, "-q", "--tb=short", "-p", "no:cacheprovider",
        "-p", "_matrix.recorder", "--record", str(record.resolve()), "--expect-transformers", release,
    ]  # fmt: skip
    command += ["-p", "zamba_compat"] if armed else []  # before transformers
    command += ["-k", only] if only else []
    env = {name: value for name, value in overlays.environment(paths, TOOLS).items() if not _is_ours(name)}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1")}
    record.unlink(missing_ok=True)
    with record.with_suffix(".log").open("w", encoding="utf-8") as log:
        status = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
    return results.read(release, record, status=status)


def _is_ours(name: str) -> bool:
    return name.startswith(("ZAMBA_COMPAT_", "PYTEST_")) or name == "RUN_SLOW"


def setup(release: str) -> tuple[Path, ...]:
    """The folders of a release and of what its tests import."""
    return (*overlays.overlay(release), *(overlays.build(name, version) for name, version in BESIDE.items()))


def installed_package(paths: Sequence[Path]) -> Path:
    """Where the transformers is that a Python with these folders on its path imports."""
    for path in (*paths, *map(Path, sys.path)):
        if (path / "transformers" / "__init__.py").is_file():
            return path / "transformers"
    raise UpstreamTestsError("transformers is not installed.")


def compare(stock: results.Result, armed: results.Result) -> list[Difference]:
    """The tests with another outcome, the faults first; one that did not run is "absent"."""
    found = []
    for test in sorted(stock.outcomes.keys() | armed.outcomes.keys()):
        before, after = stock.outcomes.get(test, "absent"), armed.outcomes.get(test, "absent")
        if before != after:
            message = armed.messages.get(test) or stock.messages.get(test, "")
            found.append(Difference(test, before, after, message, excuse(test, message)))
    return sorted(found, key=lambda difference: (not difference.is_fault, difference.test))


def excuse(test: str, message: str) -> str | None:
    """Why a failure is meant: by the test's name and by the error that it fails with."""
    name = test.rpartition("::")[2].partition("[")[0]
    error, reason = REFUSED.get(name, ("", None))
    return reason if error in message else None


def counts(result: results.Result) -> str:
    """As "120 passed, 30 skipped"."""
    found: Mapping[str, int] = Counter(result.outcomes.values())
    return ", ".join(f"{found[what]} {what}" for what in ("passed", "failed", "skipped", *GOOD[2:]) if found[what])


def check(checkout: Path, release: str, options: argparse.Namespace, folders: Setup = setup) -> list[Difference]:
    """Run one release's tests both ways and print what differs.

    Raises:
        UpstreamTestsError: a run that broke off, or ran no test.
    """
    with tempfile.TemporaryDirectory(prefix="upstream-tests-") as scratch:
        tagged = is_tagged(checkout, release, only_one=len(options.releases) == 1)
        paths = folders(release)
        target = Path(scratch) / "tests"
        folder = unpack(checkout, release, target, installed_package(paths)) if tagged else checkout
        reports = options.reports or Path(scratch)
        reports.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            both = pool.map(lambda armed: run(folder, release, armed, reports, options.only, paths), (False, True))
            stock, armed = both
        for result, how in ((stock, "stock"), (armed, "armed")):
            if result.broke is not None:
                log = (reports / f"{release}-{how}.log").read_text(encoding="utf-8", errors="replace")
                raise UpstreamTestsError(f"{release}, {how}: {result.broke}\n{log[-2000:]}")
    print(f"{release} stock: {counts(stock)}; with the import: {counts(armed)}")
    differences = compare(stock, armed)
    for difference in differences:
        mark = "FAULT" if difference.is_fault else "meant" if difference.is_worse else "     "
        told = f": {difference.excuse or difference.message}" if difference.is_worse else ""
        print(f"  {mark} {difference.stock} -> {difference.armed}: {difference.test}{told}", flush=True)
    return differences


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT")
    parser.add_argument("--releases", nargs="+", default=list(RELEASES), metavar="VERSION")
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="as pytest's -k")
    parser.add_argument("--reports", type=Path, metavar="DIR", help="keep pytest's output and every outcome here")
    options = parser.parse_args(arguments)
    faults = 0
    try:
        for release in options.releases:
            faults += sum(difference.is_fault for difference in check(options.checkout, release, options))
    except (UpstreamTestsError, overlays.OverlayError) as error:
        print(f"check_upstream_tests: {error}", file=sys.stderr)
        return 2
    print(f"{faults} tests pass stock and fail with the import" if faults else "no test passes stock and fails armed")
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

"""Full and read-only disks, kills and signals: the destination is the old one whole or the new one whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.crashes import each_crash
from support.raw_files import snapshot
from support.staged import NEW, OLD, make_old, only, refused, stage
from zamba_compat.checkpoint.writing import staging as module
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.errors import DestinationError

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, namespaces and /proc")


@pytest.mark.parametrize("there", ["x/y", "x", ""])
def test_missing_parents_are_made(tmp_path: Path, there: str) -> None:
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    destination = tmp_path / "x" / "y" / "d"
    before = sorted(tmp_path.rglob("*"))
    Staging(destination, overwrite=False, sources=()).check()
    with Staging(destination, overwrite=False, sources=()) as staging:
        staging.write("a", "x")
    with pytest.raises(KeyboardInterrupt), Staging(destination, overwrite=False, sources=()) as staging:
        raise KeyboardInterrupt
    assert sorted(tmp_path.rglob("*")) == before  # without a trace
    stage(destination)
    assert snapshot(destination) == NEW and only(destination)


def test_a_file_among_the_parents(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    refused(tmp_path / "x" / "y" / "d", "Not a directory")
    with pytest.raises(DestinationError, match="Not a directory"):
        Staging(tmp_path / "x" / "y" / "d", overwrite=False, sources=()).check()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_row_50_read_only_parent(tmp_path: Path) -> None:
    parent = tmp_path / "p"
    parent.mkdir(mode=0o555)
    refused(parent / "d", "Permission denied")


IN_NAMESPACE = """
import sys
from pathlib import Path
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.errors import DestinationError
try:
    with Staging(sys.argv[1], overwrite=True, sources=()) as staging:
        for action in sys.argv[2:]:
            exec(action)
        staging.commit()
except DestinationError as error:
    print(type(error).__name__, error)
"""


def in_namespace(mount: str, at: Path, *actions: str, prepare: str = "true") -> str:
    """Run actions on a staging of `at`/d in a mount namespace of its own; returns what it says."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    steps = f'mount -t tmpfs {mount} none {at} && {prepare} && exec {sys.executable} -c "$PROGRAM" "$@"'
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", steps, "sh", str(at / "d"), *actions],
        env={**os.environ, "PROGRAM": IN_NAMESPACE},
        capture_output=True,
        text=True,
    )
    if "unshare" in result.stderr or "mount:" in result.stderr:
        pytest.skip(f"no mounts here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_row_50_read_only_file_system(tmp_path: Path) -> None:
    assert "Read-only file system" in in_namespace("-o ro", tmp_path)


def test_row_50_a_mount_point_is_not_replaced(tmp_path: Path) -> None:
    said = in_namespace("-o size=1m", tmp_path, prepare=f"mkdir {tmp_path}/d && mount -t tmpfs none {tmp_path}/d")
    assert "mount point" in said


def test_rows_51_52_a_full_disk(tmp_path: Path) -> None:
    old = f"mkdir {tmp_path}/d && echo old > {tmp_path}/d/x"
    look = "import os; print(os.listdir(Path(sys.argv[1]).parent), Path(sys.argv[1], 'x').read_text())"
    room = in_namespace("-o size=1m", tmp_path, "staging.require(900_000)", "staging.require(1_100_000)", prepare=old)
    assert "are free" in room
    program = "import atexit; atexit.register(lambda: exec(LOOK)); staging.write('a', bytes(2 * 10**6))"
    said = in_namespace("-o size=1m", tmp_path, f"LOOK = {look!r}", program, prepare=old)
    assert "No space left on device" in said
    assert "['d'] old" in said


def test_row_52_a_limit_on_file_sizes(tmp_path: Path) -> None:
    make_old(tmp_path / "d")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(DestinationError, match="File too large"),
        Staging(tmp_path / "d", overwrite=True, sources=()) as staging,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1]))
        try:
            staging.write("a", bytes(10**6))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(tmp_path / "d") == OLD
    assert only(tmp_path / "d")


@pytest.mark.parametrize("old", [False, True])
def test_row_53_killed_at_every_change(tmp_path: Path, way: str, old: bool) -> None:
    """After each death the destination is whole; between two renames it may be away, and the next run restores it."""
    destination = tmp_path / "d"
    before = OLD if old else None
    seen = []

    def reset() -> None:
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
        if old:
            make_old(destination)

    def run() -> None:
        stage(destination, overwrite=True)

    reset()
    for _ in each_crash(run, (module, "exchange")):
        now = snapshot(destination) if destination.exists() else None
        seen.append("old" if now == before else "new" if now == NEW else "away" if now is None else f"mixed {now}")
        with Staging(destination, overwrite=True, sources=()):  # the next run, which comes to nothing
            pass
        after = snapshot(destination) if destination.exists() else None
        assert after in ([NEW] if now == NEW else [before])
        assert only(destination)
        run()
        assert snapshot(destination) == NEW
        assert only(destination)
        reset()
    order = re.sub(r"(\w+ )\1*", r"\1", " ".join(seen) + " ").split()
    assert order == (["old", "away", "new"] if old and way == "two renames" else ["old", "new"])
    assert len(seen) > 15


def test_row_53_killed_while_it_recovers(tmp_path: Path) -> None:
    destination = tmp_path / "d"

    def abandoned() -> None:
        shutil.rmtree(tmp_path / ".d.zamba-compat", ignore_errors=True)
        shutil.rmtree(destination, ignore_errors=True)
        make_old(tmp_path / ".d.zamba-compat" / "old")
        (tmp_path / ".d.zamba-compat" / "lock").touch()
        (tmp_path / ".d.zamba-compat" / "new").mkdir()
        (tmp_path / ".d.zamba-compat" / "new" / "half").write_text("x")

    abandoned()
    for _ in each_crash(lambda: Staging(destination, overwrite=True, sources=()).__enter__()):
        with Staging(destination, overwrite=True, sources=()):
            pass
        assert snapshot(destination) == OLD
        assert only(destination)
        abandoned()


def test_row_53_an_old_directory_that_was_replaced_is_not_put_back(tmp_path: Path) -> None:
    destination = tmp_path / "d"
    stage(destination)
    make_old(tmp_path / ".d.zamba-compat" / "old")
    (tmp_path / ".d.zamba-compat" / "lock").touch()
    with Staging(destination, overwrite=True, sources=()):
        pass
    assert snapshot(destination) == NEW
    assert only(destination)

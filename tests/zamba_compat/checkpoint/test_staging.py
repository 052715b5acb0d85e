"""A directory that appears all at once, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.raw_files import snapshot
from support.staged import NEW, OLD, make_old, only, refused, stage
from zamba_compat.checkpoint.writing import staging as module
from zamba_compat.checkpoint.writing.signals import Terminated
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.errors import DestinationError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, namespaces and /proc")


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_destination(tmp_path: Path, exists: bool) -> None:
    destination = tmp_path / "d"
    if exists:
        destination.mkdir()
    stage(destination)
    assert snapshot(destination) == NEW
    assert only(destination)


@pytest.mark.parametrize("when", ["write", "commit"])
def test_row_54_a_signal_that_was_swallowed_stops_it(tmp_path: Path, when: str) -> None:
    """As torch does while it starts: it goes on without numpy, whatever importing that raises."""
    make_old(tmp_path / "d")
    with pytest.raises(Terminated), Staging(tmp_path / "d", overwrite=True, sources=()) as staging:
        staging.write("a", "x")
        with contextlib.suppress(Terminated):
            signal.raise_signal(signal.SIGTERM)
        staging.write("b", "x") if when == "write" else staging.commit()
        pytest.fail("it went on")
    assert snapshot(tmp_path / "d") == OLD and only(tmp_path / "d")


def test_nothing_appears_before_the_commit(tmp_path: Path) -> None:
    destination = tmp_path / "d"
    with Staging(destination, overwrite=False, sources=()) as staging:
        staging.write("a", "x")
        assert not destination.exists()
        assert staging.path.parent.parent == tmp_path
        staging.commit()
        assert destination.exists()
    assert only(destination)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_failure_leaves_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    make_old(tmp_path / "d")
    with pytest.raises(error), Staging(tmp_path / "d", overwrite=True, sources=()) as staging:
        staging.write("a", "x")
        raise error
    assert snapshot(tmp_path / "d") == OLD
    assert only(tmp_path / "d")


def test_copies_of_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)) * 10_000)
    with Staging(tmp_path / "d", overwrite=False, sources=()) as staging:
        staging.copy(tmp_path / "x")
        staging.copy(tmp_path / "x", "sub/y")
        staging.commit()
    assert snapshot(tmp_path / "d") == {
        name: None if name == "sub" else (tmp_path / "x").read_bytes() for name in ("x", "sub", "sub/y")
    }


def test_no_file_is_written_twice(tmp_path: Path) -> None:
    with (
        pytest.raises(DestinationError, match="File exists"),
        Staging(tmp_path / "d", overwrite=False, sources=()) as staging,
    ):
        staging.write("a", "x")
        staging.write("a", "y")


def test_everything_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def logged_fsync(fd: int) -> None:
        done.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        fsync(fd)

    def logged_rename(a: Path, b: Path) -> None:
        done.append("rename")
        rename(a, b)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", logged_rename)
    stage(tmp_path / "d")
    at = done.index("rename")
    new = ".d.zamba-compat/new"
    assert set(done[:at]) == {f"{new}/a", f"{new}/sub/b", new, f"{new}/sub"}
    assert "." in done[at:]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_row_48_no_directory(tmp_path: Path, overwrite: bool, kind: str) -> None:
    if kind == "file":
        (tmp_path / "d").write_text("x")
        refused(tmp_path / "d", "no directory", overwrite=overwrite)
    else:  # what the link names is made
        (tmp_path / "d").symlink_to("real")
        stage(tmp_path / "d", overwrite=overwrite)
        assert snapshot(tmp_path / "real") == NEW


def test_row_48_overwrite(tmp_path: Path, way: str) -> None:
    destination = tmp_path / "d"
    make_old(destination)
    with Staging(destination, overwrite=True, sources=()) as staging:
        staging.write("a", "new")
        staging.write("sub/b", "new too")
        assert snapshot(destination) == OLD
        staging.commit()
        assert snapshot(destination) == NEW
    assert only(destination)


def test_row_48_overwrite_through_a_link(tmp_path: Path) -> None:
    make_old(tmp_path / "real")
    (tmp_path / "d").symlink_to("real")
    stage(tmp_path / "d", overwrite=True)
    assert (tmp_path / "d").is_symlink()
    assert snapshot(tmp_path / "real") == NEW


def test_row_48_content_that_appears_meanwhile(tmp_path: Path) -> None:
    with (
        pytest.raises(DestinationError, match="not empty"),
        Staging(tmp_path / "d", overwrite=False, sources=()) as staging,
    ):
        staging.write("a", "x")
        make_old(tmp_path / "d")
        staging.commit()
    assert snapshot(tmp_path / "d") == OLD
    assert only(tmp_path / "d")


def test_row_48_a_file_that_appears_in_a_full_directorys_place_stays(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with (
        pytest.raises(DestinationError, match="no directory"),
        Staging(tmp_path / "d", overwrite=True, sources=()) as staging,
    ):
        staging.write("new", "")
        (tmp_path / "d").rename(tmp_path / "away")
        (tmp_path / "d").write_text("mine")
        staging.commit()
    assert (tmp_path / "d").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"d", "away"}


def test_a_disk_that_does_not_confirm_the_new_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")

    with Staging(tmp_path / "d", overwrite=False, sources=()) as staging:
        staging.write("new", "")
        monkeypatch.setattr("zamba_compat.checkpoint.writing.staging.sync_directory", failing)
        with pytest.raises(DestinationError, match=r"new content is in place.*Input/output error") as caught:
            staging.commit()
    assert "unchanged" not in str(caught.value) and (tmp_path / "d" / "new").exists()


def test_row_48_a_second_rename_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path / "d")
    rename, calls = os.rename, []

    def failing(a: Path, b: Path) -> None:
        calls.append(a)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(a, b)

    monkeypatch.setattr(module, "exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(DestinationError, match="Input/output error"):
        stage(tmp_path / "d", overwrite=True)
    assert len(calls) == 3
    assert snapshot(tmp_path / "d") == OLD
    assert only(tmp_path / "d")


def test_row_48_home_and_working_directory_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path / "d")
    monkeypatch.chdir(tmp_path / "d" / "sub")
    refused(tmp_path / "d", "home directory", overwrite=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "d"))
    refused(tmp_path / "d", "home directory", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("destination", "match"),
    [
        ("m", "source itself"),
        ("m/out", "lies inside the source"),
        (".", "contains the source"),
        ("m/a/b", "lies inside"),
    ],
)
def test_row_49_overlap(tmp_path: Path, overwrite: bool, destination: str, match: str) -> None:
    make_old(tmp_path / "p" / "m")
    (tmp_path / "p" / "link").symlink_to("m")
    for source in ("m", "link"):
        for way in (destination, destination.replace("m", "link", 1)):
            refused(tmp_path / "p" / way, match, overwrite=overwrite, sources=(tmp_path / "p" / source,))


def test_row_49_hard_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path / "m")
    refused(tmp_path / "m" / ".." / "m", "source itself", sources=(tmp_path / "m",))
    monkeypatch.chdir(tmp_path)
    refused(Path("m"), "source itself", sources=(tmp_path / "m",))
    # As in a bind mount: another path, the same directory.
    monkeypatch.setattr(os.path, "samefile", lambda a, b: {Path(a).name, Path(b).name} == {"m", "d"})
    refused(tmp_path / "d", "source itself", sources=(tmp_path / "m",))


def test_row_49_neighbours_with_a_common_beginning(tmp_path: Path) -> None:
    make_old(tmp_path / "m")
    stage(tmp_path / "m2", sources=(tmp_path / "m",))
    assert snapshot(tmp_path / "m2") == NEW


def test_row_54_a_signal_during_the_commit_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path / "d")
    rename = os.rename

    def interrupted(a: Path, b: Path) -> None:
        rename(a, b)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(module.Terminated) as caught:
        stage(tmp_path / "d", overwrite=True)
    assert caught.value.code == 143
    monkeypatch.undo()
    assert snapshot(tmp_path / "d") == NEW
    assert only(tmp_path / "d")


def test_row_55_one_run_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("d")
    with Staging(tmp_path / "d", overwrite=False, sources=()) as staging:
        staging.write("a", "x")
        for other in ("d", "link"):
            with pytest.raises(DestinationError, match="Another run"):
                stage(tmp_path / other)
        stage(tmp_path / "e")  # another destination in the same directory
        staging.commit()
    assert snapshot(tmp_path / "d") == {"a": b"x"}
    stage(tmp_path / "d", overwrite=True)
    assert snapshot(tmp_path / "d") == NEW


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], indirect=True, ids=oct)
def test_row_59_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "x").touch(0o400)
    with Staging(tmp_path / "d", overwrite=False, sources=()) as staging:
        staging.write("sub/a", "x")
        staging.copy(tmp_path / "x")
        with staging.create("b") as file:
            file.write(b"y")
        staging.commit()
    for path in (tmp_path / "d", *(tmp_path / "d").rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_row_54_what_is_interrupted_before_it_can_be_left_is_cleaned_up_at_the_end(tmp_path: Path) -> None:
    """A signal between two steps of `with`: the block was entered, and nobody leaves it."""
    program = (
        "import sys; from zamba_compat.checkpoint.writing.staging import Staging\n"
        "Staging(sys.argv[1], overwrite=False, sources=()).__enter__().write('a', 'x'); sys.exit(130)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "d")])
    assert done.returncode == 130 and list(tmp_path.iterdir()) == []

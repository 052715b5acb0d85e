"""The output of a batch: every answer once, whatever happens."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from zamba_compat.errors import CheckpointError, DestinationError
from zamba_compat.inference.journal import Journal

SAME = {"model": "m", "seed": 0}


def answers(*numbers: int) -> list[dict[str, Any]]:
    return [{"index": number, "text": f"answer\n{number} \u00e9\u2028"} for number in numbers]


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def add(path: Path, numbers: Iterable[int]) -> None:
    with Journal(path, SAME) as journal:
        journal.append(answers(*numbers))


def test_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, SAME) as journal:
        assert journal.done == 0
        journal.append(answers(0, 1))
        assert journal.done == 2
    with Journal(out, SAME) as journal:
        assert journal.done == 2
        journal.append(answers(2))
    assert written(out) == answers(0, 1, 2)


def test_torn_at_every_byte(tmp_path: Path) -> None:
    """What a kill in the middle of a write leaves."""
    out = tmp_path / "out.jsonl"
    add(out, range(3))
    whole = out.read_bytes()
    for length in range(len(whole) + 1):
        out.write_bytes(whole[:length])
        with Journal(out, SAME) as journal:
            assert journal.done == whole[:length].count(b"\n")
            journal.append(answers(*range(journal.done, 3)))
        assert out.read_bytes() == whole


@pytest.mark.parametrize("damage", ['{"index": 7}\n', "[]\n", "no json\n", '{"text": ""}\n'])
def test_damaged_line(damage: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    add(out, range(2))
    first, second, _ = out.read_bytes().split(b"\n")
    out.write_bytes(first + b"\n" + damage.encode() + second + b"\n")
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match="Line 2 is not answer 1"), Journal(out, SAME):
        pass
    assert out.read_bytes() == before


def test_something_else_was_asked(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    add(out, range(2))
    before = out.read_bytes()
    with pytest.raises(DestinationError, match="model changed since"), Journal(out, {**SAME, "model": "n"}):
        pass
    assert out.read_bytes() == before
    with Journal(out, {**SAME, "model": "n"}, overwrite=True) as journal:
        assert journal.done == 0
    with pytest.raises(DestinationError, match="seed changed"), Journal(out, {**SAME, "model": "n", "seed": 1}):
        pass


def test_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine\n")
    with pytest.raises(DestinationError, match="not empty"), Journal(out, SAME):
        pass
    assert out.read_text() == "mine\n"


def test_damaged_state(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    add(out, range(1))
    for damage, words in (("{", "cannot be read"), ("[]", "all changed")):
        (tmp_path / "out.jsonl.state.json").write_text(damage)
        with pytest.raises(DestinationError, match=words), Journal(out, SAME):
            pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, SAME), pytest.raises(DestinationError, match="Another run"), Journal(out, SAME):
        pass


def test_a_file_system_without_locks_is_not_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("zamba_compat.checkpoint.writing.locking._lock", refuse)
    with pytest.raises(DestinationError, match="No locks available"), Journal(tmp_path / "o", {}):
        pass


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    add(out, range(1))
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:9])  # a short write first

    with Journal(out, SAME) as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(DestinationError, match="No space left"):
            journal.append(answers(1))
        monkeypatch.undo()
    with Journal(out, SAME) as journal:
        assert journal.done == 1
        journal.append(answers(1))
    assert written(out) == answers(0, 1)


def test_answers_are_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), sync(fd)))
    with Journal(tmp_path / "out.jsonl", SAME) as journal:
        synced.clear()
        journal.append(answers(0))
    assert synced == [(tmp_path / "out.jsonl").stat().st_size]

"""Interrupt commands at random moments in forked processes, and judge what is on the disk afterwards."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import errno
import io
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from faults.arena import SHARDS, Arena, look
from faults.commands import Ran, run
from faults.run_rows import READS, WRITES, at_call, failing_from
from zamba_compat.checkpoint.writing import staging as staging_module
from zamba_compat.operations.verify import verify

_PATIENCE = 60  # seconds
Look = dict[str, object]
_CLONE_NEWNS, _MS_PRIVATE, _MS_REC = 0x20000, 1 << 18, 1 << 14  # linux/sched.h, linux/mount.h


@dataclass
class Tally:
    """What was done and what came of it.

    Attributes:
        crashes: kind -> how many.
        phases: at which point of its work a killed command was, judged by what lay on the disk.
        statuses: exit status -> how many; negative ones are signals.
        lost: destinations that were neither the old nor the new one whole, sources that changed, orphans that stayed.
    """

    crashes: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)


class Bench:
    """One writing command on one arena, with what its destination is before and after."""

    def __init__(self, command: str, arena: Arena, *, old: bool) -> None:
        """`old`: the destination holds another checkpoint, which is to be replaced."""
        self.command, self.arena, self.tally = command, arena, Tally()
        arena.write_merge()
        self._keep = arena.top.with_name(arena.top.name + "-old")
        arena.arguments[command] = [*arena.arguments.get(command, []), "--overwrite", "-q"]
        if old:
            shutil.copytree(arena.other, self._keep)
            (self._keep / "zamba_compat_manifest.json").chmod(0o600)  # so that no part of it passes for new
        self.reset()
        self.old = self.destination()
        self.source = look(arena.source)
        assert run(command, arena).status == 0  # what it imports is not to be in its time
        self.reset()
        begin = time.perf_counter()
        assert run(command, arena).status == 0
        self.duration = time.perf_counter() - begin
        self.new = self.destination()
        assert self.new is not None and self.new != self.old
        self.reset()
        self.changes, self.reads = (self._count(names) for names in ((*WRITES, "open"), READS))
        self.reset()

    def destination(self) -> Look | None:
        """What lies there; None for nothing."""
        place = self.arena.destination
        return look(place) if place.exists() else None

    def reset(self) -> None:
        """Put the old destination back, and remove whatever lies beside it."""
        for path in self.arena.top.iterdir():
            if path not in (self.arena.source, self.arena.other) and path.suffix != ".yml":
                shutil.rmtree(path)
        if self._keep.exists():
            shutil.copytree(self._keep, self.arena.destination)

    def _count(self, names: tuple[str, ...]) -> int:
        calls = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                return function(*args, **kwargs)

            return call

        with ExitStack() as stack:
            for name in names:
                stack.enter_context(mock.patch.object(os, name, counted(getattr(os, name))))
            assert run(self.command, self.arena).status == 0
        return calls

    # ---- one trial each

    def killed_after(self, seconds: float) -> None:
        self._judge("SIGKILL, timed", self._child(), seconds=seconds)

    def killed_at(self, call: int) -> None:
        """Before a call that changes the file system, or opens a file."""
        self._judge("SIGKILL, counted", self._child(lambda: at_call((*WRITES, "open"), call, _die)))

    def signalled(self, number: signal.Signals, seconds: float) -> None:
        self._judge(number.name, self._child(), seconds=seconds, number=number)

    def failing(self, code: int, call: int) -> None:
        """From the `call`th on, writing fails (a full disk), or reading does."""
        names = READS if code == errno.EIO else ("write", "copy_file_range", "fsync", "mkdir")
        kind = f"{errno.errorcode[code]} {'reading' if code == errno.EIO else 'writing'}"
        self._judge(kind, self._child(lambda: failing_from(names, call, code)))

    def limited(self, nbytes: int) -> None:
        """No file may be larger than `nbytes`."""

        @contextlib.contextmanager
        def limit() -> Iterator[None]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))
            yield

        self._judge("RLIMIT_FSIZE", self._child(limit))

    def source_changes(self, call: int, change: str) -> None:
        """At a call, the source is changed; afterwards the old bytes are put back."""
        path = self.arena.source / SHARDS[1]
        data = path.read_bytes()
        action = {
            "one byte": lambda: _poke(path, b"\x07"),
            "cut": lambda: os.truncate(path, len(data) // 2),
            "longer": lambda: _append(path),
            "replaced": lambda: _replace(path, data[:-1] + b"\x07"),
            "config": lambda: (self.arena.source / "config.json").write_text("{}"),
        }[change]
        config = (self.arena.source / "config.json").read_bytes()
        pid = self._child(lambda: at_call(("read", "fsync", "write", "copy_file_range"), call, action))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        made = self.destination()

        def put_back() -> None:
            path.write_bytes(data)
            (self.arena.source / "config.json").write_bytes(config)

        put_back()
        if status == 0 and made != self.new:
            # The change may have come before the file was opened: then all of the changed source must have been used.
            self.reset()
            action()
            again = run(self.command, self.arena).status
            consistent = again == 0 and self.destination() == made
            put_back()
            if not consistent:
                self.tally.lost.append(f"source changed ({change}): the destination is of neither source")
            self.tally.crashes["source changed"] += 1
            self.tally.statuses[status] += 1
            self.reset()
            return
        self._judge("source changed", status=status)

    def race(self) -> None:
        """Two processes begin at once."""
        reading, writing = os.pipe()

        @contextlib.contextmanager
        def wait() -> Iterator[None]:
            os.close(writing)
            os.read(reading, 1)
            yield

        pids = [self._child(wait), self._child(wait)]
        os.close(writing)
        os.close(reading)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if sorted(statuses) not in ([0, 0], [0, 3]):
            self.tally.lost.append(f"two processes ended with {statuses}")
        if self.destination() != self.new:
            self.tally.lost.append("two processes did not leave the new destination")
        self._judge("two processes", status=min(statuses))

    def on_a_small_disk(self, nbytes: int, *, filled_meanwhile: bool) -> bool:
        """The destination lies on a file system with `nbytes` free; False where none can be mounted."""
        parent = self.arena.destination.parent / "disk"
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = self._small_disk(parent, nbytes, filled_meanwhile)
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        shutil.rmtree(parent, ignore_errors=True)
        if status == 98:
            return False
        if status == 99:
            self.tally.lost.append(f"on a disk of {nbytes} bytes the destination was not whole")
        self.tally.crashes["ENOSPC, tmpfs"] += 1
        self.tally.statuses[0 if status == 10 else 3] += 1
        return True

    def _small_disk(self, parent: Path, nbytes: int, filled: bool) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        parent.mkdir()
        if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_PRIVATE | _MS_REC, None):
            return 98
        pages = sum(-(-path.stat().st_size // 4096) + 1 for path in self._keep.rglob("*")) if self._keep.exists() else 0
        if libc.mount(b"none", os.fsencode(parent), b"tmpfs", 0, f"size={nbytes + 4096 * pages}".encode()):
            return 98
        arena = Arena(self.arena.top, arguments=self.arena.arguments, method=self.arena.method)
        with mock.patch.object(Arena, "destination", parent / "made"), ExitStack() as stack:
            old = None
            if self._keep.exists():
                shutil.copytree(self._keep, parent / "made")
                old = look(parent / "made")
            if filled:
                stack.enter_context(mock.patch.object(staging_module.Staging, "require", lambda self, nbytes: None))
            status = run(self.command, arena).status
            now = look(parent / "made") if (parent / "made").exists() else None
        left = [path.name for path in parent.iterdir() if path.name != "made"]
        if left or status not in (0, 3) or now != (self.new if status == 0 else old):
            return 99
        return 10 if status == 0 else 11

    # ---- how

    def _child(self, during: Callable[[], Any] | None = None) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            atexit._clear()  # what belongs to the parent
            signal.alarm(_PATIENCE)
            try:
                if during is not None:
                    self.arena.during = during
                ran = run(self.command, self.arena)
                status = ran.status
                if status == 4:
                    os.write(2, ran.err.encode())
            except KeyboardInterrupt:  # before the command had begun
                status = 130
            finally:
                atexit._run_exitfuncs()
                os._exit(status)
        return pid

    def _judge(
        self,
        kind: str,
        pid: int | None = None,
        *,
        seconds: float | None = None,
        number: signal.Signals = signal.SIGKILL,
        status: int | None = None,
    ) -> None:
        if pid is not None:
            if seconds is not None:
                time.sleep(seconds)
                os.kill(pid, number)  # not reaped yet, so it is still this child
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status is not None
        self.tally.crashes[kind] += 1
        self.tally.statuses[status] += 1
        now = self.destination()
        lost = self.tally.lost
        if now not in (self.old, self.new) or (now is not None and not verify(self.arena.destination).ok):
            lost.append(f"{kind}: the destination is neither the old nor the new one")
        if status == -signal.SIGALRM:
            lost.append(f"{kind}: it hung")
        if status == 0 and now != self.new:
            lost.append(f"{kind}: exit status 0, and the destination is not the new one")
        if status > 0 and status not in (3, 129, 130, 143):
            lost.append(f"{kind}: exit status {status}")
        left = self._left()
        if (status >= 0 or status == -signal.SIGTERM) and left:
            lost.append(f"{kind}: exit status {status}, and {left} were left")
        if status == -signal.SIGKILL:
            self.tally.phases[self._phase(now)] += 1
        self._next_run(kind)

    def _phase(self, now: Look | None) -> str:
        working = self.arena.top / ".made.zamba-compat"
        if now == self.new:
            return "in place, the old one not removed yet" if working.exists() else "at the end"
        if not (working / "new").exists():
            return "reading and checking" if not working.exists() else "locked"
        names = {path.name for path in (working / "new").iterdir()}
        if "zamba_compat_manifest.json" in names:
            return "all written, not in place yet"
        if "config.json" in names:
            return "writing what lies beside the weights"
        return "writing weights" if names else "destination made"

    def _next_run(self, kind: str) -> None:
        ran: Ran = run(self.command, self.arena)
        if ran.status != 0 or self.destination() != self.new:
            self.tally.lost.append(f"{kind}: the next run ended with {ran.status}: {ran.err}")
        if self._left():
            self.tally.lost.append(f"{kind}: the next run left {self._left()}")
        if look(self.arena.source) != self.source:
            self.tally.lost.append(f"{kind}: the source changed")
        self.reset()

    def _left(self) -> list[str]:
        known = {path.name for path in (self.arena.source, self.arena.other, self.arena.destination)}
        return [path.name for path in self.arena.top.iterdir() if path.name not in known and path.suffix != ".yml"]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _poke(path: Path, data: bytes) -> None:
    with builtins.open(path, "r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(data)


def _append(path: Path) -> None:
    with builtins.open(path, "ab") as file:
        file.write(b"\0")


def _replace(path: Path, data: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(data)
    other.replace(path)


def campaign(bench: Bench, kills: int, seed: int) -> Tally:
    """`kills` deaths, half of them timed over the whole run and half at counted calls, the first and last of which are
    drawn more often than the many that write tensors; and a tenth as many of each other fault. All drawn from `seed`.
    """
    draw = random.Random(seed)
    for number in range(kills):
        if number % 2:
            bench.killed_after(draw.uniform(0, 1.3 * bench.duration))
        else:
            early, anywhere, late = draw.randint(1, 12), draw.randint(1, bench.changes), draw.randint(0, 30)
            bench.killed_at(draw.choice([early, anywhere, max(1, bench.changes - late)]))
    for _ in range(max(2, kills // 10)):
        bench.signalled(signal.SIGINT, draw.uniform(0, bench.duration))
        bench.signalled(signal.SIGTERM, draw.uniform(0, bench.duration))
        bench.failing(errno.ENOSPC, draw.randint(1, bench.changes))
        bench.failing(errno.EIO, draw.randint(1, bench.reads))
        bench.limited(draw.randint(1, 60_000))
        bench.on_a_small_disk(draw.randint(30, 260) * 1024, filled_meanwhile=draw.random() < 0.7)
        bench.race()
        change = draw.choice(["one byte", "cut", "longer", "replaced", "config"])
        bench.source_changes(draw.randint(1, bench.changes), change)
    return bench.tally

"""Run one command on an arena and say what came of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from faults.arena import Arena, look, read, state
from zamba_compat.cli.main import main
from zamba_compat.operations.verify import verify

WRITING = ("convert-checkpoint", "quantize", "quantize --method", "merge", "extract-lora")
COMMANDS = (*WRITING, "inspect", "verify", "from_pretrained")
METHODS = ("w8a16", "w4a16", "fp8")  # of "quantize --method"; one for each arena
_PATIENCE = 60  # seconds for one load; a FIFO that is opened for reading would wait for ever


@dataclass(frozen=True)
class Ran:
    """What a command did: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Expect:
    """What is promised.

    Attributes:
        outcome: "refused", "told" (listed as a fault, exit status 1), "accepted", "library" (transformers or
            safetensors refuses it with an error of their own), "n/a", or an exit status such as "130".
        says: a pattern for what is printed; for "n/a" and exceptions the reason, for the table.
        why: the reason, where the outcome needs one in the table.
        same: after "accepted": the output or the model holds exactly the good tensors.
    """

    outcome: str
    says: str = ""
    why: str = ""
    same: bool = True


def run(command: str, arena: Arena) -> Ran:
    """Run a command in this process, as its console script would."""
    paths = {
        "merge": [str(arena.top / "merge.yml"), str(arena.destination)],
        "extract-lora": [*map(str, (arena.other, arena.source, arena.destination)), "--rank", "4"],
        "inspect": [str(arena.source)],
        "verify": [str(arena.source)],
    }.get(command, [str(arena.source), str(arena.destination)])
    words = command.split()
    if words[1:]:
        words += [arena.method, *(["--group-size", "-1"] if arena.method != "fp8" else [])]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), arena.during():
        try:
            status = main([*words, *paths, *arena.arguments.get(command, [])])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


def outcome(command: str, arena: Arena, expect: Expect) -> str:
    """Run a command, check everything that is promised whatever comes of it, and say what came of it.

    Raises:
        AssertionError: a source that changed, a trace that was left, an error without what, where or remedy, a
            destination that is not whole, tensors that are not the right ones, words that are lacking.
    """
    if command == "from_pretrained":
        return _load(arena, expect)
    if command == "merge":
        arena.write_merge()
    before = look(arena.top)
    ran = run(command, arena)
    after = look(arena.top)
    assert _beside(arena, after) == _beside(arena, before), "something beside the destination changed"
    assert not any(path.exists() for path in arena.absent), "hostile code has run"
    said = ran.err if ran.status >= 3 else ran.out
    assert "Traceback" not in ran.err and ran.status != 4, ran.err
    assert re.search(expect.says, said, re.DOTALL), f"{expect.says!r} is not in: {said}"
    if ran.status == 0:
        if command in WRITING:
            _check_written(command, arena, expect.same)
        return "accepted"
    assert after == before, "something was left behind"
    if ran.status == 1:
        assert command in ("inspect", "verify") and str(arena.top) in ran.out
        return "told"
    if ran.status != 3:
        return str(ran.status)
    first = ran.err.splitlines()[0]
    assert first.startswith(f"zamba-compat {command.split()[0]}: ")
    assert str(arena.top) in ran.err or "tensor" in first or re.search(expect.says, first), "it says nowhere"
    return "refused"


def _beside(arena: Arena, found: dict[str, object]) -> dict[str, object]:
    return {name: what for name, what in found.items() if name.split("/")[0] != arena.destination.name}


def _check_written(command: str, arena: Arena, same: bool) -> None:
    if "--dry-run" in arena.arguments.get(command, ()):
        assert not arena.destination.exists()
        return
    found = verify(arena.destination)
    assert found.ok, found.faults
    if same and command == "convert-checkpoint":
        assert equal(read(arena.destination), state())


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def _load(arena: Arena, expect: Expect) -> str:
    before = look(arena.top)
    found = in_child(lambda: _loaded(arena))
    assert look(arena.top) == before, "loading changed something"
    assert not any(path.exists() for path in arena.absent), "hostile code has run"
    assert re.search(expect.says, found["message"], re.DOTALL), f"{expect.says!r} is not in: {found['message']}"
    if found["outcome"] == "accepted" and expect.same:
        assert found["same"], "the model does not hold the right tensors"
    return str(found["outcome"])


def _loaded(arena: Arena) -> dict[str, Any]:
    import logging

    from transformers import AutoModelForCausalLM

    from zamba_compat.errors import ZambaCompatError

    heard = io.StringIO()
    logging.getLogger("zamba_compat").addHandler(logging.StreamHandler(heard))
    try:
        with contextlib.redirect_stderr(heard):
            model = AutoModelForCausalLM.from_pretrained(arena.source, dtype=torch.bfloat16)
    except ZambaCompatError as error:
        return {"outcome": "refused", "message": str(error)}
    except Exception as error:
        return {"outcome": "library", "message": f"{type(error).__name__}: {error}"}
    loaded = model.state_dict()
    same = all(name in loaded and torch.equal(loaded[name], tensor) for name, tensor in state().items())
    return {"outcome": "accepted", "message": heard.getvalue(), "same": same}


def in_child(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `function` returns in a forked process, which is killed when it takes too long."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(_PATIENCE)
        try:
            os.write(writing, json.dumps(function()).encode()[:60_000])
        except BaseException as error:
            os.write(writing, json.dumps({"outcome": "died", "message": repr(error)}).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(data) if data else {"outcome": "hung", "message": ""}
    return found

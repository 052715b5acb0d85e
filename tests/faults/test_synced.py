"""What is told to be written is on the disk: every file and every name is synced before it takes its place."""

from __future__ import annotations

import sys

import pytest

from faults.arena import Arena
from faults.commands import WRITING, run
from faults.run_rows import all_arguments, occupied
from faults.traced import Event, at_risk, tracing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


@pytest.fixture
def templates(arena: Arena) -> Arena:
    """A checkpoint with a subdirectory beside the weights."""
    (arena.source / "additional_chat_templates").mkdir()
    (arena.source / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    return arena


def traced(command: str, arena: Arena) -> list[Event]:
    events: list[Event] = []
    arena.write_merge()
    arena.during = lambda: tracing(events)
    assert run(command, arena).status == 0
    return events


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("command", WRITING)
def test_nothing_is_at_risk(command: str, old: bool, templates: Arena) -> None:
    if old:
        occupied(templates)
        all_arguments(templates, "--overwrite")
    events = traced(command, templates)
    assert at_risk(events, templates.destination) == []
    written = {event.path.name for event in events if event.what == "write"}
    config = "adapter_config.json" if command == "extract-lora" else "config.json"
    beside = ["tool.jinja"] if command not in ("merge", "extract-lora") else []
    assert {config, "zamba_compat_manifest.json", *beside} <= written


@pytest.mark.parametrize("lost", ["model-00001", "config.json", "new", "additional_chat_templates", "arena"])
def test_a_sync_that_is_left_out_is_noticed(lost: str, templates: Arena) -> None:
    templates.arguments["convert-checkpoint"] = ["--max-shard-size", "60KB"]
    events = traced("convert-checkpoint", templates)
    kept = [e for e in events if not (e.what == "sync" and e.path.name.startswith(lost))]
    assert len(kept) < len(events) and at_risk(kept, templates.destination)

"""What every command that writes a directory takes, and how it ends."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .upload import add_push, push

if TYPE_CHECKING:
    from zamba_compat.operations.upload import Target


def add_writing(parser: argparse.ArgumentParser, *, unknown: str) -> None:
    """Add the options, --allow-unknown with its help."""
    add = parser.add_argument
    add("--dry-run", action="store_true", help="check and decide, print the plan, write nothing")
    add("--overwrite", action="store_true", help="replace a destination that is not empty, at the very end")
    add("--allow-unknown", action="store_true", help=unknown)
    add("--allow-pickle", action="store_true", help="read .bin and .pt files (tensors only, no code is run)")
    add_push(parser)
    add("--json", action="store_true", help="the report as JSON")
    add("-q", "--quiet", action="store_true", help="no progress and no report, only errors")


def finish(options: argparse.Namespace, where: Target | None, report: Mapping[str, Any]) -> int:
    """Push what was written, and print the report as JSON, where that was asked for; the exit status."""
    done = push(options, where if report["written"] else None, options.destination)
    if options.json:
        print(json.dumps({**report, "pushed": None if done is None else asdict(done)}, indent=2))
    return 0

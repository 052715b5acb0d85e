"""Check that a checkpoint is, to the last byte, what was written: the files against zamba_compat_manifest.json.

Every tensor's hash, dtype, shape and shard, every shard's size and header, every other file, and that nothing is
missing or extra. Exit status 0: all is as it was written; 1: it is not, and every difference is listed.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from zamba_compat.cli.counts import counted
from zamba_compat.cli.progress import progress

EXAMPLES = """
  zamba-compat verify CHECKPOINT
  zamba-compat verify CHECKPOINT --json
"""

if TYPE_CHECKING:
    from zamba_compat.operations.verify import Verification


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="a checkpoint that convert-checkpoint, quantize or merge has written")
    add("--json", action="store_true", help="the whole report as JSON")
    add("-q", "--quiet", action="store_true", help="no progress and no report, only errors and the exit status")


def run(options: argparse.Namespace) -> int:
    from zamba_compat.operations.verify import verify

    found = verify(options.directory, progress=progress(options))
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
    elif not options.quiet:
        print(text(found))
    return 0 if found.ok else 1


def text(found: Verification) -> str:
    """What was found, for a person."""
    lines = [f"{found.directory}: {counted(found.tensors, 'tensor')} in {counted(found.shards, 'shard')}"]
    lines[0] += f", {counted(found.files, 'other file')}, {found.bytes:,} bytes"
    for source in found.sources:
        revision = source.get("revision")
        lines.append(f"  made of {source.get('name')}" + (f" at {revision}" if revision else ""))
    lines += [f"  warning: {warning}" for warning in found.warnings]
    lines += [f"  fault: {fault}" for fault in found.faults] or ["  all as it was written"]
    return "\n".join(line if line.isprintable() else line.encode("unicode_escape").decode() for line in lines)

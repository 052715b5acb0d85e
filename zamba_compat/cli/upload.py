"""Upload a checkpoint or an adapter to the hub, in one commit.

The files are compared with their manifest first, if they have one. A model that is not there is made, private unless
--public says otherwise. Its weights, index and manifest are replaced; other files that it has stay.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from zamba_compat.cli.progress import progress
from zamba_compat.cli.usage import WrongUsage

if TYPE_CHECKING:
    from zamba_compat.operations.upload import Target, Uploaded

EXAMPLES = """
  zamba-compat upload DIR OWNER/NAME
  zamba-compat upload DIR OWNER/NAME@BRANCH --public
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="of a checkpoint or an adapter")
    add("push", metavar="ID", help="OWNER/NAME, or OWNER/NAME@BRANCH, which is made if it is not there")
    _add_public(parser)
    add("--json", action="store_true", help="what was done as JSON")
    add("-q", "--quiet", action="store_true", help="the model's address alone: no progress")


def add_push(parser: argparse.ArgumentParser) -> None:
    """--push and --public, of a command that writes a directory; see `asked` and `push`."""
    parser.add_argument(
        "--push",
        metavar="ID",
        help="when all is written and verified, upload it to the hub in one commit: OWNER/NAME or OWNER/NAME@BRANCH",
    )
    _add_public(parser)


def _add_public(parser: argparse.ArgumentParser) -> None:
    help = "the model may be read by everybody (default: it is private)"
    parser.add_argument("--public", action="store_true", help=help)


def asked(options: argparse.Namespace) -> Target | None:
    """Where --push goes, checked with the hub; None without it. To be called before anything is done.

    Raises:
        WrongUsage: --public alone, or no name that a model can have.
        DestinationError: nothing could be uploaded there.
    """
    from zamba_compat.checkpoint.hub.names import parse

    if options.push is None:
        if options.public:
            raise WrongUsage("--public says who may read what is pushed.", remedy="Give --push ID with it.")
        return None
    if parse(options.push) is None:
        raise WrongUsage(
            f"{options.push!r} is no name that a model on the hub can have.",
            remedy="Give OWNER/NAME, or OWNER/NAME@BRANCH.",
        )
    from zamba_compat.operations.upload import target

    return target(options.push, public=options.public)


def push(options: argparse.Namespace, where: Target | None, directory: str) -> Uploaded | None:
    """Upload what a command has written, and say where it is unless --json will; nothing where `where` is None.

    To be called last, when nothing can fail any more.

    Raises:
        DestinationError: nothing was uploaded; it says where the result lies, and which command uploads it.
    """
    if where is None:
        return None
    from zamba_compat.operations.upload import upload

    done = upload(
        directory,
        where,
        message=f"Upload by zamba-compat {options.command}",
        progress=progress(options),
    )
    if not options.json:
        print(done.url if options.quiet else f"{'private' if done.private else 'public'}, on the hub: {done.url}")
    return done


def run(options: argparse.Namespace) -> int:
    done = push(options, asked(options), options.directory)
    if options.json and done is not None:
        print(json.dumps(asdict(done), indent=2))
    return 0

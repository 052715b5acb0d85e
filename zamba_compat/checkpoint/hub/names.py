"""Names of models on the hub: OWNER/NAME, or OWNER/NAME@REVISION."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from zamba_compat.errors import CheckpointError

_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_REVISION = r"[^\s@~^:?*\[\\\x00-\x1f\x7f]+"  # what git takes as a branch or a tag, and a commit
_NAME = re.compile(rf"({_ID})(?:@({_REVISION}))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """Attributes: id, OWNER/NAME; revision, a branch, a tag or a commit, None for the main branch."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def parse(name: str) -> HubName | None:
    """The hub's name in these words; None where they have another form. Whether it exists is not asked."""
    found = _NAME.fullmatch(name)
    return None if found is None else HubName(found[1], found[2])


def on_hub(name: str) -> HubName | None:
    """What `name` means on the hub; None where it means something on this machine, which goes first, or nothing.

    Raises:
        CheckpointError: a revision of what lies on this machine, where nothing has revisions.
    """
    found = None if os.path.lexists(name) else parse(name)
    if found is not None and found.revision is not None and os.path.lexists(found.id):
        raise CheckpointError(
            f"{found.id} lies on this machine, where it goes before the hub's, and has no revisions.",
            where=name,
            remedy=f"Leave @{found.revision} out to read it, or work in another directory to read the hub's.",
        )
    return found

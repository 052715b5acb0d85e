"""Which release of a library is installed, and where it lies against the bounds of a defect.

`packaging` is imported inside the functions: declaring an adapter must stay cheap.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import AdapterError

if TYPE_CHECKING:
    from packaging.version import Version

_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_VERSION = re.compile(r"\d+(?:\.\d+)*")


def checked_bounds(library: str, since: str, fixed: str | None, *, where: str) -> None:
    """Refuse bounds that cannot be compared, or between which there is no release.

    Raises:
        AdapterError: a malformed name or version, or `fixed` not above `since`.
    """
    remedy = 'Write library="transformers", since="5.1", fixed="5.17", or fixed=None while the defect is open.'
    if _NAME.fullmatch(library) is None:
        raise AdapterError(f"{library!r} is no name of a library.", where=where, remedy=remedy)
    for version in (since,) if fixed is None else (since, fixed):
        if _VERSION.fullmatch(version) is None:
            raise AdapterError(f"{version!r} is no final release.", where=where, remedy=remedy)
    if fixed is not None and _release(fixed) <= _release(since):
        raise AdapterError(f"No release from {since} to below {fixed}.", where=where, remedy=remedy)


class Place(NamedTuple):
    """Where a release lies: inside the bounds, outside of them, or where only its code can tell ("boundary")."""

    kind: Literal["inside", "outside", "boundary"]
    reason: str = ""


def place(since: str, fixed: str | None, ends: str, version: str | None) -> Place:
    """Place a release against a defect's bounds, in the order of PEP 440.

    A pre-release or development build of a bound (5.17.0rc1, 5.17.0.dev0 for 5.17) may have the change already or
    not; neither can be said of a version that is not comparable.

    Args:
        ends: what the release `fixed` did.
        version: None if it is unknown.
    """
    from packaging.version import Version

    parsed = _parsed(version)
    if parsed is None:
        return Place("boundary", "its version cannot be told" if version is None else f"{version!r} is no version")
    bounds = [Version(bound) for bound in ((since,) if fixed is None else (since, fixed))]
    if parsed.is_prerelease and Version(parsed.base_version) in bounds:
        return Place("boundary", f"a pre-release of {parsed.base_version}")
    if parsed < bounds[0]:
        return Place("outside", f"begins in {since}")
    if fixed is not None and parsed >= bounds[1]:
        return Place("outside", f"{ends} in {fixed}")
    return Place("inside")


def installed_version(library: str) -> str | None:
    """The version of the release in use, None if there is none or it is not known yet.

    The imported module's `__version__` wins over the metadata: an editable install's metadata is as old as
    its installation. A version that cannot be compared is returned only when no other is found.
    """
    module = sys.modules.get(import_name(library))
    found = [getattr(module, "__version__", None)] if module is not None else []
    if not found or _parsed(found[0]) is None:
        from importlib import metadata

        with suppress(Exception):  # not installed, or damaged metadata
            found.append(metadata.version(library))
    texts = [version for version in found if isinstance(version, str)]
    return next((version for version in texts if _parsed(version) is not None), texts[0] if texts else None)


def is_editable(library: str) -> bool:
    """Whether a library is installed from a source tree that may change under its version (PEP 610)."""
    import json
    from importlib import metadata

    with suppress(Exception):  # not installed, or damaged metadata
        text = metadata.distribution(library).read_text("direct_url.json")
        return bool(text and json.loads(text).get("dir_info", {}).get("editable"))
    return False


def import_name(library: str) -> str:
    """The name a library is imported by."""
    return library.replace("-", "_")


def sort_key(version: str) -> Version:
    """What orders versions, oldest first."""
    from packaging.version import Version

    return Version(version)


def _release(version: str) -> tuple[int, ...]:
    release = [int(part) for part in version.split(".")]
    while release and release[-1] == 0:
        release.pop()
    return tuple(release)


def _parsed(version: object) -> Version | None:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version) if isinstance(version, str) else None
    except InvalidVersion:
        return None

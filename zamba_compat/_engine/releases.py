"""Which release of a library is installed, and where it lies against a pinned range.

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

_REQUIREMENT = re.compile(r"(?P<library>[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*)\s*(?P<range>[<>=!~].*)")
_SPECIFIER = re.compile(
    r"\s*(?P<operator>~=|==|!=|<=|>=|<|>)\s*"
    r"(?P<version>\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\.\*)?)\s*"
)
_REMEDY = 'Write a requirement with both bounds, such as "transformers>=5.1,<5.17".'


class Pin(NamedTuple):
    """One requirement: a library and the range of its releases, as (operator, version) pairs."""

    library: str
    range: str
    specifiers: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return self.library + self.range

    @classmethod
    def parse(cls, requirement: str, *, where: str) -> Pin:
        """Read a requirement.

        Raises:
            AdapterError: if it is malformed, empty, or has no lower or no upper bound.
        """

        def refuse(what: str) -> AdapterError:
            return AdapterError(f"{what} in the requirement {requirement!r}.", where=where, remedy=_REMEDY)

        match = _REQUIREMENT.fullmatch(requirement.strip())
        parts = [_SPECIFIER.fullmatch(part) for part in match["range"].split(",")] if match else []
        if match is None or None in parts:
            raise refuse("No library with a comma-separated list of version specifiers")
        specifiers = tuple((part["operator"], part["version"]) for part in parts if part is not None)
        lows = [_release(version) for operator, version in specifiers if operator in (">=", ">", "==", "~=")]
        highs = [_release(version) for operator, version in specifiers if operator in ("<", "<=", "==")]
        if not lows:
            raise refuse("No lower bound")
        if not highs and all(operator != "~=" for operator, _ in specifiers):
            raise refuse("No upper bound")
        if highs and max(lows) > min(highs):
            raise refuse("No release possible")
        return cls(match["library"], ",".join(f"{op}{version}" for op, version in specifiers), specifiers)


class Verdict(NamedTuple):
    """Where a release lies: inside the range, outside it, or beyond what is known ("unpinned")."""

    kind: Literal["inside", "outside", "unpinned"]
    reason: str = ""


def judge(pin: Pin, version: str, ends: str | None) -> Verdict:
    """Place a release against a pin. Pre-releases count as PEP 440 orders them.

    A pre-release of a bound lies on neither side (`<5.17` and `>=5.17` both refuse 5.17.0rc1), and whether it
    has the change is unknown, so it is unpinned.

    Args:
        ends: what the release at the upper bound did ("fixed"), None if only the testing ends there.
    """
    from packaging.specifiers import Specifier
    from packaging.version import Version

    parsed = _parsed(version)
    if parsed is None:
        return Verdict("unpinned", f"{version!r} is not a version that can be compared")
    verdicts = []
    for operator, text in pin.specifiers:
        if Specifier(operator + text).contains(parsed, prereleases=True):
            continue
        bound = Version(text.removesuffix(".*"))
        if operator == "!=":
            verdicts.append(Verdict("outside", f"{operator}{text} leaves it out"))
        elif parsed.is_prerelease and Version(parsed.base_version) == bound:
            return Verdict("unpinned", f"a pre-release of {bound}, which no adapter is pinned for")
        elif parsed < bound:
            return Verdict("outside", f"begins in {bound}")
        elif operator == ">":
            return Verdict("outside", f"begins after {bound}")
        elif ends is None:
            return Verdict("unpinned", f"newer than the releases it is pinned for ({pin.range})")
        else:
            return Verdict("outside", f"{ends} in {bound}" if operator == "<" else f"{ends} after {text}")
    return verdicts[0] if verdicts else Verdict("inside")


def installed_version(library: str) -> str | None:
    """The version of the release in use, None if there is none or it cannot be told yet.

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


def import_name(library: str) -> str:
    """The name a library is imported by."""
    return library.replace("-", "_")


def _release(version: str) -> tuple[int, ...]:
    digits = re.match(r"[\d.]+", version)
    release = [int(part) for part in digits[0].split(".") if part] if digits else []
    while release and release[-1] == 0:
        release.pop()
    return tuple(release)


def _parsed(version: object) -> Version | None:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version) if isinstance(version, str) else None
    except InvalidVersion:
        return None

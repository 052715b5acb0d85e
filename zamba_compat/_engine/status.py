"""What is reported of adapters and of the releases they meet."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from .declare import GUARDING

State = Literal["applied", "armed", "disarmed", "disabled", "not needed", "refused", "failed"]


class AdapterStatus(NamedTuple):
    """What became of one adapter.

    Attributes:
        requires: the releases that have the defect.
        installed: the installed release of `library`, None if there is none or it is unknown.
        verified: whether the whole suite has passed that release.
        state: "applied" to every module of its that is imported; "armed": will be, when one is; "disarmed";
            "disabled" by the user; "not needed": the release does not have the defect, or the library is absent, or
            the adapter's condition says so; "refused": a target is missing or is not what it was; "failed": a
            replacement could not be made. With either, what stands or falls with it is "refused" too.
        reason: why, empty where the state says it all.
        changed: the targets that are not as in any verified release, and were replaced all the same since what their
            group computes is checked.
    """

    name: str
    library: str
    group: str
    requires: str
    installed: str | None
    verified: bool
    state: State
    reason: str
    changed: tuple[str, ...]
    upstream: str
    summary: str
    targets: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {**self._asdict(), "targets": list(self.targets), "changed": list(self.changed)}


class Verdict(NamedTuple):
    """What is known of one library's release.

    Attributes:
        tested: the newest verified release, None if there is none.
        active: how many adapters are applied or armed.
        off: the groups that are off here although the release has their defects -> why.
        changed: the targets that are not as in any verified release, replaced all the same.
    """

    library: str
    installed: str | None
    verified: bool
    tested: str | None
    active: int
    off: dict[str, str]
    changed: tuple[str, ...]

    @property
    def guarding_off(self) -> list[str]:
        """The groups among `off` without which a result can be wrong."""
        return [group for group in self.off if group in GUARDING]

    @property
    def changed_functions(self) -> list[str]:
        """The names of `changed`, without modules; one for what Zamba and Zamba2 take over from the same class."""
        return list(dict.fromkeys(name.partition(":")[2].rpartition("PreTrainedModel.")[2] for name in self.changed))

    def sentence(self) -> str:
        """The verdict in one line."""
        name = f"{self.library} {self.installed or '(of a release that cannot be told)'}"
        off = "".join(f", group {group} is off: {reason}" for group, reason in self.off.items())
        if self.verified:
            return f"{name}: verified, {self.active} adapter{'' if self.active == 1 else 's'}{off}"
        known = "newer than what was tested" if self._is_newer() else "not one of the tested releases"
        functions = ", ".join(self.changed_functions)
        how = f", what they do is checked since {functions} changed" if functions else " unchanged"
        return (
            f"{name} is {known}; {self.active} {'adapter applies' if self.active == 1 else 'adapters apply'}{how}{off}"
        )

    def _is_newer(self) -> bool:
        from packaging.version import InvalidVersion, Version

        try:
            return self.tested is not None and Version(self.installed or "") > Version(self.tested)
        except InvalidVersion:
            return False

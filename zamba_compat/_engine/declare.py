"""What an adapter declares. Nothing here imports the library it is for.

Everything below runs on `import zamba_compat`: plain classes, since the dataclasses module costs a third of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from ..errors import AdapterError
from .releases import checked_bounds
from .targets import Role, Signature

__all__ = ["GROUPS", "GUARDING", "Adapter", "Patch", "Role"]

Factory = Callable[[Any], Any]

GROUPS = (
    "release", "config", "tying", "saving", "loading", "placement", "quantization", "numbers", "speed", "finetuning",
    "merging",
)  # fmt: skip
"""What an adapter is for. The adapters of one library and group stand or fall together."""

GUARDING = frozenset({"config", "tying", "saving", "loading", "placement", "quantization", "numbers"})
"""The groups without which a result can be wrong."""


class Patch:
    """One attribute to replace.

    Attributes:
        target: "package.module:Class.attribute" or "package.module:function". The module must be the one
            whose execution makes the attribute, no lazy package above it. A function that other modules
            import by name needs a target in each of them.
        replace: `replace(original) -> replacement`, called when the patch is applied. `original` is the
            function inside a static method, class method, property or cached property, and the replacement is
            put back into one of the same kind; any other value is handed over as it is, and None if there is
            none. Preferred is a function that imports what it needs when it is called. The other form,
            "package.module:factory", is imported when the patch is applied: for a replacement so long that it
            wants a module with torch imported at its top.
        signature: the parameter names the original must have, in order, `*args` and `**kwargs` with their
            stars. `...` stands for any number of others, a `Role` for a parameter by any of its names. None
            compares nothing.
        optional: the attribute is legitimately absent in part of the pinned range.
        add: the owner must not hold the attribute itself; reverting deletes it.
    """

    __slots__ = ("add", "optional", "replace", "signature", "target")

    def __init__(
        self,
        *,
        target: str,
        replace: Factory | str,
        signature: Signature | None = None,
        optional: bool = False,
        add: bool = False,
    ) -> None:
        if not _is_target(target):
            raise AdapterError("A malformed target.", where=target, remedy='Write "package.module:Class.attribute".')
        if isinstance(replace, str) and not _is_target(replace):
            raise AdapterError(
                f"A malformed replacement {replace!r}.",
                where=target,
                remedy='Write "package.module:factory", or pass the factory itself.',
            )
        if add and (optional or signature is not None):
            raise AdapterError(
                "An attribute to add has no original to be optional or to compare.",
                where=target,
                remedy="Leave optional and signature out.",
            )
        self.target, self.replace, self.signature = target, replace, signature
        self.optional, self.add = optional, add

    def __repr__(self) -> str:
        return f"Patch({self.target!r})"

    @property
    def module(self) -> str:
        """The module that holds the target."""
        return self.target.partition(":")[0]

    @property
    def path(self) -> str:
        """The target's dotted path inside its module."""
        return self.target.partition(":")[2]

    def factory(self) -> Factory:
        """The function that makes the replacement, imported now if it was given by name."""
        if not isinstance(self.replace, str):
            return self.replace
        module, _, path = self.replace.partition(":")
        factory: Any = importlib.import_module(module)
        for step in path.split("."):
            factory = getattr(factory, step)
        made: Factory = factory
        return made


class Adapter:
    """What mends one upstream defect in the releases that have it.

    Attributes:
        name: words joined by hyphens, unique in a registry.
        library: the distribution that has the defect.
        since: the first release that has it, or the first that this adapter is for.
        fixed: the first release that no longer has it, or has it in another form; None while it is open. It is the
            defect's own bound: an adapter never ends where testing ends. Which releases were tested stands in
            verified.json.
        group: what it is for, one of `GROUPS`.
        needs: groups of the same library without which it cannot do its work.
        upstream: the upstream issues and pull requests, or "none known".
        patches: the attributes to replace. For a single one, `target`, `replace` and the rest may be given
            instead.
        relies: further functions, as targets are written, that the replacement counts on. In a release that was not
            tested they must be as they were in one that was.
        summary: one line; by default the first docstring line of the module that declares the adapter.
        condition: called once per arming, when the first of the adapter's modules has been imported; returns
            a reason not to apply it, or None.
        ends: what the release `fixed` did, for `status()`: "fixed" is shown as "fixed in 5.17"; "continued by NAME" if
            it has the defect in a form that another adapter is for.

    Raises:
        AdapterError: at construction, if any of this is malformed.
    """

    __slots__ = (
        "condition", "ends", "fixed", "group", "library", "name", "needs", "patches", "relies", "since", "summary",
        "upstream",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        library: str,
        since: str,
        group: str,
        upstream: str,
        fixed: str | None = None,
        needs: tuple[str, ...] = (),
        patches: tuple[Patch, ...] = (),
        relies: tuple[str, ...] = (),
        summary: str = "",
        condition: Callable[[], str | None] | None = None,
        ends: str = "fixed",
        target: str | None = None,
        replace: Factory | str | None = None,
        signature: Signature | None = None,
        optional: bool = False,
        add: bool = False,
    ) -> None:
        where = f"adapter {name}"
        if not all(word.isascii() and word.isalnum() and word == word.lower() for word in name.split("-")):
            raise AdapterError("A malformed name.", where=where, remedy="Write lower-case words joined by hyphens.")
        checked_bounds(library, since, fixed, where=where)
        for word in (group, *needs):
            if word not in GROUPS:
                raise AdapterError(f"There is no group {word!r}.", where=where, remedy=f"Groups: {', '.join(GROUPS)}.")
        if (target is None) != (replace is None) or (target is None) != bool(patches):
            raise AdapterError(
                "Neither one target nor patches, or both.",
                where=where,
                remedy="Give target and replace, or patches.",
            )
        if target is not None and replace is not None:
            patches = (Patch(target=target, replace=replace, signature=signature, optional=optional, add=add),)
        elif signature is not None or optional or add:
            raise AdapterError(
                "signature, optional and add without a target.",
                where=where,
                remedy="Give them to the patches.",
            )
        summary = summary or _first_docstring_line()
        if not summary or not upstream:
            raise AdapterError(
                "No summary or no upstream reference.",
                where=where,
                remedy='Open the declaring module with a docstring; write "none known" if nothing is.',
            )
        for target in relies:
            if not _is_target(target):
                raise AdapterError("A malformed target.", where=target, remedy='Write "package.module:function".')
        self.name, self.library, self.since, self.fixed = name, library, since, fixed
        self.group, self.needs, self.upstream, self.ends = group, needs, upstream, ends
        self.patches, self.relies, self.summary, self.condition = patches, relies, summary, condition
        if len(set(self.targets)) < len(patches):
            raise AdapterError("A target named twice.", where=where, remedy="Give each target one patch.")

    def __repr__(self) -> str:
        return f"Adapter({self.name!r})"

    @property
    def requires(self) -> str:
        """The releases it is for, as a requirement: "transformers>=5.1,<5.17"."""
        return f"{self.library}>={self.since}" + ("" if self.fixed is None else f",<{self.fixed}")

    @property
    def modules(self) -> tuple[str, ...]:
        """Every module that holds a target."""
        return tuple(dict.fromkeys(patch.module for patch in self.patches))

    @property
    def targets(self) -> tuple[str, ...]:
        """Every target, in the order they are patched."""
        return tuple(patch.target for patch in self.patches)


def _is_target(text: str) -> bool:
    module, colon, path = text.partition(":")
    return bool(colon) and all(name.isidentifier() for name in (*module.split("."), *path.split(".")))


def _first_docstring_line() -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return str(frame.f_globals.get("__doc__") or "").strip().partition("\n")[0]

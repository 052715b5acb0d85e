"""One attribute of one class or module: find it, compare its signature, replace it, put it back."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from types import EllipsisType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect import Parameter

MARK = "__zamba_compat__"


class Role:
    """A parameter by what it is for: any of several names, which releases have given it in turn.

    Where a release was not tested, a new name in its place is taken too if the replacement binds by position
    (`Role.positional`), and what the function computes is then compared with what is right.
    """

    __slots__ = ("names", "positional")

    def __init__(self, *names: str, positional: bool = False) -> None:
        self.names, self.positional = names, positional

    def __str__(self) -> str:
        return "/".join(self.names)


Signature = tuple[str | EllipsisType | Role, ...]


class Drift(Exception):
    """A target that is not what its pin says: the message tells how, without naming the target."""


class _Missing:
    def __repr__(self) -> str:
        return "<missing>"


MISSING: Any = _Missing()


class Slot:
    """An attribute by its owner, a class or a module, and its name."""

    __slots__ = ("name", "owner")

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slot) and self.owner is other.owner and self.name == other.name

    def __hash__(self) -> int:
        return hash((id(self.owner), self.name))

    @property
    def raw(self) -> Any:
        """What the owner itself holds, descriptors unbound; MISSING when it holds nothing or inherits it."""
        return vars(self.owner).get(self.name, MISSING)

    @property
    def inherited(self) -> Any:
        """What the owner would have without an attribute of its own, descriptors unbound; else MISSING."""
        bases = self.owner.__mro__[1:] if isinstance(self.owner, type) else ()
        return next((vars(base)[self.name] for base in bases if self.name in vars(base)), MISSING)

    def put(self, raw: Any) -> None:
        """Make the owner hold `raw`, or nothing if it is MISSING."""
        if raw is MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, raw)


def find(module: ModuleType, path: str) -> Slot:
    """The slot at a dotted path in a module; the attribute itself need not exist.

    Raises:
        Drift: if an owner on the way is absent, or is neither a class nor a module.
    """
    *owners, name = path.split(".")
    owner: Any = module
    for step in owners:
        owner = getattr(owner, step, MISSING)
        if owner is MISSING:
            raise Drift(f"is missing: there is no {step}")
        if not isinstance(owner, type | ModuleType):
            raise Drift(f"cannot be replaced: {step} is neither a class nor a module")
    return Slot(owner, name)


def unwrap(raw: Any, slot: Slot) -> tuple[Any, Callable[[Any], Any]]:
    """The function inside a descriptor, and how to put another one into a descriptor of the same kind.

    A subclass of a descriptor may be built in another way, so it is handed on as it is.
    """
    if type(raw) in (staticmethod, classmethod):
        return raw.__func__, type(raw)
    if type(raw) is property:
        return raw.fget, lambda get: property(get, raw.fset, raw.fdel, raw.__doc__)
    if type(raw) is functools.cached_property:
        return raw.func, lambda function: _named(functools.cached_property(function), slot)
    return raw, lambda replacement: replacement


def check(original: Any, signature: Signature, *, lenient: bool = False) -> None:
    """Compare the parameters of the original with the names expected.

    Args:
        lenient: take any name for a `Role` that is bound by position.

    Raises:
        Drift: if they differ, or if the original has no signature.
    """
    import inspect  # as much as half of `import zamba_compat`, and needed only once a target is imported

    try:
        parameters = [_spelled(parameter) for parameter in inspect.signature(original).parameters.values()]
    except (TypeError, ValueError) as error:
        raise Drift(f"has no signature to compare ({error})") from error
    pattern = "".join(_pattern(name, lenient) for name in signature)
    if re.fullmatch(pattern, "".join(f"{name}," for name in parameters)) is None:
        expected = ", ".join("..." if name is ... else str(name) for name in signature)
        raise Drift(f"has the parameters ({', '.join(parameters)}), expected ({expected})")


def _pattern(expected: str | EllipsisType | Role, lenient: bool) -> str:
    if isinstance(expected, EllipsisType):
        return r"(?:[^,]+,)*"
    if isinstance(expected, str):
        return re.escape(f"{expected},")
    return r"[^,*]+," if lenient and expected.positional else rf"(?:{'|'.join(map(re.escape, expected.names))}),"


def stamp(replacement: Any, original: Any, adapter: str) -> Any:
    """A copy of a replacement function that carries the original's metadata and the adapter's name.

    A copy, so that a function installed at several targets, or twice, is never changed itself. Anything but a
    plain function comes back as it is. `inspect.signature` shows the original's parameters, as after
    `functools.wraps`, unless the replacement has a `__signature__` of its own.
    """
    if not isinstance(replacement, FunctionType):
        return replacement
    copy = FunctionType(
        replacement.__code__,
        replacement.__globals__,
        replacement.__name__,
        replacement.__defaults__,
        replacement.__closure__,
    )
    copy.__kwdefaults__ = replacement.__kwdefaults__
    functools.update_wrapper(copy, replacement)
    copy.__dict__.pop("__wrapped__")
    copy.__dict__.update(vars(replacement))
    # Not from a class: asking for its annotations would write them into it.
    if callable(original) and not isinstance(original, type):
        functools.update_wrapper(copy, original, updated=())
        for name, value in getattr(original, "__dict__", {}).items():
            copy.__dict__.setdefault(name, value)
    setattr(copy, MARK, adapter)
    return copy


def chain(raw: Any) -> Iterator[Any]:
    """A function and everything it wraps, outermost first, as far as `__wrapped__` tells."""
    seen: set[int] = set()
    while raw is not None and id(raw) not in seen:
        seen.add(id(raw))
        yield raw
        raw = getattr(raw, "__wrapped__", None)


def _named(descriptor: functools.cached_property[Any], slot: Slot) -> functools.cached_property[Any]:
    descriptor.__set_name__(slot.owner, slot.name)
    return descriptor


def _spelled(parameter: Parameter) -> str:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    return f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name

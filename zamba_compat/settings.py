"""What a user can choose: `zamba_compat.configure(...)`, or environment variables of the same names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import ZambaCompatError

DIVERGENT = ("keep", "first", "mean", "error")


class Settings(NamedTuple):
    """The choices in force.

    Attributes:
        divergent: what `from_pretrained` does when the stored copies of a shared tensor differ.
            "keep" loads every copy exactly (num_mem_blocks becomes the number of positions), "first" takes the copy
            of the first layer, "mean" the mean of all, "error" raises `DivergentCopiesError`.
            Environment: ZAMBA_COMPAT_DIVERGENT.
        quantize_shared: whether bitsandbytes quantizes the shared blocks when a checkpoint is quantized while it is
            loaded. False keeps them in 16 bits. Environment: ZAMBA_COMPAT_QUANTIZE_SHARED, 1 or 0.
        native: whether the kernels in C are used where they were compiled, see `zamba_compat.cpu.native`. False leaves
            everything to PyTorch and bitsandbytes. Environment: ZAMBA_COMPAT_NATIVE, 1 or 0.
        disable: adapters and groups of adapters that are left off, their names separated by commas; `status()` has
            the names. Environment: ZAMBA_COMPAT_DISABLE.
        unverified: what happens when, in a release of transformers that was not tested, a check after loading or
            saving finds a fault: "error" raises `UnverifiedReleaseError`, "warn" logs a warning, "ignore" checks
            nothing. Environment: ZAMBA_COMPAT_UNVERIFIED.
    """

    divergent: str = "keep"
    quantize_shared: bool = True
    native: bool = True
    disable: str = ""
    unverified: str = "error"


_choices: dict[str, tuple[str | bool, ...] | None] = {
    "divergent": DIVERGENT,
    "quantize_shared": (True, False),
    "native": (True, False),
    "disable": None,
    "unverified": ("error", "warn", "ignore"),
}
_words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_configured: dict[str, Any] = {}
on_change: dict[str, Callable[[], None]] = {}
"""What is called when `configure` has changed a setting, by its name."""


def _checked(name: str, value: Any, where: str) -> Any:
    allowed = _choices[name]
    if allowed is None:
        return value if isinstance(value, str) else ",".join(value)
    if value not in allowed:
        choices = ", ".join(map(str, allowed))
        raise ZambaCompatError(
            f"{value!r} is not a choice for {name}.", where=where, remedy=f"Choose one of {choices}."
        )
    return value


def _from_environment(name: str, variable: str) -> Any:
    word = os.environ[variable].lower()
    value = _words.get(word, word) if True in (_choices[name] or ()) else word
    return _checked(name, value, f"environment variable {variable}")


def setting(name: str) -> Any:
    """One of the settings in force, by its name."""
    if name in _configured:
        return _configured[name]
    variable = f"ZAMBA_COMPAT_{name.upper()}"
    if os.environ.get(variable):
        return _from_environment(name, variable)
    return Settings._field_defaults[name]


def disabled() -> frozenset[str]:
    """The names of adapters and groups that are switched off."""
    return frozenset(name.strip() for name in setting("disable").split(",") if name.strip())


def settings() -> Settings:
    """The settings in force: what `configure` was told, else the environment, else the defaults."""
    return Settings(*map(setting, Settings._fields))


def configure(**choices: Any) -> Settings:
    """Set choices for this process and return the settings in force; `None` gives a choice back to the environment.

    Raises:
        ZambaCompatError: a name or value that does not exist.
    """
    for name in choices:
        if name not in _choices:
            raise ZambaCompatError(
                f"there is no setting {name!r}.", where="configure", remedy=f"Settings: {', '.join(_choices)}."
            )
    for name, value in choices.items():
        if value is None:
            _configured.pop(name, None)
        else:
            _configured[name] = _checked(name, value, "configure")
    for name in choices:
        if name in on_change:
            on_change[name]()
    return settings()

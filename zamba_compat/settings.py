"""What a user can choose: `zamba_compat.configure(...)`, or environment variables of the same names."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import ZambaCompatError

DIVERGENT = ("keep", "first", "mean", "error")


@dataclass(frozen=True)
class Settings:
    """The choices in force.

    Attributes:
        divergent: what `from_pretrained` does when the stored copies of a shared tensor differ.
            "keep" loads every copy exactly (num_mem_blocks becomes the number of positions), "first" takes the copy
            of the first layer, "mean" the mean of all, "error" raises `DivergentCopiesError`.
            Environment: ZAMBA_COMPAT_DIVERGENT.
    """

    divergent: str = "keep"


_choices = {"divergent": DIVERGENT}
_configured: dict[str, Any] = {}


def _checked(name: str, value: Any, where: str) -> Any:
    if value not in _choices[name]:
        raise ZambaCompatError(
            f"{value!r} is not a choice for {name}.", where=where, remedy=f"Choose one of {', '.join(_choices[name])}."
        )
    return value


def settings() -> Settings:
    """The settings in force: what `configure` was told, else the environment, else the defaults."""
    current = Settings()
    for field in fields(Settings):
        variable = f"ZAMBA_COMPAT_{field.name.upper()}"
        if field.name in _configured:
            current = replace(current, **{field.name: _configured[field.name]})
        elif os.environ.get(variable):
            value = _checked(field.name, os.environ[variable].lower(), f"environment variable {variable}")
            current = replace(current, **{field.name: value})
    return current


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
    return settings()

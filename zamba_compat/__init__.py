"""Zamba2 checkpoints that load, compute and save right in every transformers release that has Zamba2.

`import zamba_compat` arms version-pinned adapters for the libraries that are installed; they are applied when the
modules they mend are imported, so this import itself loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .adapters import AdapterStatus, Registry
from .errors import ZambaCompatError
from .settings import configure, settings

if TYPE_CHECKING:
    from .modules import separate_modules, share_modules
    from .sharing import SharingMap

__version__ = "0.1.0"
__all__ = [
    "AdapterStatus",
    "SharingMap",
    "ZambaCompatError",
    "configure",
    "install",
    "separate_modules",
    "settings",
    "share_modules",
    "status",
    "uninstall",
]

_registry: Registry | None = None


def registry() -> Registry:
    """The registry of all adapters, created at its first use."""
    global _registry
    if _registry is None:
        from .patches import ADAPTERS

        _registry = Registry(ADAPTERS)
    return _registry


def install() -> None:
    """Arm every adapter: mend what is imported already, and the rest when it is imported. Twice is as once.

    Raises:
        AdapterError: a library inside its pinned range is not what the pin says; nothing is left half done.
    """
    registry().arm()


def uninstall() -> None:
    """Take every adapter back; each mended class and module is left as it was found."""
    from .patches.bitsandbytes.cpu_packing import unpack_all

    unpack_all()  # bitsandbytes by itself reads the packed form wrong
    registry().disarm()


def __getattr__(name: str) -> Any:
    if name == "SharingMap":  # with json and its own patterns it would be a third of this import
        from .sharing import SharingMap

        return SharingMap
    if name in ("separate_modules", "share_modules"):
        from . import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def status() -> list[AdapterStatus]:
    """One entry per adapter: applied, armed, not needed or refused, and why."""
    return registry().status()


install()

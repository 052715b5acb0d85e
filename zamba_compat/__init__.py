"""Zamba2 checkpoints that load, compute and save right in every transformers release that has Zamba2.

`import zamba_compat` arms adapters for the releases of the libraries that are installed; they are applied when the
modules they mend are imported, so this import itself loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._engine.registry import AdapterStatus, Registry
from ._version import __version__
from .errors import ZambaCompatError
from .settings import configure, disabled, on_change, setting, settings

if TYPE_CHECKING:
    from .layout.sharing import SharingMap
    from .runtime.modules import separate_modules, share_modules

__all__ = [
    "AdapterStatus",
    "SharingMap",
    "ZambaCompatError",
    "__version__",
    "configure",
    "install",
    "separate_modules",
    "settings",
    "share_modules",
    "status",
    "uninstall",
]

_registry: Registry | None = globals().get("_registry")  # a reload keeps what the first import has armed


def registry() -> Registry:
    """The registry of all adapters, created at its first use."""
    global _registry
    if _registry is None:
        from .patches import ADAPTERS, JUDGED, VERIFIED
        from .runtime import postconditions

        _registry = Registry(ADAPTERS, verified=VERIFIED, judged=JUDGED, disabled=_disabled, quiet=_quiet)
        on_change["disable"] = _rearm
        postconditions.registry = _registry
    return _registry


def _disabled() -> frozenset[str]:
    """What the user switched off; a warning names what does not exist, since it switches nothing off."""
    names = disabled()
    unknown = names - registry().names() if names else names
    if unknown:
        import logging

        logging.getLogger("zamba_compat").warning(
            "there is no adapter or group %s to disable; zamba-compat doctor --all lists them.",
            ", ".join(sorted(unknown)),
        )
    return names


def _quiet() -> bool:
    return bool(setting("unverified") == "ignore")


def _rearm() -> None:
    """Take all adapters back and arm those that are wanted now, if they are armed."""
    if registry().armed:
        uninstall()
        install()


def install() -> None:
    """Arm every adapter: mend what is imported already, and the rest when it is imported. Twice is as once.

    Raises:
        AdapterError: a tested release of a library is not what was published; nothing is left half done.
    """
    registry().arm()


def uninstall() -> None:
    """Take every adapter back; each mended class and module is left as it was found."""
    from .patches.bitsandbytes.cpu_packing import unpack_all

    unpack_all()  # bitsandbytes by itself reads the packed form wrong
    registry().disarm()


def __getattr__(name: str) -> Any:
    if name == "SharingMap":  # with json and its own patterns it would be a third of this import
        from .layout.sharing import SharingMap

        return SharingMap
    if name in ("separate_modules", "share_modules"):
        from .runtime import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def status() -> list[AdapterStatus]:
    """One entry per adapter: applied, armed, not needed or refused, and why."""
    return registry().status()


install()

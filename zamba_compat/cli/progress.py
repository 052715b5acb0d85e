"""What shows how far a long pass is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zamba_compat.checkpoint.progress import Bar, Progress


def wanted(options: argparse.Namespace) -> bool:
    """Whether somebody looks at standard error, and --quiet is not given."""
    return not options.quiet and sys.stderr.isatty()


def progress(options: argparse.Namespace) -> Progress | None:
    """What makes bars on standard error, None where none are wanted."""
    return _bar if wanted(options) else None


def telling(options: argparse.Namespace) -> Callable[[str, str], object] | None:
    """What prints which model is loaded and what is done to it, None where nobody wants to know."""
    return _tell if wanted(options) else None


def _tell(model: str, what: str) -> None:
    print(f"{model}: {what} ...", file=sys.stderr)


def _bar(what: str, total: int) -> Bar:
    """Bytes, rate and time left."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    shown: Bar = tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=False)
    return shown

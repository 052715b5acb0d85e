"""huggingface_hub's progress bars, for the commands that show none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_shown = True


def show(shown: bool) -> None:
    """Whether downloads and uploads of this package show huggingface_hub's bars; they do unless this says otherwise."""
    global _shown
    _shown = shown


@contextmanager
def as_wished() -> Iterator[None]:
    """Inside, huggingface_hub shows bars only if they are wanted; HF_HUB_DISABLE_PROGRESS_BARS goes before that."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if _shown or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()

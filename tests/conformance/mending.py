"""What mends a test: the marker `mended_by`, and from the adapters' bounds the releases in which it fails without them.

    @pytest.mark.mended_by("zamba2-tie-map")
    @pytest.mark.mended_by(*SCANS, when=lambda p: p["prompt"] > 16)
    @pytest.mark.mended_by("zamba2-rehydrate", since="5.0", fixed="5.4")

In every release in which one of the named adapters applies, the test fails on stock. `when` is asked about the test's
parameters. `since` and `fixed` narrow the adapter's bounds where the test shows one of several defects that it mends.

`relies_on` takes the same and says something weaker: with this adapter alone switched off the test fails, whatever it
does on stock. `tools/check_adapters.py` reads both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
Params = Mapping[str, Any]

LISTING = """
import json
from zamba_compat.patches import ADAPTERS
print(json.dumps([[a.name, a.library, a.since, a.fixed, a.group] for a in ADAPTERS]))
"""


class Bounds(NamedTuple):
    """The releases of a library that have a defect: from `since` on and before `fixed`, if it is fixed."""

    library: str
    since: str
    fixed: str | None
    group: str = ""

    def hold(self, release: str) -> bool:
        here = Version(release)
        return Version(self.since) <= here and (self.fixed is None or here < Version(self.fixed))


@cache
def bounds() -> dict[str, Bounds]:
    """Of every adapter, by name; read in another process, since a stock run must not import zamba_compat."""
    command = [sys.executable, "-c", LISTING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return {name: Bounds(*rest) for name, *rest in json.loads(done.stdout)}


@cache
def installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def adapters_of(item: pytest.Item, release: str, marker: str = "mended_by") -> Iterator[str]:
    """The adapters that the test names and that apply in a release of transformers.

    Raises:
        pytest.UsageError: there is no adapter of that name.
    """
    callspec = getattr(item, "callspec", None)
    params: Params = callspec.params if callspec is not None else {}
    for mark in item.iter_markers(marker):
        if not mark.kwargs.get("when", lambda _: True)(params):
            continue
        for name in mark.args:
            if name not in bounds():
                raise pytest.UsageError(f"{item.nodeid} names an adapter that does not exist: {name}")
            if applies(bounds()[name], release, **{k: v for k, v in mark.kwargs.items() if k in ("since", "fixed")}):
                yield name


def applies(own: Bounds, release: str, since: str = "0", fixed: str | None = None) -> bool:
    here = release if own.library == "transformers" else installed(own.library)
    return here is not None and own.hold(here) and Bounds("transformers", since, fixed).hold(release)


# Adapters by what they mend, in the order of the releases they are for.

SCANS = (  # before 5.15: the state is lost after chunk_size tokens, and after a cache
    "zamba2-plain-scan-hybrid-cache",
    "zamba2-plain-scan-layer-cache",
    "zamba2-plain-scan-numbered-states",
)
LATER_SCANS = ("zamba2-plain-scan-hidden-parameters", "zamba2-plain-scan")  # limits of dt, padding between tokens


def pattern(params: Params) -> str:
    """Of the model that a test builds: tests that name none build the 7B's."""
    return str(params.get("pattern", params.get("case", "7B")))


def several_blocks(params: Params) -> bool:
    return pattern(params) != "1.2B"


def builds(when: Callable[[Params], bool] = lambda _: True) -> list[pytest.MarkDecorator]:
    """Marks of a test that builds a Zamba2 model: 5.0 builds none; until 5.16 no release builds several blocks."""
    return [
        pytest.mark.mended_by("zamba2-block-order", when=when, fixed="5.1"),
        pytest.mark.mended_by("zamba2-block-order", when=lambda p: when(p) and several_blocks(p)),
        pytest.mark.mended_by(
            "zamba2-no-rotary", when=lambda p: when(p) and pattern(p) in ("2.7B", "hybrid-0")
        ),  # built without use_mem_rope
    ]

"""For every test: offline, quiet, one thread, the same seeds. pyproject.toml has the paths and markers."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch or transformers: both read these only then.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose time to a second one
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Hundreds of tests start Python anew. Compiling torch and transformers each time would take a third of the run.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).parents[1] / "build" / "bytecode"))

# A shell ignores them for what it runs in the background, and children inherit that; the tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = ["_matrix.recorder"]

if "CI" in os.environ:
    # The same examples every time: what CI says depends on the change alone. Elsewhere the search goes on.
    from hypothesis import HealthCheck, settings

    slow_machine = [HealthCheck.too_slow]
    settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=slow_machine)
    settings.load_profile("ci")

STOCK = os.environ.get("ZAMBA_COMPAT_TEST_STOCK") == "1"
CONFORMANCE = Path(__file__).with_name("conformance")


def pytest_itemcollected(item: pytest.Item) -> None:
    if CONFORMANCE in item.path.parents:
        item.add_marker("conformance")


def pytest_collection_finish(session: pytest.Session) -> None:
    if STOCK and "zamba_compat" in sys.modules:
        raise pytest.UsageError("a stock run must not import zamba_compat, but what was collected does")


@pytest.fixture(scope="session")
def armed() -> bool:
    """Whether zamba_compat is at work; armed here unless this is a stock run."""
    if STOCK:
        assert "zamba_compat" not in sys.modules, "a stock run must not import zamba_compat"
        return False
    import zamba_compat

    zamba_compat.install()
    return True


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """No test leaves variables behind: `zamba-compat run` arms every process that is started after it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name != "PYTEST_CURRENT_TEST"})


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same seeds, of whatever generators are loaded."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)

"""Arm the adapters in an interpreter that `zamba-compat run` has started, or that one of its children has.

Another sitecustomize that this one hides is run afterwards. Where zamba_compat cannot be imported (in another
environment's Python), nothing happens.
"""

import contextlib
import os
import sys


def _run_hidden() -> None:
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


with contextlib.suppress(ImportError):
    import zamba_compat  # noqa: F401
_run_hidden()  # last: it may fail, which Python reports and goes on

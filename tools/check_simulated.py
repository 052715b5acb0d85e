"""The path with the fused kernels, on stand-ins for them, under any release: zamba_compat beside stock.

    python tools/check_simulated.py                            # ten releases; writes the table in docs/gpu.md
    python tools/check_simulated.py --releases 5.23.0 --only packed

Each figure is a relative error against the float64 reference; an exception's name where one was raised. Exit status 1
when a case of zamba_compat is off by more than its bound (tests/support/simulated.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]
RELEASES = ["4.49.0", "4.53.3", "4.57.6", "5.0.0", "5.9.0", "5.14.1", "5.15.1", "5.16.1", "5.23.0", "5.24.0"]
DOCUMENT, BEGIN, END = ROOT / "docs" / "gpu.md", "<!-- simulated -->", "<!-- /simulated -->"


def run_here(stock: bool, only: str) -> dict[str, Any]:
    """The cases under the release that is installed: by pattern and name, the error or what was raised."""
    import warnings

    warnings.simplefilter("ignore")
    if not stock:
        import zamba_compat  # noqa: F401
    import torch
    from transformers.utils import logging

    from support import simulated

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for pattern in simulated.PATTERNS:
            bench = simulated.Bench(pattern, Path(scratch) / pattern, stock)
            for name, case in simulated.CASES.items():
                if only not in name:
                    continue
                try:
                    error = case.run(bench)
                except Exception as raised:
                    found[f"{pattern}/{name}"] = f"{type(raised).__name__}: {str(raised)[:160]}"
                else:
                    found[f"{pattern}/{name}"] = error
    return found


def run_release(release: str, stock: bool, only: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tools" / "overlays.py"), "run", release, sys.executable, __file__]
    command += ["--here", "--only", only, *(["--stock"] if stock else [])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{release}: {done.stderr.strip()[-2000:]}")
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def is_wrong(name: str, value: Any) -> bool:
    from support import simulated

    return isinstance(value, str) or not value <= simulated.CASES[name.partition("/")[2]].allowed


def cell(name: str, armed: Any, stock: Any) -> str:
    """Both figures of a case, the worse of both patterns."""

    def shown(value: Any) -> str:
        text = value.partition(":")[0] if isinstance(value, str) else f"{value:.0e}".replace("e-0", "e-")
        return f"**{text}**" if is_wrong(name, value) else text

    return f"{shown(armed)} / {shown(stock)}"


def worst(results: dict[str, Any], name: str) -> Any:
    """The worse figure of both patterns, without one that the release cannot run at all, which is another defect."""
    from support import simulated

    runs = [pattern for pattern in simulated.PATTERNS if not isinstance(results[f"{pattern}/prompt, eval"], str)]
    values = [results[f"{pattern}/{name}"] for pattern in runs or simulated.PATTERNS]
    raised = [value for value in values if isinstance(value, str)]
    return raised[0] if raised else max(values)


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    from support import simulated

    releases = [release for release in RELEASES if release in results]
    lines = ["| case | " + " | ".join(releases) + " |", "|---" * (len(releases) + 1) + "|"]
    for name in simulated.CASES:
        cells = [cell(f"/{name}", *(worst(results[r][kind], name) for kind in ("armed", "stock"))) for r in releases]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def splice(text: str, made: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", nargs="*", default=RELEASES)
    parser.add_argument("--only", default="", help="cases whose name holds this; nothing is written then")
    parser.add_argument("--stock", action="store_true", help="with --here: without zamba_compat")
    parser.add_argument("--results", type=Path, help="a JSON file for what was found, which is gone on with")
    parser.add_argument("--here", action="store_true", help="the installed release, as JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(run_here(options.stock, options.only)))
        return 0
    results: dict[str, dict[str, dict[str, Any]]] = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    wrong = 0
    for release in options.releases:
        found, began = results.setdefault(release, {}), time.monotonic()
        for kind in ("armed", "stock"):
            if kind not in found:
                found[kind] = run_release(release, kind == "stock", options.only)
                if options.results:
                    options.results.write_text(json.dumps(results))
        for name, value in found["armed"].items():
            if is_wrong(name, value):
                wrong += 1
                print(f"{release} {name}: {value}", flush=True)
        bad = sum(is_wrong(*item) for item in found["stock"].items())
        took = time.monotonic() - began
        print(f"{release}: {len(found['armed'])} cases, stock wrong in {bad}, {took:.0f} s", flush=True)
    if not wrong and not options.only and set(RELEASES) <= results.keys():
        DOCUMENT.write_text(splice(DOCUMENT.read_text(encoding="utf-8"), table(results)), encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())

"""The long form of tests/faults: crashes, fuzzing, and what the documents say of them.

    python tools/faults.py                  # everything; writes docs/faults.json and docs/faults.md
    python tools/faults.py --docs           # docs/faults.md alone, from docs/faults.json
    python tools/faults.py --command NAME   # crash this command alone; all else stays as docs/faults.json has it

Exit status 1 when anything was lost or let in; then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]
os.environ["OMP_NUM_THREADS"] = "1"  # a fork has none of OpenMP's threads, and waits for them for ever
RESULTS, PAGE = ROOT / "docs" / "faults.json", ROOT / "docs" / "faults.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="make docs/faults.md alone")
    parser.add_argument("--kills", type=int, default=100, help="per command and kind of destination (default: 100)")
    parser.add_argument("--fuzz", type=float, default=120, help="seconds of fuzzing (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    parser.add_argument("--command", action="append", metavar="NAME", help="crash this one; again for more; no fuzzing")
    options = parser.parse_args()
    from faults import commands, table

    if not options.docs:
        results = json.loads(RESULTS.read_text()) if options.command else {"seed": options.seed}
        crashed = crash(options.command or commands.WRITING, options.kills, options.seed)
        for name in ("crashes", "phases"):
            results[name] = {**results.get(name, {}), **crashed[name]}
        results["survived"] = sum(sum(kinds.values()) for kinds in results["crashes"].values())
        results["lost"] = len(crashed["lost"])
        if not options.command:
            results["fuzzed"], results["bugs"] = fuzz(options.fuzz, options.seed)
        if results["lost"] or results["bugs"]:
            return 1
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(table.document(json.loads(RESULTS.read_text())), encoding="utf-8")
    return 0


def crash(commands: Sequence[str], kills: int, seed: int) -> dict[str, Any]:
    """Crash writing commands `kills` times with nothing at the destination and as often with an old one."""
    from faults.arena import build
    from faults.commands import METHODS, WRITING
    from faults.crashes import Bench, campaign

    crashes: dict[str, Counter[str]] = {}
    phases: dict[str, Counter[str]] = {}
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as top:
        for command in commands:
            crashes[command], phases[command] = Counter(), Counter()
            for old in (False, True):
                number = 2 * WRITING.index(command) + old
                arena = build(Path(top), Path(top, f"{command}-{old}", "arena"))
                arena.method = METHODS[number % len(METHODS)]
                tally = campaign(Bench(command, arena, old=old), kills, seed + number)
                crashes[command] += tally.crashes
                phases[command] += tally.phases
                lost += tally.lost
            print(f"{command}: {dict(crashes[command])}\n  killed while {dict(phases[command])}", flush=True)
    print("\n".join(lost))
    return {"crashes": crashes, "phases": phases, "lost": lost}


def fuzz(seconds: float, seed: int) -> tuple[dict[str, int], int]:
    """Fuzz every reader: target -> inputs, and how many were let in."""
    import importlib.util

    from fuzz.targets import TARGETS

    spec = importlib.util.spec_from_file_location("fuzz_tool", ROOT / "tools" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    found: tuple[dict[str, int], int] = tool.fuzz(list(TARGETS), seconds, seed)
    return found


if __name__ == "__main__":
    sys.exit(main())

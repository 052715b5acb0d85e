"""The long form of tests/faults: crashes, fuzzing, and what the documents say of them.

    python tools/faults.py                  # everything; writes docs/faults.json and docs/faults.md
    python tools/faults.py --docs           # docs/faults.md alone, from docs/faults.json

Exit status 1 when anything was lost or let in; then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

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
    options = parser.parse_args()
    if not options.docs:
        results = measure(options.kills, options.fuzz, options.seed)
        if results["lost"] or results["bugs"]:
            return 1
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    from faults import table

    PAGE.write_text(table.document(json.loads(RESULTS.read_text())), encoding="utf-8")
    return 0


def measure(kills: int, seconds: float, seed: int) -> dict[str, object]:
    """Crash every writing command `kills` times with nothing at its destination and as often with an old one; fuzz."""
    from collections import Counter

    from faults.arena import build
    from faults.commands import WRITING
    from faults.crashes import Bench, campaign
    from fuzz.targets import TARGETS

    crashes: dict[str, Counter[str]] = {}
    phases: dict[str, Counter[str]] = {}
    lost: list[str] = []
    total = 0
    with tempfile.TemporaryDirectory() as top:
        for number, command in enumerate(WRITING):
            crashes[command], phases[command] = Counter(), Counter()
            for old in (False, True):
                arena = build(Path(top), Path(top, f"{command}-{old}", "arena"))
                tally = campaign(Bench(command, arena, old=old), kills, seed + 2 * number + old)
                crashes[command] += tally.crashes
                phases[command] += tally.phases
                lost += tally.lost
            total += sum(crashes[command].values())
            print(f"{command}: {dict(crashes[command])}\n  killed while {dict(phases[command])}")
    print("\n".join(lost))
    import importlib.util

    spec = importlib.util.spec_from_file_location("fuzz_tool", ROOT / "tools" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    fuzzed, bugs = tool.fuzz(list(TARGETS), seconds, seed)
    return {
        "seed": seed,
        "crashes": crashes,
        "phases": phases,
        "survived": total - len(lost),
        "fuzzed": fuzzed,
        "lost": len(lost),
        "bugs": bugs,
    }


if __name__ == "__main__":
    sys.exit(main())

"""python -m faults.campaign COMMAND nothing|old KILLS SEED DIRECTORY: crash one command, print what came of it as JSON.

In a process of its own: a fork has none of the other threads that pytest's process has by then, and waits for them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    command, kind, kills, seed, top = sys.argv[1:]
    from faults.arena import build
    from faults.commands import METHODS
    from faults.crashes import Bench, campaign

    arena = build(Path(top), Path(top, "arena"))
    arena.method = METHODS[int(seed) % len(METHODS)]
    bench = Bench(command, arena, old=kind == "old")
    tally = campaign(bench, int(kills), int(seed))
    print(json.dumps({**vars(tally), "duration": bench.duration}))


if __name__ == "__main__":
    main()

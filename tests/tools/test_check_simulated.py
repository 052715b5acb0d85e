"""What the cases of the fused path find in stock transformers: a case that stock passes would show nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from check_simulated import is_wrong, splice, table

TOOL = Path(__file__).parents[2] / "tools" / "check_simulated.py"


@pytest.mark.parametrize("case", ["inner padding, eval", "4 heads: prompt, train", "packed samples, train"])
def test_stock_is_wrong(case: str) -> None:
    command = [sys.executable, str(TOOL), "--here", "--stock", "--only", case]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 and all(is_wrong(*item) for item in found.items())


def test_table() -> None:
    from support import simulated

    results = {f"{pattern}/{name}": 2e-7 for pattern in simulated.PATTERNS for name in simulated.CASES}
    broken = {**results, "7B/prompt, eval": "RuntimeError: sizes", "7B/gradients": "RuntimeError: sizes"}
    failing = {**results, "1.2B/gradients": 0.5}
    text = table({"5.23.0": {"armed": results, "stock": broken}, "4.57.6": {"armed": results, "stock": failing}})
    assert "| case | 4.57.6 | 5.23.0 |" in text
    assert "| gradients | 2e-7 / **5e-1** | 2e-7 / 2e-7 |" in text  # a pattern that stock cannot run at all is left out
    written = splice("a\n<!-- simulated -->\nold\n<!-- /simulated -->\nb", "new")
    assert written == "a\n<!-- simulated -->\nnew\n<!-- /simulated -->\nb"

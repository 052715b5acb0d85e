"""docs/faults.md says what the rows and the long run say."""

from __future__ import annotations

import json
from pathlib import Path

from faults import table
from faults.rows import CASES

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_rows_and_the_long_run() -> None:
    results = json.loads((ROOT / "docs" / "faults.json").read_text(encoding="utf-8"))
    assert results["lost"] == results["bugs"] == 0
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert page == table.document(results), "run: python tools/faults.py --docs"


def test_every_row_is_here_or_said_to_be_elsewhere() -> None:
    assert {case.row for case in CASES} | table.ELSEWHERE.keys() == set(range(1, table.ROWS + 1))

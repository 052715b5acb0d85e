"""Load, compute, save and load again by every quantizer of transformers that runs here; prints a table.

python tools/check_quantizers.py [--only WORD] [--models DIR] [--write FILE]

A row is right when the shared blocks are quantized and held once, the logits are those of a float32 model with the
dequantized weights (nearly, where activations are quantized too), and what is saved gives the same logits again, as it
is, with every block at every layer and with every block at its last layer alone; or when the library or transformers
itself says that it cannot, with the shared blocks or without. Exit status 1 for any other row. What is not installed
is named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import zamba_compat  # noqa: F401  before transformers
from _quantizers.checks import HEADER, check
from _quantizers.document import update
from _quantizers.rows import ROWS

TINY = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=TINY, help="where base/ and its text are")
    parser.add_argument("--only", default="", help="the rows that have this in their names")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the rows into docs/quantizers.md or another")
    options = parser.parse_args()
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    wrong, absent = 0, []
    print(HEADER, flush=True)
    for row in ROWS:
        if options.only not in row.name:
            continue
        if importlib.util.find_spec(row.needs.partition(".")[0]) is None:
            absent.append(f"{row.name} ({row.needs})")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            result = check(row, options.models, Path(temporary))
        print(result.line, flush=True)
        if options.write is not None:
            update(options.write, {row.name: result.line}, [row.name for row in ROWS])
        wrong += not result.right
    if absent:
        print(f"\nnot installed: {', '.join(absent)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

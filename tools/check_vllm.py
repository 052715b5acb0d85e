"""Whether vLLM's own loader of Zamba2 takes checkpoints; its layers have stand-ins for kernels. Prints a table.

python tools/check_vllm.py VLLM CHECKPOINT... [--tensor-parallel N]

VLLM is the directory that holds vllm/, of a release's source or its unpacked wheel; nothing of it is installed. Its
model, its linear layers, its parameters of compressed-tensors' schemes, its mapping of names and its load_weights run
as they are (tools/_vllm/stand_ins.py lists them). A checkpoint is right when every key is read and every element of
every parameter is written, on every rank. Exit status 1 for any other.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import zamba_compat  # noqa: F401  before transformers
from _vllm.loading import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", metavar="VLLM", type=Path, help="the directory that holds vllm/")
    parser.add_argument("checkpoints", metavar="CHECKPOINT", type=Path, nargs="+")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="ranks that share every layer")
    options = parser.parse_args()
    if not (options.vllm / "vllm" / "model_executor" / "models" / "zamba2.py").is_file():
        parser.error(f"{options.vllm} holds no vllm/model_executor/models/zamba2.py")
    logging.disable(logging.WARNING)
    print("| checkpoint | rank | keys | unread | parameters | unfilled | error |\n|---|---|---|---|---|---|---|")
    wrong = 0
    for checkpoint in options.checkpoints:
        for rank in range(options.tensor_parallel):
            found = load(options.vllm, checkpoint, rank, options.tensor_parallel)
            cells = [checkpoint.name, rank, found.keys, _some(found.unread), found.parameters, _some(found.unfilled)]
            print(f"| {' | '.join(map(str, cells))} | {found.error or '-'} |", flush=True)
            wrong += not found.right
    return 1 if wrong else 0


def _some(names: tuple[str, ...]) -> str:
    return f"**{len(names)}**: {', '.join(names[:3])}" if names else "0"


if __name__ == "__main__":
    sys.exit(main())

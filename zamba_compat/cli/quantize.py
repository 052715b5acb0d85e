"""Quantize a checkpoint with bitsandbytes, tensor by tensor, without building the model.

What from_pretrained and save_pretrained would write, bit for bit: each linear weight of the layers is quantized once, a
shared one too. The embedding, the head and the convolutions stay as they are. SRC may be in any layout that
convert-checkpoint reads; DST is in the hub layout.
"""

from __future__ import annotations

import argparse

from zamba_compat.cli import convert

EXAMPLES = """
  zamba-compat quantize SRC DST
  zamba-compat quantize OWNER/NAME DST --push OWNER/NEW --public
  zamba-compat quantize SRC DST --double-quant --compute-dtype bfloat16
  zamba-compat quantize SRC DST --method int8 --keep-shared-16bit
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help = "4-bit normal float (nf4, the default), 4-bit float, 8-bit integers"
    parser.add_argument("--method", dest="quantize", choices=convert.METHODS, default="nf4", help=help)
    parser.set_defaults(layout="hub", format=None)
    convert.add_common(parser)


def run(options: argparse.Namespace) -> int:
    return convert.run(options)

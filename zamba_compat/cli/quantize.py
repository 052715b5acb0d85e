"""Quantize a checkpoint, tensor by tensor, without building the model.

With bitsandbytes (nf4, fp4, int8) what from_pretrained and save_pretrained would write, bit for bit; in
compressed-tensors' format (w4a16, w8a16, fp8) what vLLM and transformers read. Each linear weight of the layers is
quantized once, a shared one too. The embedding, the head and the convolutions stay as they are. SRC may be in any
layout that convert-checkpoint reads; DST is in the hub layout.
"""

from __future__ import annotations

import argparse

from zamba_compat.cli import convert

EXAMPLES = """
  zamba-compat quantize SRC DST
  zamba-compat quantize OWNER/NAME DST --push OWNER/NEW --public
  zamba-compat quantize SRC DST --double-quant --compute-dtype bfloat16
  zamba-compat quantize SRC DST --method int8 --keep-shared-16bit
  zamba-compat quantize SRC DST --method w4a16 --gptq text.txt
  zamba-compat quantize SRC DST --method w8a16 --group-size -1 --asymmetric
  zamba-compat quantize SRC DST --method fp8 --ignore out_proj
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help = (
        "4-bit normal float (nf4, the default), 4-bit float or 8-bit integers of bitsandbytes; 4-bit integers, 8-bit "
        "integers or float8 for vLLM and others"
    )
    parser.add_argument("--method", dest="quantize", choices=convert.METHODS, default="nf4", help=help)
    parser.set_defaults(layout="hub", format=None)
    convert.add_common(parser)


def run(options: argparse.Namespace) -> int:
    return convert.run(options)

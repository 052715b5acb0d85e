"""Messages of other packages that tell a person who runs a script nothing to act on."""

from __future__ import annotations

import logging

_MESSAGES = {
    # at every product of a layer in 8 bits: that bfloat16 is rounded to float16 there
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
    # once: that a second kernel, which the hub would be asked for, is not there beside the one that is built in
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
}


class _Without(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_MESSAGES[record.name])


def leave_out() -> None:
    """Keep them from being printed in this process; whatever else these packages say is."""
    for name in _MESSAGES:
        logger = logging.getLogger(name)
        if not any(isinstance(found, _Without) for found in logger.filters):
            logger.addFilter(_Without())

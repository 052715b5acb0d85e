"""What other packages print, without what nobody can act on."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from zamba_compat.inference.messages import leave_out

from .conftest import TINY

NAME = "bitsandbytes.autograd._functions"


def test_only_these(caplog: pytest.LogCaptureFixture) -> None:
    leave_out()
    leave_out()
    logger = logging.getLogger(NAME)
    logger.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", "torch.bfloat16")
    logger.warning("something else")
    assert caplog.messages == ["something else"]
    assert len(logger.filters) == 1


@pytest.mark.parametrize("how", ["8bit", "4bit"])
def test_nothing_of_dtypes_is_printed(how: str) -> None:
    pytest.importorskip("bitsandbytes")
    words = f"-m zamba_compat generate {TINY / 'base'} The --max-new-tokens 2 --device cpu --load {how}"
    run = subprocess.run([sys.executable, *words.split()], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for told in ("MatMul8bitLt", "deprecated", "gemm_4bit_forward"):
        assert told not in run.stderr

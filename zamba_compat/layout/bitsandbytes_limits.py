"""What releases of bitsandbytes cannot do on a CPU."""

from __future__ import annotations

from typing import Any

from zamba_compat.errors import UnsupportedReleaseError


def refuse_on_cpu() -> None:
    """Say which bitsandbytes to take for a CPU.

    Raises:
        UnsupportedReleaseError: always.
    """
    raise UnsupportedReleaseError(
        f"bitsandbytes {_installed()} cannot quantize on a CPU, and there is no GPU.",
        remedy="Install bitsandbytes>=0.48,<0.51; 0.46.1 is the oldest that runs on a CPU.",
    )


def refuse_fp4(quantization_config: Any) -> None:
    """Say which bitsandbytes to take for FP4 on a CPU.

    Raises:
        UnsupportedReleaseError: the one installed has NF4 only, and there is no GPU.
    """
    import torch
    from packaging.version import Version

    wanted = quantization_config.load_in_4bit and quantization_config.bnb_4bit_quant_type == "fp4"
    if wanted and Version(_installed()) < Version("0.47") and not torch.cuda.is_available():
        raise UnsupportedReleaseError(
            f"bitsandbytes {_installed()} has no FP4 on a CPU, and there is no GPU.",
            remedy="Install bitsandbytes>=0.47,<0.51, or choose bnb_4bit_quant_type='nf4'.",
        )


def _installed() -> str:
    from importlib.metadata import version

    return version("bitsandbytes")

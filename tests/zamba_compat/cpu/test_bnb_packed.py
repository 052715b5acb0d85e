"""The layout that bitsandbytes' kernel reads, and the way back."""

from __future__ import annotations

import pytest
import torch

from zamba_compat.cpu import bnb_packed
from zamba_compat.cpu.bnb_packed import ROWS, packed_bytes, plain_bytes


@pytest.mark.parametrize("step", [1, 3 * ROWS // 2 * 65, 2**19])
def test_unpacking_does_not_depend_on_its_steps(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.randint(0, 256, (333, 65), dtype=torch.uint8)
    monkeypatch.setattr(bnb_packed, "_UNPACKED", step)
    assert torch.equal(plain_bytes(packed_bytes(plain), 333), plain)

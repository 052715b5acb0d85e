"""The same call gives the same bits: from the first one of a process on, and while other threads generate."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.helpers import case as make_case
from conformance.helpers import load
from conformance.mending import builds
from support import synthetic

pytestmark = builds()
LENGTHS = (20, 70, 130, 33)  # of prompts: shorter and longer than a chunk, and than what goes in blocks
NEW = 12


@torch.no_grad()
def generated(model: Any, ids: Tensor) -> Tensor:
    """Logits of a greedy continuation."""
    torch.set_num_threads(1)  # of this thread
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(ids, **options, output_logits=True, return_dict_in_generate=True)
    return torch.stack(found.logits)


@pytest.mark.parametrize("pattern", ["1.2B", "7B"])
def test_bits_of_bfloat16(pattern: str, tmp_path: Path) -> None:
    case = make_case(pattern, length=max(LENGTHS))
    state = {name: tensor.bfloat16() for name, tensor in case.state.items()}
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, case.config), torch_dtype=torch.bfloat16)
    prompts = [case.ids[:1, :length] for length in LENGTHS]

    first = [generated(model, prompt) for prompt in prompts]
    assert all(torch.equal(generated(model, prompt), wanted) for prompt, wanted in zip(prompts, first, strict=True))

    for _ in range(3):
        together: list[Any] = [None] * len(prompts)

        def work(number: int, found: list[Any] = together) -> None:
            found[number] = generated(model, prompts[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [torch.equal(found, wanted) for found, wanted in zip(together, first, strict=True)] == [True] * 4

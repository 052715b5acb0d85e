"""What convert-checkpoint writes loads without this package, where the release itself can build the model."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from conformance.helpers import TOLERANCE, lay_out
from conformance.helpers import case as make_case
from support import synthetic

STOCK = """
import json, sys, torch
from transformers import AutoModelForCausalLM
found = {}
for directory in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    want = torch.load(directory + "/../wanted.pt")
    with torch.no_grad():
        got = model.eval()(want["ids"], use_cache=False).logits.double()
    error = ((got - want["logits"]).norm() / want["logits"].norm()).item()
    found[directory] = [error, list(info["missing_keys"]), list(info["unexpected_keys"])]
assert "zamba_compat" not in sys.modules
print(json.dumps(found))
"""
# 4.x is wrong beyond one chunk, whatever the checkpoint.
LENGTHS = {"4.57.6": 16, "5.23.0": 41}


@pytest.mark.ours
@pytest.mark.skipif(version("transformers") not in LENGTHS, reason=f"stock is tried in {', '.join(LENGTHS)}")
def test_stock_loads_what_is_written(tmp_path: Path) -> None:
    from zamba_compat.operations.convert import Options, convert

    length, directories = LENGTHS[version("transformers")], []
    for pattern in synthetic.PUBLISHED:
        case = make_case(pattern, length=length)
        for layout, options in (("expanded", Options()), ("split", Options(max_shard_size="200KB"))):
            directory = tmp_path / f"{pattern}-{layout}"
            state = lay_out(case.state, case.config, layout)
            convert(synthetic.write_checkpoint(directory / "a", state, case.config), directory / "b", options)
            torch.save({"ids": case.ids, "logits": case.logits}, directory / "wanted.pt")
            directories.append(str(directory / "b"))
    done = subprocess.run([sys.executable, "-c", STOCK, *directories], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for directory, (error, missing, unexpected) in json.loads(done.stdout.splitlines()[-1]).items():
        assert error < TOLERANCE and not missing and not unexpected, directory

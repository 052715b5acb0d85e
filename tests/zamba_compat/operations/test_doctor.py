"""Doctor: what it says, and that it notices what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zamba_compat.cli.main
from support import synthetic
from zamba_compat.layout.published import PUBLISHED
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.operations.doctor import check_shape, report, tying_fault


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_count_right(name: str) -> None:
    check = check_shape(name, PUBLISHED[name])
    assert check.fault is None
    assert check.parameters == PUBLISHED[name].parameters
    assert len(SharingMap.from_config(PUBLISHED[name].config).hub_keys()) == PUBLISHED[name].keys


def test_report() -> None:
    found = report()
    assert found.ok, found.faults
    assert [check.shape for check in found.checks] == list(PUBLISHED)
    assert found.versions["torch"].startswith(torch.__version__.split("+")[0])
    json.dumps(found.as_dict())


def built(pattern: str = "7B"):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**synthetic.make_config(pattern)))
    model.tie_weights()
    return model


def test_an_untied_tensor_is_noticed() -> None:
    model = built()
    assert tying_fault(model) is None
    norm = model.model.layers[SharingMap.from_config(model.config).layers_of(1)[-1]].shared_transformer
    norm.input_layernorm = torch.nn.LayerNorm(128, bias=False, device="meta")
    fault = tying_fault(model)
    # In releases that share modules the change is everywhere, and nothing is untied.
    shared = model.model.layers[SharingMap.from_config(model.config).layers_of(1)[0]].shared_transformer is norm
    assert (fault is None) == shared
    if not shared:
        assert "input_layernorm.weight is not tied" in fault


def test_a_wrong_number_of_blocks_is_noticed() -> None:
    model = built()
    model.config.num_mem_blocks = 1
    assert tying_fault(model) is not None


def test_cli(capsys: pytest.CaptureFixture[str]) -> None:
    assert zamba_compat.cli.main.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "7B     right" in out and "no faults found" in out
    assert zamba_compat.cli.main.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_doctor_answers_without_torch_and_transformers(tmp_path: Path) -> None:
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    run = subprocess.run(
        [sys.executable, "-m", "zamba_compat", "doctor", "--json"],
        capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert "Install torch and transformers" in json.loads(run.stdout)["faults"][0]


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert zamba_compat.cli.main.main(["dokter"]) == 2

"""A config without shared blocks: an error that names the key, however the model is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import zamba_compat
from zamba_compat.errors import ConfigError

TINY = Path(__file__).parents[2] / "fixtures" / "tiny" / "base"


def test_no_shared_block(tmp_path: Path) -> None:
    assert zamba_compat.status()
    shutil.copytree(TINY, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"num_mem_blocks": 0}))
    with pytest.raises(ConfigError, match="m: num_mem_blocks is 0, not an integer from 1"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with pytest.raises(ConfigError, match="num_mem_blocks is 0"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "m"))


def test_other_faults_are_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from zamba_compat.patches.transformers.config_refused import init

    def fail(self: object, config: object) -> None:
        raise StopIteration("something else")

    with pytest.raises(StopIteration, match="something else"):
        init(fail)(None, AutoConfig.from_pretrained(TINY))

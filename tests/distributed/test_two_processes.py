"""A training step in two CPU processes started by `accelerate launch`: DDP and FSDP2, shared blocks reduced once.

accelerate's own FSDP plugin is left out: AcceleratorState (1.15) turns it on for accelerators only, and --use_fsdp and
--cpu exclude each other. The processes are accelerate's, the sharding is torch's fully_shard over gloo.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.helpers import assert_close
from support import synthetic, train_step

for library in ("accelerate", "bitsandbytes", "peft"):
    pytest.importorskip(library)

ROOT = Path(__file__).parents[2]
BASE = re.search(r"^transformers==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
PROCESSES, LIMIT = 2, 240  # seconds
PAIRS = 2 * len(train_step.TARGETS)  # two blocks

pytestmark = pytest.mark.skipif(
    BASE is None or version("transformers") != BASE[1], reason="runs under the release in constraints.txt"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = synthetic.make_config("7B", time_step_min=1e-9)
    directory = tmp_path_factory.mktemp("two")
    torch.save(synthetic.make_ids(config, 12, rows=PROCESSES), directory / "ids.pt")
    return synthetic.write_checkpoint(directory / "hub", synthetic.make_state(config), config)


@pytest.fixture(scope="module")
def results(checkpoint: Path) -> Iterator[dict[str, list[Any]]]:
    """What each process wrote, by mode."""
    out = checkpoint.parent / "out"
    out.mkdir()
    # --cpu would start a single process, unless with MPI. --multi_gpu is accelerate's name for torch's launcher; the
    # script asks for CPUs.
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    command += [f"--num_processes={PROCESSES}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command += ["--main_process_port=0", train_step.__file__, str(checkpoint), str(checkpoint.parent / "ids.pt")]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    process = subprocess.Popen(
        [*command, str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no result in {LIMIT} s:\n{process.communicate()[0][-4000:]}")
    assert process.returncode == 0, output[-4000:]
    yield {
        mode: [torch.load(out / f"{mode}.{rank}.pt", weights_only=False) for rank in range(PROCESSES)]
        for mode in train_step.MODES
    }


@pytest.fixture(params=train_step.MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ranks(results: dict[str, list[Any]], mode: str) -> list[Any]:
    for rank in results[mode]:
        assert "error" not in rank, rank["error"]
    return results[mode]


def test_the_step_is_that_of_one_process(ranks: list[Any], mode: str, checkpoint: Path) -> None:
    model = train_step.build(checkpoint, mode)
    parameters = train_step.trained(model)
    loss = train_step.loss_of(model, torch.load(checkpoint.parent / "ids.pt"))
    loss.backward()
    assert sum(rank["loss"] for rank in ranks) / PROCESSES == pytest.approx(loss.item(), rel=1e-5)
    for rank in ranks:
        assert rank["world"] == PROCESSES
        assert rank["gradients"].keys() == rank["weights"].keys() == parameters.keys()
        for name, parameter in parameters.items():
            assert parameter.grad is not None and parameter.grad.norm() > 0, name
            assert_close(rank["gradients"][name], parameter.grad.double(), 1e-5)
            stepped = parameter.detach() - train_step.RATE * parameter.grad
            assert_close(rank["weights"][name], stepped.double(), 1e-5)


def test_every_process_has_the_same_weights(ranks: list[Any]) -> None:
    first, *others = ranks
    for other in others:
        for name, tensor in first["weights"].items():
            assert torch.equal(tensor, other["weights"][name]), name


def test_every_gradient_is_reduced_once(ranks: list[Any], mode: str) -> None:
    for rank in ranks:
        names = rank["weights"].keys()
        if not mode.endswith("full"):
            assert len(names) == 2 * PAIRS
        assert set(rank["reduced"]) == set(names)
        assert set(rank["reduced"].values()) == {1}


def test_every_block_is_wrapped_once(ranks: list[Any], mode: str) -> None:
    for rank in ranks:
        if mode.startswith("ddp"):
            assert rank["wrapper"] == "DistributedDataParallel"
            continue
        assert rank["blocks"] == 2
        assert rank["wrapped"] == rank["blocks"] + 1  # and the model around them
        assert 0.4 < rank["held"] < 0.6

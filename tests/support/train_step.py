"""One training step in each of two processes, for `accelerate launch`; also imported by the test that judges it.

Usage: train_step.py CHECKPOINT BATCH OUT. BATCH: a torch file with the ids, (processes, length); each process takes a
row. OUT: a directory for MODE.RANK.pt per mode, with gradients, weights after the step and what was reduced, by
canonical name, or with the error.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zamba_compat

TARGETS = ["q_proj", "v_proj", "gate_up_proj"]
MODES = ("ddp-nf4", "fsdp2-full", "fsdp2-nf4")
RATE = 0.1  # of plain SGD: the step is proportional to the gradient, which Adam's first is not


def build(checkpoint: Path, mode: str) -> Any:
    """A model to train: "full" every parameter in float32, "nf4" LoRA on 4-bit weights; one module per block."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if mode.endswith("full"):
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        zamba_compat.share_modules(model)
        return model.train()
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    # FSDP shards tensors that could have a gradient: a quantized weight has to be kept in a floating dtype.
    storage = torch.float32 if mode.startswith("fsdp2") else torch.uint8
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=storage,
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=config, dtype=torch.float32)
    zamba_compat.share_modules(model)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)
    return get_peft_model(model, lora).train()


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """The mean over all predicted tokens; ids: (rows, length)."""
    return model(ids, labels=ids, use_cache=False).loss


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, each once, by their first name."""
    return {name.removeprefix("module."): p for name, p in model.named_parameters() if p.requires_grad}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The distinct shared modules."""
    found = [module for module in model.modules() if type(module).__name__ == "Zamba2AttentionDecoderLayer"]
    return list(dict.fromkeys(found))


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def _step(model: nn.Module, optimizer: Any, backward: Any, ids: Tensor) -> dict[str, Any]:
    loss = loss_of(model, ids)
    backward(loss)
    gradients = {name: _whole(p.grad) for name, p in trained(model).items() if p.grad is not None}
    optimizer.step()
    weights = {name: _whole(p.data) for name, p in trained(model).items()}
    return {"loss": loss.item(), "gradients": gradients, "weights": weights}


def run_ddp(accelerator: Any, checkpoint: Path, mode: str, ids: Tensor) -> dict[str, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    model = build(checkpoint, mode)
    names = {id(p): name for name, p in trained(model).items()}
    optimizer = torch.optim.SGD(trained(model).values(), lr=RATE)
    model, optimizer = accelerator.prepare(model, optimizer)
    reduced: Counter[str] = Counter()

    def counted(group, bucket):  # DDP compares annotations, if there are any, with its own types
        reduced.update(names[id(parameter)] for parameter in bucket.parameters())
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, counted)
    return {**_step(model, optimizer, accelerator.backward, ids), "wrapper": type(model).__name__, "reduced": reduced}


def run_fsdp2(accelerator: Any, checkpoint: Path, mode: str, ids: Tensor) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as groups

    # accelerate (1.15) turns its FSDP plugin on for accelerators only; torch itself takes a mesh of CPUs.
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    model = build(checkpoint, mode)
    numbers = sum(p.numel() for p in model.parameters())
    blocks = blocks_of(model)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    reduced: Counter[str] = Counter()
    original = groups.foreach_reduce

    def counted(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        reduced.update(parameter._param_fqn for parameter in parameters)
        return original(parameters, *args, **kwargs)

    groups.foreach_reduce = counted
    try:
        optimizer = torch.optim.SGD(trained(model).values(), lr=RATE)
        result = _step(model, optimizer, torch.Tensor.backward, ids)
    finally:
        groups.foreach_reduce = original
    held = sum(p.to_local().numel() for p in model.parameters())
    wrapped = [module for module in model.modules() if isinstance(module, FSDPModule)]
    return {**result, "reduced": reduced, "wrapped": len(wrapped), "blocks": len(blocks), "held": held / numbers}


def main(checkpoint: Path, batch: Path, out: Path) -> None:
    from accelerate import Accelerator

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    ids = torch.load(batch)[rank : rank + 1]
    for mode in MODES:
        run = run_ddp if mode.startswith("ddp") else run_fsdp2
        try:
            result = run(accelerator, checkpoint, mode, ids)
        except Exception:
            result = {"error": traceback.format_exc()}
        result["world"] = accelerator.num_processes
        torch.save(result, out / f"{mode}.{rank}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""Write a checkpoint of a published Zamba2 shape with random weights: for benchmarks, nothing is downloaded.

python tools/make_checkpoint.py 1.2B OUT
python tools/make_checkpoint.py 7B OUT --max-shard-size 2GB
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the hub layout, from a model on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    import zamba_compat  # noqa: F401 (some releases cannot build 2.7B and 7B by themselves)
    from zamba_compat.layout.sharing import SharingMap

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    state = model.state_dict()
    return {key: tuple(state[key].shape) for key in SharingMap.from_config(config).hub_keys()}


def weights(wanted: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Random tensors one by one, normal with the usual scale, taken from one pool at a new offset each."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(1 << 24, generator=generator)
    for key, shape in wanted.items():
        count = math.prod(shape)
        if key.endswith("A_log"):
            tensor = torch.rand(shape, generator=generator).mul(15).add(1).log()
        elif key.endswith("dt_bias"):
            steps = torch.empty(shape).uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp()
            tensor = steps.expm1().log()  # inverse of softplus
        elif len(shape) == 1:
            tensor = 1 + 0.1 * torch.randn(shape, generator=generator)
        else:
            start = int(torch.randint(len(pool), (1,), generator=generator))
            scale = 0.02 if "embed" in key else shape[-1] ** -0.5
            tensor = pool.roll(-start).repeat(-(-count // len(pool)))[:count].view(shape) * scale
        yield key, tensor.to(dtype)


def write(out: Path, config: dict, max_shard_size: int, seed: int, dtype: torch.dtype) -> int:
    """Write config.json and the shards with their index; returns the bytes of all tensors."""
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shards: list[dict[str, Tensor]] = [{}]
    files, total, held = [], 0, 0

    def flush() -> None:
        name = out / f"part-{len(files)}"
        save_file(shards[-1], name, {"format": "pt"})
        files.append((name, list(shards[-1])))

    for key, tensor in weights(shapes(config), seed, dtype):
        if held and held + tensor.nbytes > max_shard_size:
            flush()
            shards.append({})
            shards[-2].clear()
            held = 0
        shards[-1][key] = tensor.contiguous()
        held += tensor.nbytes
        total += tensor.nbytes
    flush()
    weight_map = {}
    for number, (file, keys) in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        file.rename(out / name)
        weight_map |= dict.fromkeys(keys, name)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def main() -> int:
    from zamba_compat.checkpoint.writing.writer import parse_size
    from zamba_compat.layout.published import PUBLISHED

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=PUBLISHED)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-shard-size", type=parse_size, default=parse_size("5GB"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    options = parser.parse_args()
    config = {**PUBLISHED[options.shape].config, "torch_dtype": options.dtype}
    written = write(options.out, config, options.max_shard_size, options.seed, getattr(torch, options.dtype))
    print(f"{options.out}: {written / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

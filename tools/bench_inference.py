"""Benchmark: 1.2B in bfloat16 on a CPU: stock transformers, with the import, and a Llama of as many parameters.

python tools/bench_inference.py [--lengths 128 1024] [--contestants import llama stock] [--rounds 1] [--nf4] [--json]

Time to the first token, seconds per further token, the peak of anonymous memory above what the model holds, and the
cache's bytes. Every contestant runs in a process of its own; rounds alternate between them, so that drift hits all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from importlib.metadata import version
from typing import Any

from _bench import in_process

CONTESTANTS = ("import", "llama", "stock")
RUN = """
import json, sys, time
contestant, lengths, tokens, nf4 = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "nf4"
if contestant == "import":
    import zamba_compat
import torch
from _bench import measured
from bench_inference import build, cache_bytes
model = build(contestant, nf4)
result = {"parameters": sum({p.data_ptr(): p.numel() for p in model.parameters()}.values()), "lengths": {}}
torch.manual_seed(0)
with torch.inference_mode():
    for length in lengths:
        ids = torch.randint(5, 32000, (1, length))
        first, peak = [], 0
        for _ in range(4 if length <= 256 else 1):
            with measured() as run:
                cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
            first.append(run["seconds"])
            peak = max(peak, run["peak_bytes"])
        held, token = cache_bytes(cache), []
        for _ in range(tokens):
            start = time.perf_counter()
            model(ids[:, -1:], past_key_values=cache, use_cache=True)
            token.append(time.perf_counter() - start)
        result["lengths"][length] = {"first": sorted(first[-3:])[len(first[-3:]) // 2], "peak": peak,
            "token": sorted(token)[tokens // 2], "cache": held}
        del cache
print(json.dumps(result))
"""


def build(contestant: str, nf4: bool) -> Any:
    """A model with random weights; the Llama has 17 layers as wide as Zamba2's, and one vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    import make_checkpoint
    import zamba_compat
    from zamba_compat.published import PUBLISHED

    if contestant == "stock":
        zamba_compat.uninstall()

    if contestant == "llama":
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=17,
            num_attention_heads=16,
            num_key_value_heads=16,
            tie_word_embeddings=True,
            max_position_embeddings=16384,
        )
    else:
        config = AutoConfig.for_model(**PUBLISHED["1.2B"].config)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        small = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() == 1}
        for name, tensor in make_checkpoint.weights(small, 0, torch.bfloat16):
            model.get_parameter(name).copy_(tensor)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = 0.02 if "embed" in name else parameter.shape[-1] ** -0.5
                parameter.normal_(0, scale, generator=generator)
        for module in model.modules():  # to_empty leaves the frequencies undefined
            if hasattr(module, "inv_freq"):
                fresh = type(module)(config)
                module.inv_freq = fresh.inv_freq
                module.original_inv_freq = fresh.original_inv_freq
    return (quantized(model) if nf4 else model).eval()


def quantized(model: Any) -> Any:
    """The linear layers but the head in NF4 with double quantization; one object per weight that is shared."""
    import bitsandbytes as bnb
    import torch

    made: dict[int, Any] = {}
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is not torch.nn.Linear or name in ("lm_head", "conv1d"):
                continue
            key = child.weight.data_ptr()
            if key not in made:
                new = bnb.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=torch.bfloat16,
                    compress_statistics=True,
                    quant_type="nf4",
                )
                new.weight = bnb.nn.Params4bit(
                    child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                made[key] = new.to("cpu")
            setattr(owner, name, made[key])
    return model


def cache_bytes(cache: Any) -> int:
    """Bytes in the tensors of a cache, however it holds them."""
    import torch

    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            seen[value.untyped_storage().data_ptr()] = value.nbytes
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("transformers."):
            visit(vars(value))

    visit(getattr(cache, "layers", None) or vars(cache))
    return sum(seen.values())


def median(runs: list[dict[str, Any]], length: int, what: str) -> float:
    return statistics.median(run["lengths"][str(length)][what] for run in runs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024], help="tokens of the prompts")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=12, help="to decode after each prompt")
    parser.add_argument("--nf4", action="store_true", help="the import's model in NF4, too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    names = [(name, "bf16") for name in options.contestants] + ([("import", "nf4")] if options.nf4 else [])
    found: dict[str, list[dict[str, Any]]] = {" ".join(name): [] for name in names}
    for _ in range(options.rounds):
        for contestant, weights in names:
            run = in_process(
                RUN,
                contestant,
                json.dumps(options.lengths),
                str(options.tokens),
                weights,
                env={"PYTHONPATH": "tools"},
            )
            found[f"{contestant} {weights}"].append(run)
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"transformers {version('transformers')}, torch {version('torch')}, medians of {options.rounds} rounds:")
    for length in options.lengths:
        llama = found.get("llama bf16")
        for name, runs in found.items():
            first, token, peak, cache = (median(runs, length, what) for what in ("first", "token", "peak", "cache"))
            ratios = ""
            if llama:
                ratios = (
                    f" ({first / median(llama, length, 'first'):.2f}, {token / median(llama, length, 'token'):.2f})"
                )
            print(
                f"  {length:>6} tokens, {name:<12} first {first:7.3f} s, each further {1e3 * token:7.1f} ms{ratios}; "
                f"peak {peak / 1e9:.2f} GB above the model, cache {cache / 1e6:.0f} MB"
            )
    print("  in brackets: times the Llama's")
    return 0


if __name__ == "__main__":
    sys.exit(main())

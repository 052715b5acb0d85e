"""One contestant of tools/bench_inference.py, measured in this process: JSON in argv[1], JSON on the last line.

In: config, import (whether to import zamba_compat), nf4, device, lengths, tokens, seconds (stop decoding after).
Out: parameters, and per length: first (seconds to the first token), token (seconds per further one), peak (bytes above
the model), cache (bytes).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    asked = json.loads(sys.argv[1])
    from _bench import contestants, measured

    if asked["nf4"]:
        contestants.hold_bitsandbytes()
    if asked["import"]:
        import zamba_compat  # noqa: F401
    import torch

    device = asked["device"]
    on_gpu = device.startswith("cuda")

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    model = contestants.build(asked["config"], torch.bfloat16, device, asked["nf4"])
    result: dict[str, Any] = {
        "parameters": sum({p.data_ptr(): p.numel() for p in model.parameters()}.values()),
        "lengths": {},
    }
    torch.manual_seed(0)
    with torch.inference_mode():
        for length in asked["lengths"]:
            ids = torch.randint(5, 32000, (1, length), device=device)
            first, peaks = [], [0]
            for _ in range(4 if length <= 256 or on_gpu else 2 if length <= 1024 else 1):
                cache = None
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                with measured() as run:
                    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
                    wait()
                first.append(run["seconds"])
                peaks.append(torch.cuda.max_memory_allocated() - before if on_gpu else int(run["peak_bytes"]))
            cached, token = contestants.cache_bytes(cache), []
            until = time.perf_counter() + asked["seconds"]
            while len(token) < asked["tokens"] and (len(token) < 3 or time.perf_counter() < until):
                start = time.perf_counter()
                model(ids[:, -1:], past_key_values=cache, use_cache=True)
                wait()
                token.append(time.perf_counter() - start)
            warm = sorted(first[1:] or first)
            result["lengths"][length] = {
                "first": warm[len(warm) // 2],
                "token": sorted(token)[len(token) // 2],
                "peak": max(peaks),
                "cache": cached,
            }
            del cache
    assert asked["import"] or "zamba_compat" not in sys.modules, "stock and Llama are measured without zamba_compat"
    print(json.dumps(result))

"""One contestant of tools/bench_inference.py, measured in this process: JSON in argv[1], JSON on the last line.

In: config, import (whether to import zamba_compat), nf4, device, lengths, tokens, seconds (stop decoding after), rows
(numbers of prompts of the first length to run at once), most (how many of them to try for the most that fits; 0 for
not to look).
Out: parameters; kernels: which fused kernels a prompt and a token ran; per length, and per number of rows: first
(seconds to the first token), token (seconds per further one), peak (bytes above the model), cache (bytes). What does
not fit the device's memory is left out.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

WARM_UP_TOKENS = 16


def main() -> None:
    asked = json.loads(sys.argv[1])
    from _bench import contestants

    if asked["nf4"]:
        contestants.hold_bitsandbytes()
    if asked["import"]:
        import zamba_compat  # noqa: F401
    import torch

    model = contestants.build(asked["config"], torch.bfloat16, asked["device"], asked["nf4"])
    torch.manual_seed(0)
    with torch.inference_mode():
        result = Contestant(model, asked).everything()
    assert asked["import"] or "zamba_compat" not in sys.modules, "stock and Llama are measured without zamba_compat"
    print(json.dumps(result))


class Contestant:
    """A model and what is asked of it, see above."""

    def __init__(self, model: Any, asked: dict[str, Any]) -> None:
        self.model, self.asked = model, asked
        self.on_gpu = asked["device"].startswith("cuda")

    def everything(self) -> dict[str, Any]:
        parameters = {p.data_ptr(): p.numel() for p in self.model.parameters()}
        found: dict[str, Any] = {"parameters": sum(parameters.values()), "kernels": self.kernels(), "lengths": {}}
        for length in self.asked["lengths"]:
            if measured := self.fitting(1, length):
                found["lengths"][length] = measured
        found["rows"] = {}
        if not self.asked["lengths"]:
            return found
        length = self.asked["lengths"][0]
        for rows in self.asked.get("rows", []):
            if measured := self.fitting(rows, length):
                found["rows"][rows] = measured
        if most := self.asked.get("most", 0):
            from _bench.rows import largest

            known = max((rows for rows in (*found["rows"], 1) if rows <= most), default=1)
            rows = largest(lambda rows: self.fitting(rows, length, tokens=1, times=1) is not None, most, known)
            if rows and rows not in found["rows"] and (measured := self.fitting(rows, length)):
                found["rows"][rows] = measured
            found["largest"] = rows
        return found

    def kernels(self) -> dict[str, list[str]]:
        """Those of a prompt and of a token after it."""
        from _bench.kernels_ran import called

        ids, past = self.prompts(1, WARM_UP_TOKENS), []
        prompt = called(lambda: past.append(self.model(ids, use_cache=True).past_key_values))
        token = called(lambda: self.model(ids[:, -1:], past_key_values=past[0], use_cache=True))
        return {"prompt": prompt, "token": token}

    def prompts(self, rows: int, length: int) -> Any:
        import torch

        return torch.randint(5, self.model.config.vocab_size, (rows, length), device=self.asked["device"])

    def fitting(self, rows: int, length: int, **fewer: int) -> dict[str, float] | None:
        """As `measure`, or None where memory does not suffice."""
        from _bench.rows import is_out_of_memory

        try:
            return self.measure(rows, length, **fewer)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if self.on_gpu:  # outside of the handler, whose traceback holds tensors
            import torch

            torch.cuda.empty_cache()
        return None

    def measure(self, rows: int, length: int, tokens: int | None = None, times: int | None = None) -> dict[str, float]:
        """`rows` prompts of `length` tokens, and further tokens of each: medians in seconds, bytes."""
        import torch

        from _bench import contestants, measured

        ids = self.prompts(rows, length)
        first, peaks, cache = [], [0], None
        for _ in range(times or (4 if length <= 256 or self.on_gpu else 2 if length <= 1024 else 1)):
            cache = None
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            with measured() as run:
                cache = self.model(ids, use_cache=True, logits_to_keep=1).past_key_values
                self.wait()
            first.append(run["seconds"])
            peaks.append(torch.cuda.max_memory_allocated() - before if self.on_gpu else int(run["peak_bytes"]))
        cached, token = contestants.cache_bytes(cache), []
        until, tokens = time.perf_counter() + self.asked["seconds"], tokens or self.asked["tokens"]
        while len(token) < tokens and (len(token) < 3 or time.perf_counter() < until):
            start = time.perf_counter()
            self.model(ids[:, -1:], past_key_values=cache, use_cache=True)
            self.wait()
            token.append(time.perf_counter() - start)
        warm = sorted(first[1:] or first)
        return {
            "first": warm[len(warm) // 2],
            "token": sorted(token)[len(token) // 2],
            "peak": max(peaks),
            "cache": cached,
        }

    def wait(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

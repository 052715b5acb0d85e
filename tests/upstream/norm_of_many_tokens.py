import time

import torch
from transformers.models.zamba2.modeling_zamba2 import Zamba2RMSNorm


def seconds(function, rounds=7):
    function()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return sorted(found)[rounds // 2]


torch.manual_seed(0)
norm, x = Zamba2RMSNorm(2560).bfloat16(), torch.randn(1, 4096, 2560).bfloat16()
with torch.no_grad():
    whole = seconds(lambda: norm(x))
    out = torch.empty_like(x)
    pieces = seconds(lambda: [out[:, at : at + 64].copy_(norm(x[:, at : at + 64])) for at in range(0, 4096, 64)])
print(f"4,096 tokens at once {1e3 * whole:.1f} ms, in blocks of 64 {1e3 * pieces:.1f} ms")
raise SystemExit(whole > 1.2 * pieces)

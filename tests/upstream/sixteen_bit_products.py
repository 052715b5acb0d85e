import time

import torch


def seconds(function, rounds=7):
    function()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return sorted(found)[rounds // 2]


torch.manual_seed(0)
weight, rows = torch.randn(2048, 2048), torch.randn(128, 2048)
with torch.no_grad():
    single = seconds(lambda: torch.nn.functional.linear(rows, weight))
    half = {kind: (rows.to(kind), weight.to(kind)) for kind in (torch.bfloat16, torch.float16)}
    found = {kind: seconds(lambda x=x, w=w: torch.nn.functional.linear(x, w)) for kind, (x, w) in half.items()}
print(f"float32 {1e3 * single:.1f} ms, {', '.join(f'{k} {1e3 * s:.1f} ms' for k, s in found.items())}")
raise SystemExit(any(one > 2 * single for one in found.values()))

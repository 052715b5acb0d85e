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
weight = torch.randn(8192, 4096).bfloat16()
few, many = torch.randn(64, 4096).bfloat16(), torch.randn(512, 4096).bfloat16()
with torch.no_grad():
    short = seconds(lambda: torch.nn.functional.linear(few, weight))
    long = seconds(lambda: torch.nn.functional.linear(many, weight))
print(f"64 rows {1e3 * short:.1f} ms, 512 rows {1e3 * long:.1f} ms: {8 * short / long:.1f} times as long per row")
raise SystemExit(8 * short > 2 * long)

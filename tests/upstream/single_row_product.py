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
row = torch.randn(1, 4096).bfloat16()
with torch.no_grad():
    product = seconds(lambda: torch.nn.functional.linear(row, weight))
    reading = seconds(lambda: weight.view(torch.int32).sum())  # what the memory allows
print(f"one row: {1e3 * product:.1f} ms; reading the weight: {1e3 * reading:.1f} ms")
raise SystemExit(product > 1.5 * reading)

import time

import bitsandbytes as bnb
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
plain = torch.nn.Linear(4096, 4096, bias=False)
packed = bnb.nn.Linear4bit(4096, 4096, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
packed.load_state_dict(plain.state_dict())
packed, plain, row = packed.to("cpu").eval(), plain.bfloat16(), torch.randn(1, 4096).bfloat16()
with torch.no_grad():
    four, sixteen = seconds(lambda: packed(row)), seconds(lambda: plain(row))
print(f"one row by a 4-bit weight {1e3 * four:.1f} ms, by the same in bfloat16 {1e3 * sixteen:.1f} ms")
raise SystemExit(four > sixteen)

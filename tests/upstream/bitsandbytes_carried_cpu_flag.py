import bitsandbytes as bnb
import torch

here = bool(bnb.functional.has_avx512bf16())
linear = bnb.nn.Linear4bit(64, 64, bias=False)
linear.support_avx512bf16_for_cpu = not here  # as a pickle brings it from a machine of the other kind
linear.to("cpu")
with torch.no_grad():
    linear.eval()(torch.ones(1, 64, dtype=torch.bfloat16))
state = linear.weight.quant_state
packed = bool(getattr(state, "packing_format_for_cpu", False))
print(f"this CPU has AVX512-BF16: {here}; the weight was packed for its kernel: {packed}")
raise SystemExit(packed != here)

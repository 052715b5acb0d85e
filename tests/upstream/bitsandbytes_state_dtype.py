import bitsandbytes as bnb
import torch

quantized = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
quantized.load_state_dict(torch.nn.Linear(64, 64, bias=False).state_dict())
quantized.to("cpu")
before = quantized.weight.quant_state.dtype
with torch.no_grad():
    quantized(torch.ones(1, 64))
after = quantized.weight.quant_state.dtype
print(f"the quant state's dtype is {before} before a forward and {after} after it")
raise SystemExit(before != after)

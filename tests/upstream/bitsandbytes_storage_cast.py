import bitsandbytes as bnb
import torch

torch.manual_seed(0)
linear = torch.nn.Linear(64, 64, bias=False)
quantized = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", quant_storage=torch.bfloat16)
quantized.load_state_dict(linear.state_dict())
quantized.to("cpu")
before = bnb.functional.dequantize_4bit(quantized.weight.data, quantized.weight.quant_state).float()
quantized.to(torch.float16)  # as model.half() does
weight = quantized.weight
try:
    after = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    apart = float((after - before).abs().max() / before.abs().max())
except Exception as error:
    raise SystemExit(f"{type(error).__name__}: {error}") from None
print(f"weights {apart:.2g} apart after .to(torch.float16)")
raise SystemExit(not apart < 0.01)

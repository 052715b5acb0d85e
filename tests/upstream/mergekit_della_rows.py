import torch
from mergekit.sparsify import della_magprune

torch.manual_seed(0)
weight = torch.randn(64, 1, 4)  # of a depthwise convolution, as every Mamba layer has one
try:
    kept = della_magprune(weight, density=0.5, epsilon=0.1, rescale_norm=None)
    said = "nothing" if kept.isfinite().all() else "nothing, and the result is not finite"
except RuntimeError as error:
    said = str(error)
print(f"DELLA of a depthwise convolution says {said}")
raise SystemExit(said != "nothing")

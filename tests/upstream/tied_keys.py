import tempfile

import torch
from transformers import Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
try:
    with tempfile.TemporaryDirectory() as folder:
        Zamba2ForCausalLM(config).save_pretrained(folder)
except RuntimeError as error:
    print(f"{type(error).__name__}: {str(error)[:150]}")
    raise SystemExit(1) from None
print("saved")

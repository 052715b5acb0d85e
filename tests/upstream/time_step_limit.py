import torch
from transformers import Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
    time_step_limit=None,
)  # fmt: skip
mixer = Zamba2ForCausalLM(config).model.layers[0].mamba
found = tuple(getattr(mixer, "time_step_limit", None) or (0.0, float("inf")))
print(f"config.time_step_limit is {config.time_step_limit}; the mixer hands {found} to the fused scan")
raise SystemExit(found[0] > 0)

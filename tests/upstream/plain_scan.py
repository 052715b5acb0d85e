import torch
from transformers import Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
    use_mamba_kernels=False, time_step_min=0.5, initializer_range=0.3, time_step_limit=None,
)  # fmt: skip
model = Zamba2ForCausalLM(config).eval()
for layer in model.model.layers:
    getattr(layer, "mamba_decoder", layer).mamba.dt_bias.data.fill_(-6.0)  # time steps of 0.0025, below time_step_min
ids = torch.arange(3, 13)[None]
with torch.no_grad():
    got = model(ids).logits
    config.time_step_min = 1e-9  # which only draws the initial dt_bias, and limits nothing in the fused kernels
    same = Zamba2ForCausalLM(config).eval()
    same.load_state_dict(model.state_dict())
    apart = float((same(ids).logits - got).abs().max() / got.abs().max())
print(f"time_step_min changes what a trained model computes, by {apart:.2g}")
raise SystemExit(apart > 1e-5)

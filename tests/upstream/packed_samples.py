import torch
from transformers import Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
    use_mamba_kernels=False,
)  # fmt: skip
model = Zamba2ForCausalLM(config).eval()
first, second = torch.arange(3, 13)[None], torch.arange(20, 30)[None]
with torch.no_grad():
    alone = model(second, use_cache=False).logits
    # as DataCollatorWithFlattening packs two samples: one row, positions that restart
    positions = torch.arange(10).repeat(2)[None]
    packed = model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits[:, 10:]
apart = float((packed - alone).abs().max() / alone.abs().max())
print(f"the second sample's logits, packed and alone: {apart:.2g} apart")
raise SystemExit(apart > 1e-4)

import tempfile

import torch
from transformers import Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
    use_mem_rope=True, use_long_context=True, rope_theta=10000.0, max_position_embeddings=16384,
)  # fmt: skip
# The base that the published long context uses: NTK-aware, 10000 * 8 ** (d / (d - 2)) with d the head's size.
dim = config.attention_head_dim
wanted = 1.0 / (10000.0 * 8 ** (dim / (dim - 2))) ** (2 / dim)
with tempfile.TemporaryDirectory() as folder:
    config.save_pretrained(folder)
    again = Zamba2Config.from_pretrained(folder)
found = [float(Zamba2ForCausalLM(c).model.rotary_emb.inv_freq[1]) for c in (config, again)]
print(f"second inverse frequency: {found}, before and after saving; {wanted:.6f} is right")
raise SystemExit(any(abs(one / wanted - 1) > 1e-4 for one in found))

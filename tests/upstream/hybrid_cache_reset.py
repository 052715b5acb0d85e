from transformers import Zamba2Config
from transformers.models.zamba2.modeling_zamba2 import Zamba2HybridDynamicCache  # until 5.4

config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip

cache = Zamba2HybridDynamicCache(config, batch_size=1)
try:
    cache.reset()
except AttributeError as error:
    raise SystemExit(f"AttributeError: {error}") from None

import tempfile

import torch
from transformers import AutoModelForCausalLM, Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
places = {f"model.layers.{i}": "disk" if i > 2 else "cpu" for i in range(6)}
places |= {name: "cpu" for name in ("model.embed_tokens", "model.final_layernorm", "model.rotary_emb", "lm_head")}
ids = torch.arange(3, 13)[None]
with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as away, torch.no_grad():
    model = Zamba2ForCausalLM(config).eval()
    model.save_pretrained(folder)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=away).eval()
        apart = float((loaded(ids).logits - model(ids).logits).abs().max())
    except (KeyError, RuntimeError, ValueError, NotImplementedError) as error:
        raise SystemExit(f"{type(error).__name__}: {str(error)[:150]}") from None
print(f"logits {apart:.2g} apart")
raise SystemExit(apart > 1e-4)

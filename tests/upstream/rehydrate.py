import tempfile

import torch
from safetensors.torch import save_file
from transformers import Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=2,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
model = Zamba2ForCausalLM(config).eval()
own, other = (f"layers.{i}.shared_transformer.feed_forward.gate_up_proj_adapter_list.1" for i in (3, 1))
state = {k.replace(own, other): v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
with tempfile.TemporaryDirectory() as folder:
    config.save_pretrained(folder)
    save_file(state, f"{folder}/model.safetensors", {"format": "pt"})
    loaded = Zamba2ForCausalLM.from_pretrained(folder).eval()
ids = torch.arange(3, 13)[None]
apart = float((loaded(ids).logits - model(ids).logits).abs().max())
print(f"position 1's adapter stored with the other block, as merge tools leave it: logits {apart:.2g} apart")
raise SystemExit(apart > 1e-4)

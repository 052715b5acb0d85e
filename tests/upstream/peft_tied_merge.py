import torch
from peft import LoraConfig, get_peft_model
from transformers import Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
model = Zamba2ForCausalLM(config).eval()
adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)).eval()
for name, tensor in adapted.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(tensor, std=0.5)
ids = torch.arange(3, 13)[None]
with torch.no_grad():
    before = adapted(ids).logits
    after = adapted.merge_and_unload()(ids).logits
apart = float((after - before).abs().max() / before.abs().max())
print(f"logits {apart:.2g} apart after merge_and_unload")
raise SystemExit(apart > 1e-3)

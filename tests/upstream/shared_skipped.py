import tempfile

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    Zamba2ForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    nf4 = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, device_map={"": "cpu"})
kept = [name for name, module in model.named_modules() if "shared" in name and type(module) is torch.nn.Linear]
print(f"left in 16 or 32 bits: {len(kept)} linear modules of the shared block, {kept[:2]}")
raise SystemExit(bool(kept))

import tempfile

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    model = Zamba2ForCausalLM(config).eval()
    model.save_pretrained(folder)
    int8 = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=int8, device_map={"": "cpu"})
    try:
        loaded(torch.arange(3, 13)[None])
    except AttributeError as error:
        raise SystemExit(f"AttributeError: {error}, at the second layer that uses the block") from None
print("computed")

import tempfile

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    Zamba2ForCausalLM(config).save_pretrained(folder)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, device_map={"": "cpu"})
    model.save_pretrained(folder)
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        stored = set(file.keys())
orphans = [key for key in stored if ".weight." in key and key.split(".weight.")[0] + ".weight" not in stored]
print(f"{len(orphans)} parts of quant states without their weight: {sorted(orphans)[:2]}")
raise SystemExit(bool(orphans))

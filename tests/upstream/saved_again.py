import tempfile

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
    Zamba2ForCausalLM(config).save_pretrained(first)
    nf4 = BitsAndBytesConfig(load_in_4bit=True)
    place = {"device_map": {"": "cpu"}}
    AutoModelForCausalLM.from_pretrained(first, quantization_config=nf4, **place).save_pretrained(second)
    try:
        AutoModelForCausalLM.from_pretrained(second, **place).save_pretrained(first)
    except NotImplementedError as error:
        print(f"NotImplementedError {error}: a model that was loaded quantized cannot be saved")
        raise SystemExit(1) from None
print("saved again")

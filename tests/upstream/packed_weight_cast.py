import tempfile

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, intermediate_size=128, num_attention_heads=4)
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16)
ids, place = torch.arange(3, 13)[None], {"device_map": {"": "cpu"}}
with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as packed, torch.no_grad():
    LlamaForCausalLM(config).save_pretrained(plain)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=nf4, torch_dtype=torch.bfloat16, **place)
    model.save_pretrained(packed)
    try:
        again = AutoModelForCausalLM.from_pretrained(packed, torch_dtype=torch.float32, **place)
        apart = float((again(ids).logits - model(ids).logits).abs().max() / model(ids).logits.abs().max())
    except RuntimeError as error:
        raise SystemExit(f"RuntimeError: {str(error)[:150]}") from None
print(f"logits {apart:.2g} apart, stored packed in bfloat16 and loaded in float32")
raise SystemExit(apart > 0.05)

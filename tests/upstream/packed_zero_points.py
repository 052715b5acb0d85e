import tempfile

import torch
from compressed_tensors import quantization as q
from compressed_tensors.compressors import ModelCompressor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 32}
model = LlamaForCausalLM(LlamaConfig(**sizes))
weights = q.QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=32)
scheme = q.QuantizationScheme(targets=["Linear"], weights=weights)
q.apply_quantization_config(model, q.QuantizationConfig(config_groups={"g": scheme}, ignore=["lm_head"]))
for module in model.modules():
    if hasattr(module, "weight_zero_point"):
        torch.nn.init.constant_(module.weight_scale, 0.02)
        module.weight_zero_point.data.fill_(3)
with tempfile.TemporaryDirectory() as folder:
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError as error:  # 8 rows of zero points in the file, 64 in the model
        raise SystemExit(f"it cannot be loaded again: {error}") from None

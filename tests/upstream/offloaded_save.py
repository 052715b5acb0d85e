import glob
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as away:
    Zamba2ForCausalLM(config).save_pretrained(folder, max_shard_size="100KB")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "disk"}, offload_folder=away)
        loaded.save_pretrained(f"{folder}/again", max_shard_size="100KB")
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {str(error)[:150]}") from None
    counts = [sum(len(load_file(f)) for f in glob.glob(f"{at}/*.safetensors")) for at in (folder, f"{folder}/again")]
print(f"{counts[0]} tensors before, {counts[1]} after")
raise SystemExit(counts[0] != counts[1])

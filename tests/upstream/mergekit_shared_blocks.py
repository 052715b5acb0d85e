import tempfile

from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file, save_file
from transformers import Zamba2Config, Zamba2ForCausalLM

config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
    architectures=["Zamba2ForCausalLM"],
)  # fmt: skip
with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b, tempfile.TemporaryDirectory() as out:
    model = Zamba2ForCausalLM(config)
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}  # at every layer
    once = {k: v for k, v in state.items() if not any(f"layers.{i}.shared" in k for i in (3, 5))}  # as published
    for folder, tensors in ((a, once), (b, {k: v + 1 for k, v in state.items()})):
        config.save_pretrained(folder)
        save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
    words = {"merge_method": "linear", "models": [{"model": x, "parameters": {"weight": 0.5}} for x in (a, b)]}
    run_merge(
        MergeConfiguration.model_validate(words), out, MergeOptions(copy_tokenizer=False, trust_remote_code=False)
    )
    merged = load_file(f"{out}/model.safetensors")
unmerged = [k for k, v in merged.items() if k in state and not v.allclose(state[k] + 0.5, atol=1e-4)]
print(f"{len(unmerged)} tensors are one parent's, unmerged: {unmerged[:1]}")
raise SystemExit(bool(unmerged))

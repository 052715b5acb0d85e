import tempfile
from pathlib import Path

from transformers import Zamba2Config, Zamba2ForCausalLM

config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 2430000000\n"
with tempfile.TemporaryDirectory() as folder:
    config.save_pretrained(folder)
    Path(folder, "model.safetensors").write_text(pointer)  # as `git clone` leaves it where git-lfs is not installed
    try:
        Zamba2ForCausalLM.from_pretrained(folder)
        said = "nothing"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
print(f"of a git-lfs pointer in the place of the weights it says: {said}")
raise SystemExit("git-lfs" not in said.lower() and "git lfs" not in said.lower())

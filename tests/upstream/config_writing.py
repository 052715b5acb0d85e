import json

from transformers import Zamba2Config

config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
)  # fmt: skip
written = json.loads(config.to_json_string(use_diff=False))
unknown = {key: written[key] for key in ("layer_types", "rope_parameters", "dtype") if written.get(key) is not None}
if "linear_attention" in (written.get("layers_block_type") or []):
    unknown["layers_block_type"] = written["layers_block_type"]
if "rope_theta" in written:
    unknown.pop("rope_parameters", None)
unknown.pop("dtype", None)  # named torch_dtype before 4.56; its loss costs memory, not correctness
print(f"releases that load Zamba2 and do not know it: {unknown}")
raise SystemExit(bool(unknown))

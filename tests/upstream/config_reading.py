from transformers import AutoModelForCausalLM, Zamba2Config, ZambaConfig

wrong = []
for cls in (Zamba2Config, ZambaConfig):
    for mamba in ("mamba", "linear_attention"):  # what releases before 5.13 write, and what later ones do
        try:
            config = cls(
                vocab_size=64,
                hidden_size=64,
                num_hidden_layers=6,
                layers_block_type=[mamba, "hybrid"] * 3,
                intermediate_size=128,
                num_attention_heads=4,
                mamba_d_state=8,
                n_mamba_heads=2,
            )
            AutoModelForCausalLM.from_config(config)
        except Exception as error:
            wrong.append(f"{cls.__name__} with {mamba!r}: {type(error).__name__} {error}")
print("\n".join(wrong) or "every release's words are read")
raise SystemExit(bool(wrong))

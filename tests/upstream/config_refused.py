from transformers import Zamba2Config, Zamba2ForCausalLM

try:
    Zamba2ForCausalLM(Zamba2Config(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, layers_block_type=["mamba", "hybrid"], num_mem_blocks=0,
        mamba_d_state=8, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4,
    ))  # fmt: skip
except Exception as error:
    print(f"{type(error).__name__}: {error!s}")
    raise SystemExit("num_mem_blocks" not in str(error)) from None
raise SystemExit(1)

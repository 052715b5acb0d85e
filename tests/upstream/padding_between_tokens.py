import torch
from transformers import Zamba2Config, Zamba2ForCausalLM

torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=64, hidden_size=64, num_hidden_layers=6, layers_block_type=["mamba", "hybrid"] * 3, num_mem_blocks=1,
    mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4, intermediate_size=128, num_attention_heads=4, adapter_rank=4,
    use_mamba_kernels=False,
)  # fmt: skip
model = Zamba2ForCausalLM(config).eval()
ids, mask = torch.arange(3, 13)[None], torch.ones(1, 10, dtype=torch.long)
mask[0, 4] = 0  # padding between the tokens of a row, as after a chat whose turns were padded
positions = (mask.cumsum(-1) - 1).clamp(min=0)
with torch.no_grad():
    logits = []
    for token in (7, 50):  # what stands under the mask must not matter, nor must its place be a token's
        logits.append(
            model(ids.masked_fill(mask == 0, token), attention_mask=mask, position_ids=positions).logits[:, -1]
        )
    kept = mask[0].bool()
    alone = model(ids[:, kept], position_ids=positions[:, kept]).logits[:, -1]
apart = max(float((one - alone).abs().max() / alone.abs().max()) for one in logits)
print(f"the last token's logits with and without the masked one: {apart:.2g} apart")
raise SystemExit(apart > 1e-4)

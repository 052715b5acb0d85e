import torch
from transformers import Zamba2Config
from transformers.models.zamba2 import modeling_zamba2 as zamba2


def kernel(zxbcdt, *args, outproj_weight, **kwargs):  # what mamba_split_conv1d_scan_combined does at its end
    out = zxbcdt[..., : outproj_weight.shape[1]] @ outproj_weight.T
    return (out, None) if kwargs.get("return_final_states") else out


config = Zamba2Config(
    hidden_size=64, num_hidden_layers=2, layers_block_type=["mamba", "hybrid"], num_mem_blocks=1, mamba_d_state=8,
    mamba_ngroups=1, n_mamba_heads=4, num_attention_heads=4, use_mem_eff_path=True,
)  # fmt: skip
mixer = zamba2.Zamba2MambaMixer(config, layer_idx=0).train()
for name in ("mamba_split_conv1d_scan_combined", "mamba2_split_conv1d_scan_combined"):
    setattr(zamba2, name, kernel)  # in place of mamba_ssm's, so that no GPU is needed
calls = []
mixer.out_proj.register_forward_hook(lambda *_: calls.append(1))  # as a LoRA on out_proj, or bitsandbytes' Linear4bit
run = getattr(mixer, "cuda_kernels_forward", mixer)  # the path of a GPU with kernels
run(torch.randn(1, 8, 64))
print("out_proj is called" if calls else "out_proj is passed by: its weight goes to the kernel as it lies there")
raise SystemExit(not calls)

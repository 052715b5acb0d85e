"""The shape of the tiny model and its config.json.

It is the published 7B in small: two shared blocks, rotary positions in the shared attention, two Mamba2
groups, adapters on the MLP only, tied embeddings, hybrid layers at irregular spacing after a plain first layer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a Zamba2 model, under the names of transformers' Zamba2Config where it has one.

    Every linear layer has in_features divisible by 64, the block size of bitsandbytes' 4-bit types. in_proj has
    2 * expand * hidden + 2 * groups * d_state + heads output rows; the default's 644 is, like the 10448 and 14704
    of 2.7B and 7B, no multiple of 32.
    """

    vocab_size: int = 320
    hidden_size: int = 128
    num_hidden_layers: int = 9
    hybrid_layer_ids: tuple[int, ...] = (1, 3, 4, 6, 7, 8)
    num_mem_blocks: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 192
    adapter_rank: int = 64
    mamba_d_state: int = 32
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_ngroups: int = 2
    n_mamba_heads: int = 4
    rope_theta: int = 10000
    rms_norm_eps: float = 1e-5
    time_step_min: float = 1e-3
    time_step_max: float = 1e-1

    @property
    def mamba_width(self) -> int:
        """Channels inside a Mamba2 mixer."""
        return self.mamba_expand * self.hidden_size

    @property
    def conv_width(self) -> int:
        """Channels of the mixer's convolution: x, B and C."""
        return self.mamba_width + 2 * self.mamba_ngroups * self.mamba_d_state

    @property
    def in_proj_rows(self) -> int:
        """Output rows of in_proj: gate, x, B, C and one time step per head."""
        return self.mamba_width + self.conv_width + self.n_mamba_heads

    @property
    def attention_width(self) -> int:
        """Channels of the shared attention: hidden state and embedding side by side."""
        return 2 * self.hidden_size

    @property
    def attention_head_dim(self) -> int:
        """Channels of one attention head."""
        return self.attention_width // self.num_attention_heads

    def block_at(self, position: int) -> int:
        """The block that the position-th hybrid layer runs."""
        return position % self.num_mem_blocks


PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<bos>", "<eos>")
# The id of byte b is b + FIRST_BYTE.
FIRST_BYTE = len(SPECIAL)

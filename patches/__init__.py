"""The adapters, in the order they are applied: the first file to read.

Each file is named for a defect of its library and says symptom, cause, upstream report and the release in which it can
go. `since` and `fixed` are the defect's own bounds. In a release that verified.json has, every adapter within its
bounds applies; in any other, those whose targets are as they were, and those of the groups in JUDGED, whose results
zamba_compat.runtime.postconditions checks. The order matters only among adapters of one target: a later one wraps the
earlier.

The next release: `make next-release VERSION=X.Y.Z`, see CONTRIBUTING.md.
"""

from __future__ import annotations

import os

from zamba_compat._engine.registry import GUARDING, Adapter

from .accelerate import one_place
from .bitsandbytes import carried_cpu_flag, cpu_packing, cpu_product, state_dtype, storage_cast
from .compressed_tensors import packed_zero_points
from .mergekit import base_decides, della_rows, one_parent_only, optional_t, shared_blocks
from .peft import mamba_targets, tied_merge
from .transformers import (
    block_order,
    blocks_of_tokens,
    compute_dtype,
    config_reading,
    config_refused,
    config_writing,
    cpu_refused,
    device_map_aliases,
    embeddings_generation,
    folded_products,
    four_bit_products,
    fused_path,
    hybrid_cache_reset,
    long_context,
    other_files,
    packed_samples,
    packed_weight_cast,
    plain_scan,
    quant_state_per_module,
    quantized_one_by_one,
    rehydrate,
    release,
    rotary_without_rope,
    save,
    shared_quantized,
    shared_skipped,
    single_token,
    tie_map,
    tied_keys,
    tiled_products,
    time_step_limit,
    unverified,
    widened_products,
)
from .transformers.release import release_fault

__all__ = ["ADAPTERS", "JUDGED", "VERIFIED", "release_fault"]

VERIFIED = os.path.join(os.path.dirname(__file__), "verified.json")

JUDGED = tuple(("transformers", group) for group in sorted(GUARDING))
"""Groups that are applied to changed code too, in releases not yet tested: what they do is checked where it shows."""

ADAPTERS: tuple[Adapter, ...] = (
    release.ADAPTER,
    # Configs. Reading wraps the rescaling, which needs rope_theta where reading has put it.
    *long_context.ADAPTERS,
    *config_reading.ADAPTERS,
    *config_writing.ADAPTERS,
    # Construction, tying, saving.
    block_order.ADAPTER,
    rotary_without_rope.ADAPTER,
    config_refused.ADAPTER,
    *tie_map.ADAPTERS,
    *tied_keys.ADAPTERS,
    *save.ADAPTERS,
    # Loading.
    *rehydrate.ADAPTERS,
    *device_map_aliases.ADAPTERS,
    *other_files.ADAPTERS,
    quantized_one_by_one.ADAPTER,
    one_place.ADAPTER,
    packed_zero_points.ADAPTER,
    # Quantization.
    *cpu_refused.ADAPTERS,
    *packed_weight_cast.ADAPTERS,
    *shared_skipped.ADAPTERS,
    *shared_quantized.ADAPTERS,
    compute_dtype.ADAPTER,
    *quant_state_per_module.ADAPTERS,
    # bitsandbytes itself, on a CPU. Packing comes after the others, which meet plain weights only.
    storage_cast.ADAPTER,
    state_dtype.ADAPTER,
    carried_cpu_flag.ADAPTER,
    cpu_product.ADAPTER,
    cpu_packing.ADAPTER,
    # Numbers and decoding.
    time_step_limit.ADAPTER,
    *plain_scan.ADAPTERS,
    *fused_path.ADAPTERS,  # around the others, which compute on a CPU
    *packed_samples.ADAPTERS,
    hybrid_cache_reset.ADAPTER,
    embeddings_generation.ADAPTER,
    # Speed.
    *four_bit_products.ADAPTERS,
    folded_products.ADAPTER,  # within the others, which see to it too
    single_token.ADAPTER,
    widened_products.ADAPTER,
    tiled_products.ADAPTER,
    blocks_of_tokens.ADAPTER,
    # Fine-tuning.
    mamba_targets.ADAPTER,
    *tied_merge.ADAPTERS,
    # Merging. What SLERP keeps of the base alone is settled before parents are compared.
    base_decides.ADAPTER,
    della_rows.ADAPTER,
    one_parent_only.ADAPTER,
    optional_t.ADAPTER,
    shared_blocks.ADAPTER,
    # Outside of all others, whose work it checks.
    *unverified.ADAPTERS,
)

"""What a wrong loader would do to a model: the same weights, mis-tied in four ways, and their perplexity."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from .model import TinyZamba2, Wiring
from .perplexity import perplexity
from .shape import Shape


def wrong_wirings(shape: Shape) -> Iterator[tuple[str, Wiring]]:
    """Wrong wirings by name; each differs from the correct one in blocks or in adapters, never in both."""
    right = Wiring.correct(shape)
    blocks, count = shape.num_mem_blocks, len(right.adapters)
    yield "blocks_swapped", Wiring(tuple(blocks - 1 - b for b in right.blocks), right.adapters)
    yield "adapters_rotated", Wiring(right.blocks, tuple((p + 1) % count for p in right.adapters))
    by_layer = tuple(layer % blocks for layer in shape.hybrid_layer_ids)
    yield "block_by_layer_index", Wiring(by_layer, right.adapters)


def with_random_block(model: TinyZamba2, block: int, seed: int) -> TinyZamba2:
    """A copy whose matrices of one block, adapters included, are drawn anew as before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = TinyZamba2(model.shape)
    changed = copy.deepcopy(model)
    changed.model.blocks[block].load_state_dict(fresh.model.blocks[block].state_dict())
    return changed


def measure(model: TinyZamba2, text: bytes, seed: int) -> dict[str, float]:
    """Perplexity per byte of the model as it should be ("correct") and of each mis-tied form."""
    result = {"correct": perplexity(model, text)}
    for name, wiring in wrong_wirings(model.shape):
        result[name] = perplexity(lambda ids, w=wiring: model(ids, w), text)
    for block in range(model.shape.num_mem_blocks):
        # Not the training seed: that would bring back the weights the block was trained from.
        result[f"block_{block}_random"] = perplexity(with_random_block(model, block, seed + 1), text)
    return result

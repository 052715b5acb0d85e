"""Give every position of a built Zamba2 model a block of its own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from zamba_compat.layout.sharing import SharingMap

if TYPE_CHECKING:
    from torch import nn

ADAPTER_LISTS = (
    ("feed_forward", "gate_up_proj_adapter_list"),
    ("self_attn", "linear_q_adapter_list"),
    ("self_attn", "linear_k_adapter_list"),
    ("self_attn", "linear_v_adapter_list"),
)


def untie(model: nn.Module) -> None:
    """Rebuild `model`, in place, as the same architecture with num_mem_blocks = number of positions.

    Every hybrid layer gets its own copy of its shared transformer, which keeps only the adapter of its own position.
    Parameters on the meta device are copied as such, so before loading this costs nothing.

    Args:
        model: a Zamba2 model of any head, its layers at `.layers` or `.model.layers`.
    """
    base: Any = getattr(model, "model", model)
    sharing = SharingMap.from_config(base.config)
    for position in sharing.positions:
        layer = base.layers[position.layer]
        block = _copied(layer.shared_transformer)
        for owner in (block, block.self_attn, block.feed_forward):
            owner.block_id = position.index
        for owner_name, list_name in ADAPTER_LISTS:
            _keep_only(getattr(getattr(block, owner_name), list_name, None), position.index)
        layer.shared_transformer = block
    base.config.num_mem_blocks = len(sharing.positions)  # the one config object that all parts of a model hold
    _forget_ties(model, base)


def _copied(block: Any) -> Any:
    """A deep copy; a 4-bit weight on the meta device, which cannot copy itself, is made anew."""
    from .bitsandbytes import is_quantized

    linears = [module for module in block.modules() if is_quantized(module) and module.weight.is_meta]
    memo: dict[int, Any] = {}
    for linear in linears:
        weight = linear.weight
        options = {name: value for name, value in vars(weight).items() if name != "module"}
        memo[id(weight)] = type(weight)(weight.data, requires_grad=False, **options)
    copied = copy.deepcopy(block, memo)
    for module in copied.modules():
        if is_quantized(module) and hasattr(module.weight, "quant_state"):
            module.weight.module = module
    return copied


def _keep_only(adapters: Any, index: int) -> None:
    from torch import nn

    if adapters is not None:
        for slot in range(len(adapters)):
            if slot != index:
                adapters[slot] = nn.Identity()


def _forget_ties(model: Any, base: Any) -> None:
    # 4.x keeps a list of patterns on every head, 5.x a mapping on the base model and its expansion on the top one.
    if isinstance(base._tied_weights_keys, dict):
        base._tied_weights_keys = {}
    else:
        base._tied_weights_keys = []
        if model is not base and model._tied_weights_keys:
            model._tied_weights_keys = [key for key in model._tied_weights_keys if key == "lm_head.weight"]
    if hasattr(model, "all_tied_weights_keys"):
        ties = model.all_tied_weights_keys.items()
        model.all_tied_weights_keys = {alias: key for alias, key in ties if ".shared_transformer." not in f".{alias}"}

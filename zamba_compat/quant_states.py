"""The names under which bitsandbytes stores what belongs to a quantized weight: 4-bit below it, 8-bit beside it."""

from __future__ import annotations

_4BIT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_QUANT_STATE = "quant_state."
_8BIT = ("SCB", "weight_format")


def weight_of(name: str) -> str | None:
    """The weight that a stored name is a part of: "x.weight.absmax" and "x.SCB" -> "x.weight"; None for others."""
    found = _split(name)
    return None if found is None else found[0]


def base_of(name: str) -> str:
    """As `weight_of`, and the name itself where it is no part of a quantized weight."""
    found = _split(name)
    return name if found is None else found[0]


def part_of(name: str) -> str | None:
    """What a stored name is to its weight: "absmax", "quant_state.bitsandbytes__nf4", "SCB"; None for others."""
    found = _split(name)
    return None if found is None else found[1]


def _split(name: str) -> tuple[str, str] | None:
    module, marker, part = name.rpartition(".weight.")
    if marker and (part in _4BIT or part.startswith(_QUANT_STATE)):
        return f"{module}.weight", part
    module, _, part = name.rpartition(".")
    return (f"{module}.weight", part) if module and part in _8BIT else None

"""Tell a Zamba's 4-bit products from other models'.

Symptom:  see `patches/bitsandbytes/cpu_product.py`: bitsandbytes' products with 4-bit weights are slow on a CPU.
Cause:    a linear layer does not know the model that it is a part of, and other models' are to stay bitsandbytes' own.
Upstream: none known.
Remove:   with `bitsandbytes-cpu-product`.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def forward(original: Any) -> Any:
    from zamba_compat.cpu.nf4 import running

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with running():
            return original(self, *args, **kwargs)

    return forward


ADAPTERS = tuple(
    Adapter(
        name=f"{name}-4-bit-products",
        library="transformers",
        since="4.49",
        group="speed",
        target=f"transformers.models.{name}.modeling_{name}:{kind}Model.forward",
        replace=forward,
        signature=("self", ...),
        upstream="none known",
    )
    for name, kind in (("zamba2", "Zamba2"), ("zamba", "Zamba"))
)

"""The merge methods, by their names in mergekit's YAML; `slerp_rowwise` is ours."""

from __future__ import annotations

from .base import Method, Share
from .linear import Linear
from .slerp import Slerp
from .task_arithmetic import TaskArithmetic

__all__ = ["METHODS", "PARAMETERS", "Method", "Share"]

METHODS: dict[str, Method] = {
    "slerp": Slerp(rows=False, title="SLERP"),
    "slerp_rowwise": Slerp(rows=True, title="SLERP, row by row"),
    "linear": Linear(),
    "task_arithmetic": TaskArithmetic(),
}
# Of mergekit's methods, those not done here too: what is none of these is a slip of the pen.
PARAMETERS = frozenset(
    {"t", "weight", "normalize", "lambda", "density", "rescale", "int8_mask", "gamma", "epsilon", "scale"}
)

"""What a context that replaces PyTorch's functions is asked about."""

from __future__ import annotations

from typing import Any

from zamba_compat.cpu.function_mode import Instead


class Asked(Instead):
    """Replaces nothing. Attributes: functions, those that it was asked about, in order."""

    def __init__(self) -> None:
        super().__init__({})
        self.functions: list[Any] = []

    def __torch_function__(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        self.functions.append(func)
        return super().__torch_function__(func, *args, **kwargs)

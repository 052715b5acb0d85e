"""vLLM's source with stand-ins for what it computes with: kernels, attention, the platform, the process group.

The modules in `OWN` are vLLM's own files, executed as they are. Every other module of vllm is empty: what is imported
from it is a class that can be inherited from, called, used as a decorator, and is false. A few have to be something:
`GIVEN` says what.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

_LAYERS = "vllm.model_executor.layers"
_COMPRESSED = f"{_LAYERS}.quantization.compressed_tensors"
OWN = frozenset(
    {
        "vllm.scalar_type",
        "vllm.distributed.utils",
        "vllm.model_executor.models.zamba2",
        "vllm.model_executor.models.utils",
        "vllm.model_executor.model_loader.utils",
        "vllm.model_executor.model_loader.weight_utils",
        "vllm.model_executor.parameter",
        "vllm.model_executor.utils",
        f"{_LAYERS}.linear",
        f"{_LAYERS}.vocab_parallel_embedding",
        f"{_LAYERS}.mamba.mamba_mixer2",
        f"{_LAYERS}.mamba.mamba_utils",
        f"{_LAYERS}.quantization",
        f"{_LAYERS}.quantization.base_config",
        f"{_LAYERS}.quantization.utils.config_utils",
        f"{_LAYERS}.quantization.utils.fp8_utils",
        f"{_LAYERS}.quantization.utils.marlin_utils",
        f"{_LAYERS}.quantization.utils.quant_utils",
        f"{_COMPRESSED}.compressed_tensors",
        f"{_COMPRESSED}.utils",
        f"{_COMPRESSED}.schemes",
        f"{_COMPRESSED}.schemes.compressed_tensors_scheme",
        f"{_COMPRESSED}.schemes.compressed_tensors_wNa16",
        f"{_COMPRESSED}.schemes.compressed_tensors_w8a8_fp8",
        f"{_COMPRESSED}.schemes.compressed_tensors_w8a16_fp8",
    }
)


class _Anything(ABCMeta):
    """The class of what is imported from an empty module; classes that vLLM derives from one are ordinary."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or not cls.__dict__.get("_stands_in"):
            raise AttributeError(f"{cls.__name__} has no {name}")
        return stand_in(name)

    def __call__(cls, *args: Any, **more: Any) -> Any:
        if not cls.__dict__.get("_stands_in"):
            return super().__call__(*args, **more)
        decorates = len(args) == 1 and not more and isinstance(args[0], (FunctionType, type))
        return args[0] if decorates else cls

    def __bool__(cls) -> bool:
        return not cls.__dict__.get("_stands_in", False)

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __getitem__(cls, key: object) -> Any:
        return cls


def stand_in(name: str) -> Any:
    """Something of this name that can be anything but true."""
    return _Anything(name, (), {"_stands_in": True, "__module__": "vllm"})


class Module(nn.Module):
    """A layer without weights, and the base of layers that vLLM registers."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__()

    @classmethod
    def register(cls, *args: Any, **more: Any) -> Callable[[type], type]:
        return lambda registered: registered


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6, **more: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))


class Config(SimpleNamespace):
    """vLLM's configuration: what is not set is false."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)


class Platform:
    """A CUDA device of compute capability 9.0, as far as anybody asks."""

    def is_cuda(self) -> bool:
        return True

    def is_cuda_alike(self) -> bool:
        return True

    def get_device_capability(self, *args: Any) -> Any:
        return SimpleNamespace(to_int=lambda: 90, major=9, minor=0)

    def has_device_capability(self, wanted: Any, *args: Any) -> bool:
        return (wanted if isinstance(wanted, int) else 10 * wanted[0] + wanted[1]) <= 90

    def fp8_dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **more: False  # is_rocm, is_xpu, use_sync_weight_loader and so on


def given(dtype: torch.dtype, rank: int, size: int) -> dict[str, dict[str, Any]]:
    """Module -> name -> what it is there, for weights of this dtype on one rank of a tensor-parallel group."""
    config = Config(
        compilation_config=Config(static_forward_context={}),
        kernel_config=Config(linear_backend="auto"),
        parallel_config=Config(decode_context_parallel_size=1),
        num_speculative_tokens=0,
        model_config=Config(dtype=dtype),
    )

    def divide(number: int, by: int) -> int:
        if number % by:
            raise ValueError(f"{number} is not divisible by {by}")
        return number // by

    return {
        "vllm.config": {
            "get_current_vllm_config": lambda: config,
            "get_current_vllm_config_or_none": lambda: config,
        },
        "vllm.distributed": {
            "divide": divide,
            "get_tensor_model_parallel_rank": lambda: rank,
            "get_tensor_model_parallel_world_size": lambda: size,
        },
        "vllm.platforms": {"current_platform": Platform()},
        "vllm.utils.math_utils": {"cdiv": lambda a, b: -(-a // b), "round_up": lambda a, b: -(-a // b) * b},
        "vllm.model_executor.custom_op": {"CustomOp": Module, "PluggableLayer": Module},
        f"{_LAYERS}.attention": {"Attention": type("Attention", (Module,), {})},
        f"{_LAYERS}.layernorm": {"RMSNorm": RMSNorm},
        f"{_LAYERS}.mamba.abstract": {"MambaBase": type("MambaBase", (), {})},
        f"{_COMPRESSED}.transform.linear": {"get_linear_transform_schemes": lambda *args: ({}, {})},
    }


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, root: Path, named: dict[str, dict[str, Any]]) -> None:
        self.root, self.named = root, named

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if fullname.partition(".")[0] != "vllm":
            return None
        if fullname not in OWN:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        place = self.root.joinpath(*fullname.split("."))
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        within = [str(place)] if place.is_dir() else None
        return importlib.util.spec_from_file_location(fullname, file, submodule_search_locations=within)

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []
        known = self.named.get(module.__name__, {})
        made: dict[str, Any] = {}

        def find(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if f"{module.__name__}.{name}" in OWN:
                return importlib.import_module(f"{module.__name__}.{name}")
            return known[name] if name in known else made.setdefault(name, stand_in(name))

        module.__getattr__ = find  # type: ignore[method-assign]


@contextmanager
def vllm(source: Path, dtype: torch.dtype, rank: int = 0, size: int = 1) -> Iterator[None]:
    """Inside the block `import vllm...` finds vLLM's source at `source`, the directory that holds vllm/."""
    finder = _Finder(source, given(dtype, rank, size))
    sys.meta_path.insert(0, finder)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
            del sys.modules[name]

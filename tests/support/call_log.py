"""What hooks on a Zamba2's modules see, with the import or without: `python tests/support/call_log.py` prints stock's.

Imports nothing of the package.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HYBRID = (2, 3, 4)  # 5.1 to 5.16 number blocks by layers, so stock builds these blocks, and not others
PROMPT = 80  # tokens: more than a chunk, and more than go through norms and the feed-forward part at once
Entry = list[Any]  # name, what it was given and what it made: [[shape, dtype] ...]
Log = list[Entry]
SCENES = ("prompt", "padded", "tokens", "gradients")


def build(dtype: torch.dtype) -> Any:
    import transformers
    from transformers import Zamba2Config, Zamba2ForCausalLM

    if "zamba_compat" not in sys.modules and transformers.__version__ >= "5":
        # Up to 5.16 it raises for some of Zamba2; who shares what with whom changes no call.
        base: Any = transformers.PreTrainedModel
        base.get_expanded_tied_weights_keys = lambda self, all_submodels=False: {}
    config = Zamba2Config(
        vocab_size=120, hidden_size=64, num_hidden_layers=5,
        layers_block_type=["hybrid" if i in HYBRID else "mamba" for i in range(5)], mamba_d_state=16, mamba_ngroups=2,
        n_mamba_heads=4, chunk_size=16, intermediate_size=96, num_attention_heads=4, num_key_value_heads=4,
        adapter_rank=8, num_mem_blocks=2, use_mem_rope=True, use_shared_attention_adapter=True,
        max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.06,
    )  # fmt: skip
    torch.manual_seed(0)
    return Zamba2ForCausalLM(config).eval().to(dtype)


def told(values: Any) -> list[Any]:
    """Shapes and dtypes of the tensors among a call's arguments or results."""
    values = values if isinstance(values, tuple) else (values,)
    return [[list(value.shape), str(value.dtype)] for value in values if isinstance(value, Tensor)]


def names(model: Any, only: str | None) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are watched: all below a layer, or those whose names end with `only`.

    A shared block's have no layer in their names: releases differ in whether each position has modules of its own.
    """
    for name, module in model.named_modules():
        if name.startswith("model.layers.") and name.count(".") > 2 and (only is None or name.endswith(only)):
            yield re.sub(r"\d+\.shared_transformer", "shared_transformer", name), module


@contextmanager
def forward_hooks(model: Any, log: Log, only: str | None) -> Iterator[None]:
    def watch(name: str) -> Callable[..., None]:
        return lambda module, given, made: log.append([name, told(given), told(made)])

    handles = [module.register_forward_hook(watch(name)) for name, module in names(model, only)]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def pre_hooks(model: Any, log: Log, only: str | None) -> Iterator[None]:
    def watch(name: str) -> Callable[..., None]:
        return lambda module, given: log.append([name, told(given)])

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in names(model, only)]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def global_hooks(model: Any, log: Log, only: str | None) -> Iterator[None]:
    watched = {module: name for name, module in names(model, only)}

    def see(module: nn.Module, given: Any, made: Any) -> None:
        if module in watched:
            log.append([watched[module], told(given), told(made)])

    handle = nn.modules.module.register_module_forward_hook(see)
    yield
    handle.remove()


@contextmanager
def overridden(model: Any, log: Log, only: str | None) -> Iterator[None]:
    """A forward of the instance's own, as accelerate and the kernels library put there."""

    def watch(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            log.append([name, told(args), told(made)])
            return made

        return forward

    for name, module in names(model, only):
        module.forward = watch(name, module.forward)
    yield
    for _, module in names(model, only):
        del module.forward


@contextmanager
def accelerate_hooks(model: Any, log: Log, only: str | None) -> Iterator[None]:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class See(ModelHook):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.name = name

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            self.given = told(args)
            return args, kwargs

        def post_forward(self, module: Any, output: Any) -> Any:
            log.append([self.name, self.given, told(output)])
            return output

    for name, module in names(model, only):
        add_hook_to_module(module, See(name))
    yield
    for _, module in names(model, only):
        remove_hook_from_module(module)


@contextmanager
def backward_hooks(model: Any, log: Log, only: str | None) -> Iterator[None]:
    def watch(name: str) -> Callable[..., None]:
        return lambda module, *gradients: log.append([name])

    handles = [module.register_full_backward_hook(watch(name)) for name, module in names(model, only)]
    yield
    for handle in handles:
        handle.remove()


KINDS: dict[str, Callable[..., Any]] = {
    "forward": forward_hooks,
    "pre": pre_hooks,
    "global": global_hooks,
    "overridden": overridden,
    "accelerate": accelerate_hooks,
    "backward": backward_hooks,
}


def run(model: Any, scene: str) -> Tensor:
    """The logits of one of SCENES."""
    ids = (torch.arange(2 * PROMPT).view(2, -1) * 7 % 115) + 3
    if scene == "gradients":
        # Hooks that look back take no views that are changed in place.
        logits: Tensor = model(ids, use_cache=False).logits
        logits.float().sum().backward()
        return logits.detach()
    with torch.no_grad():
        if scene == "prompt":
            return model(ids[:1], use_cache=False).logits
        if scene == "padded":
            mask = torch.ones_like(ids)
            mask[0, :9] = 0
            return model(ids, attention_mask=mask, use_cache=False).logits
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
        found = model.generate(
            ids[:1, :20], max_new_tokens=3, **options, output_logits=True, return_dict_in_generate=True
        )
        return torch.stack(found.logits)


def record(model: Any, kind: str, scene: str, only: str | None = None) -> tuple[Log, Tensor]:
    """What hooks of a kind see in a scene, and its logits."""
    log: Log = []
    with KINDS[kind](model, log, only):
        logits = run(model, scene)
    return log, logits


def main() -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        model = build(getattr(torch, dtype))
        for scene in SCENES:
            kind = "backward" if scene == "gradients" else "forward"
            found[f"{dtype} {scene}"] = record(model, kind, scene)[0]
            if scene in ("prompt", "tokens"):  # some releases call accelerate's hooks themselves, too
                found[f"{dtype} {scene} accelerate"] = record(model, "accelerate", scene)[0]
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Merge each shared block of Zamba2 once, with one value, whatever layout the parents are in.

Symptom:  of a parent in expanded and one in hub layout, the copies at later layers go into the output as they are, so
          that it holds a block in versions; so it does of two expanded ones with a curve over depth; of two in hub
          layout the block and all its adapters get the curve's value at the first layer that uses the block.
Cause:    mergekit knows no Zamba2 and infers the tensors from names, which do not say what is shared.
Upstream: none known.
Remove:   when mergekit has an architecture for tensors that several layers share.

A tensor of a shared block gets the mean of the values at the layers that use the block, an adapter the value at its
own position's layer, everything else the value at its own layer. The output is in the hub layout.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch


def architectures(original: Any) -> Any:
    from zamba_compat.merging.mergekit.architecture import NAME, architecture

    return {**original, NAME: [architecture()]}


def plan(original: Any) -> Any:
    def _plan(self: Any) -> None:
        from zamba_compat.merging.mergekit.architecture import architecture
        from zamba_compat.merging.mergekit.presence import is_tied_head
        from zamba_compat.merging.mergekit.shared import check_slices, folded

        if self.arch_info is not architecture():
            original(self)
            return
        self.normalize_config()
        (module,) = self.config.modules.values()
        sources = dict.fromkeys(source.model for part in module.slices for source in part.sources)
        check_slices(module.slices, {model: self._model_arch(model).config for model in sources})
        original(self)
        # A tied head that is stored all the same is a copy of the embedding, which loading takes.
        self._tensors = folded(pair for pair in self._tensors if not is_tied_head(pair[0].name, self.out_model_config))

    return _plan


def loader(original: Any) -> Any:
    def lazy_loader(self: Any, cache_dir: str | None = None, lazy_unpickle: bool = True) -> Any:
        from zamba_compat.merging.mergekit.parents import hub_loader

        return hub_loader(original(self, cache_dir, lazy_unpickle))

    return lazy_loader


ADAPTER = Adapter(
    name="mergekit-shared-blocks",
    library="mergekit",
    since="0.1.5",
    group="merging",
    patches=(
        Patch(target="mergekit.architecture:NAME_TO_ARCH", replace=architectures),
        Patch(target="mergekit.plan:MergePlanner._plan", replace=plan, signature=("self",)),
        Patch(
            target="mergekit.common:ModelReference.lazy_loader",
            replace=loader,
            signature=("self", "cache_dir", "lazy_unpickle"),
        ),
    ),
    upstream="none known",
)

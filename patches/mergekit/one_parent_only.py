"""Refuse a tensor that one parent has and another lacks.

Symptom:  it goes into the output as it is, unmerged, or is left out, without a word.
Cause:    what is not in all parents counts as optional, and of an optional tensor the only one found is passed through;
          what the architecture does not list is not looked at.
Upstream: none known.
Remove:   when mergekit refuses, or asks.

As before: names that stand for one another (an untied lm_head and the embedding), buffers that a model computes by
itself, what no parent has, what is read from one model only, and of two architectures what only the other one knows.
Where the base's lm_head is tied to its embedding, an lm_head that only one parent stores is left out: loading ties it.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch
from zamba_compat.errors import CheckpointError


def _error(name: str, having: list[Any], lacking: list[Any]) -> CheckpointError:
    return CheckpointError(
        f"{', '.join(map(str, having))} has it and {', '.join(map(str, lacking))} has not: it cannot be merged.",
        where=name,
        remedy="Merge models that hold the same tensors; where SLERP is to keep the base's, let no filter of t match.",
    )


def refuse_planned(original: Any) -> Any:
    def plan_tensor(self: Any, weight: Any, weights_in: Any, models: Any, cfg_reader: Any) -> None:
        from zamba_compat.merging.mergekit.presence import is_tied_head, is_trained, stores

        if len(models) > 1 and is_trained(weight.name):
            trust_remote_code = self.options.trust_remote_code
            pairs = list(zip(models, weights_in, strict=False))
            having = [model for model, own in pairs if stores(model, own, trust_remote_code=trust_remote_code)]
            lacking = [model for model, _ in pairs if model not in having]
            if having and lacking:
                if is_tied_head(weight.name, self.out_model_config):
                    return
                raise _error(weight.name, having, lacking)
        original(self, weight, weights_in, models, cfg_reader)

    return plan_tensor


def refuse_unknown(original: Any) -> Any:
    def plan_module(self: Any, module_name: str, definition: Any) -> None:
        original(self, module_name, definition)
        if len(self.config.modules) > 1:  # each knows a part of the names
            return
        from mergekit.config import ConfigReader
        from mergekit.io.tasks import LoaderCache

        from zamba_compat.merging.mergekit.presence import has_t, is_tied_head, is_trained, of_one_only

        architecture = self.out_model_config.architectures
        models = dict.fromkeys(source.model for part in definition.slices for source in part.sources)
        alike = [model for model in models if self._model_arch(model).config.architectures == architecture]
        stored = {model: LoaderCache().get(model).index.tensor_paths for model in alike}
        first = ConfigReader(config=self.config, slice_out=definition.slices[0], t=0, module=definition)
        for name, having in of_one_only(stored, (weight.name for weight, _ in self._tensors)).items():
            kept = self._method.spec.name == "slerp" and not has_t(name, first)
            if is_trained(name) and not kept and not is_tied_head(name, self.out_model_config):
                raise _error(name, having, [model for model in alike if model not in having])

    return plan_module


ADAPTER = Adapter(
    name="mergekit-one-parent-only",
    library="mergekit",
    since="0.1.5",
    group="merging",
    patches=(
        Patch(
            target="mergekit.plan:MergePlanner.plan_tensor",
            replace=refuse_planned,
            signature=("self", "weight", "weights_in", "models", "cfg_reader"),
        ),
        Patch(
            target="mergekit.plan:MergePlanner.plan_module",
            replace=refuse_unknown,
            signature=("self", "module_name", "definition"),
        ),
    ),
    upstream="none known",
)

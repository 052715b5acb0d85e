"""What is installed, which adapters apply, and whether Zamba2 is built right here."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

from zamba_compat._engine.registry import AdapterStatus, Verdict
from zamba_compat.cpu.native import kernels
from zamba_compat.layout.published import PUBLISHED, Shape
from zamba_compat.layout.sharing import SharingMap

LIBRARIES = (
    "torch", "transformers", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "huggingface_hub", "peft",
    "mergekit", "mamba-ssm", "causal-conv1d", "packaging",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One published shape, built on the meta device. `fault` is None when it was built right."""

    shape: str
    parameters: int | None
    fault: str | None


@dataclass(frozen=True)
class Report:
    """What `zamba-compat doctor` prints.

    Attributes:
        versions: distribution -> installed version, None when absent.
        adapters: the state of every adapter.
        checks: the published shapes, built here; empty when transformers or torch cannot be imported.
        verdicts: what is known of the installed release of every library that adapters are for, transformers first.
        faults: what is wrong, one sentence each with the remedy; empty when all is well. A group that guards numbers,
            loading, saving or quantization and is off is a fault.
        native: the instructions that the loops in C take; None where PyTorch computes everything.
    """

    versions: dict[str, str | None]
    adapters: list[AdapterStatus]
    checks: list[Check] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    native: str | None = None

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "faults": self.faults,
            "verdicts": [{**verdict._asdict(), "sentence": verdict.sentence()} for verdict in self.verdicts],
            "versions": self.versions,
            "native": self.native,
            "checks": [asdict(check) for check in self.checks],
            "adapters": [adapter.as_dict() for adapter in self.adapters],
        }


def versions() -> dict[str, str | None]:
    """Python and every library this package deals with, by installed distribution; nothing is imported."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def check_shape(name: str, shape: Shape) -> Check:
    """Build one published shape on the meta device and compare its tying with the sharing map."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(**shape.config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        fault = tying_fault(model)
    except Exception as error:  # whatever a release does wrong here is what this check is for
        return Check(name, None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if fault is None and parameters != shape.parameters:
        fault = f"{parameters:,} distinct parameters instead of {shape.parameters:,}"
    return Check(name, parameters, fault)


def tying_fault(model: Any) -> str | None:
    """The first way in which a built model's shared tensors are not tied as the sharing map says, or None."""
    sharing = SharingMap.from_config(model.config)
    present = dict(model.named_parameters(remove_duplicate=False))
    prefix = "model." if any(name.startswith("model.") for name in present) else ""
    for canonical in sharing.shared_keys(prefix=prefix):
        tensor = present.get(canonical)
        if tensor is None:
            return f"{canonical} does not exist"
        for alias in sharing.aliases(canonical):
            if alias not in present:
                return f"{alias} does not exist"
            if present[alias] is not tensor:
                return f"{alias} is not tied to {canonical}"
    extra = {n for n in present if sharing.parse(n) is not None} - {
        alias for canonical in sharing.shared_keys(prefix=prefix) for alias in sharing.aliases(canonical)
    }
    return f"{min(extra)} belongs to no block" if extra else None


def report(checkpoint: str | None = None) -> Report:
    """Everything `doctor` has to say. Never raises for a broken environment: it says what is broken.

    Args:
        checkpoint: a directory or a name on the hub, to be loaded and held against its files.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    from zamba_compat import registry, status

    found, faults, checks = versions(), [], []
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}. Install torch and transformers>=4.49.")
    else:
        from zamba_compat.patches import release_fault

        fault = release_fault()
        if fault is not None:
            faults.append(fault)
        else:
            directory = None if checkpoint is None else _directory(checkpoint)  # before anything takes time
            checks = [check_shape(name, shape) for name, shape in PUBLISHED.items()]
            faults += [f"{check.shape}: {check.fault}" for check in checks if check.fault]
            faults += computed() if checkpoint is None or directory is None else checked(checkpoint, directory)
    verdicts = registry().verdicts()
    for verdict in verdicts:
        where = f"{verdict.library} {verdict.installed}"
        faults += [f"{where}: group {group} is off: {verdict.off[group]}." for group in verdict.guarding_off]
    loops = kernels()
    return Report(found, status(), checks, verdicts, faults, None if loops is None else loops.kind)


def computed() -> list[str]:
    """What this release computes wrong in a small model."""
    from zamba_compat.runtime.postconditions import computed

    return [f"{fault.what} (group {fault.group})." for fault in computed.faults()]


def _directory(checkpoint: str) -> str:
    from zamba_compat.inference.loading import directory_of

    return directory_of(checkpoint)


def checked(checkpoint: str, directory: str | None = None) -> list[str]:
    """What does not hold when a checkpoint is loaded here, in any release; an error of loading is one of it.

    Args:
        checkpoint: its name, for the messages.
        directory: where it lies; without it `checkpoint`, or where transformers finds it.
    """
    from transformers import AutoModelForCausalLM

    from zamba_compat.runtime.postconditions import faults_of

    directory = directory or checkpoint
    try:
        model = AutoModelForCausalLM.from_pretrained(directory)
        found = faults_of(model, {"pretrained_model_name_or_path": directory})
    except Exception as error:  # whatever is wrong with it is what was asked
        return [f"{checkpoint}: {type(error).__name__}: {error}"]
    return [f"{checkpoint}: {fault.what} (group {fault.group})." for fault in found]

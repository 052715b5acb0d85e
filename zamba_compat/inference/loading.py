"""A model and its tokenizer, loaded for inference."""

from __future__ import annotations

import os
import random
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from zamba_compat.checkpoint.hub.download import fetch
from zamba_compat.checkpoint.hub.names import on_hub
from zamba_compat.checkpoint.layouts.shapes import fill_in
from zamba_compat.checkpoint.reading.files import read_small
from zamba_compat.checkpoint.reading.location import enter
from zamba_compat.errors import CheckpointError, ZambaCompatError
from zamba_compat.layout.config import MODEL_TYPES, dialect_of, normalise_config, read_config
from zamba_compat.layout.sharing import SharingMap

from . import ablations
from .messages import leave_out

LOADS = ("auto", "4bit", "8bit", "bfloat16", "float16", "float32")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Loading:
    """How to load.

    Attributes:
        load: "4bit" (NF4, double quantization) or "8bit" by bitsandbytes, "bfloat16", "float16", "float32" ("bf16",
            "fp16", "fp32" for short); "auto" takes the checkpoint as it is stored. One that is quantized already is
            "auto", or what it is.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".
        seed: of every random generator.
        ablate: what to leave out, see `ablations.check`.
    """

    load: str = "auto"
    device: str = "auto"
    seed: int = 0
    ablate: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "load", _SHORT.get(self.load, self.load))
        if self.load not in LOADS:
            raise ZambaCompatError(f"{self.load!r} is no way to load.", remedy=f"Use one of {', '.join(LOADS)}.")
        if not -(2**63) <= self.seed < 2**64:
            raise ZambaCompatError(f"The seed {self.seed} has more than 64 bits.", remedy="Give a smaller one.")
        if self.ablate is not None:
            ablations.check(self.ablate)


@dataclass(frozen=True)
class Loaded:
    """Attributes: name as given; the model in eval mode; its tokenizer; its device; seconds it took to load."""

    name: str
    model: Any
    tokenizer: Any
    device: str
    seconds: float


def load(name: str, how: Loading | None = None) -> Loaded:
    """Load a causal language model with its tokenizer, and set the seeds.

    Args:
        name: a directory, or a name on the hub, OWNER/NAME or OWNER/NAME@REVISION.
        how: in which precision and where.

    Raises:
        ConfigError: a config that describes no model, as `inspect` has it.
        CheckpointError: no checkpoint or tokenizer there, or it is quantized in another way than asked for.
        ZambaCompatError: no such device; what the load needs is not installed.
    """
    directory = directory_of(name)
    _check_config(directory)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = how or Loading()
    seed(how.seed)
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    leave_out()
    device = device_of(how.device)
    words = _words(name, directory, how, device)
    start = time.perf_counter()
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, **words)
        if "device_map" not in words:
            model = model.to(device)
    except ImportError as error:
        remedy = "pip install 'zamba-compat[quant]'"
        raise ZambaCompatError(f"A package is missing: {error}.", where=name, remedy=remedy) from error
    except ZambaCompatError:
        raise
    except (OSError, SafetensorError) as error:
        raise _absent(name, error) from error
    rank = None if how.ablate is None else ablations.rank_of(how.ablate)
    if rank is not None:
        ablations.truncate_adapters(model, rank, name)
    seconds = time.perf_counter() - start
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        remedy = "Copy tokenizer.json and tokenizer_config.json of the model it was made from there."
        raise CheckpointError(f"There is no tokenizer: {_line(error)}", where=name, remedy=remedy) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Loaded(name, model.eval(), tokenizer, device, seconds)


def seed(number: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def device_of(name: str) -> str:
    """The device that "auto" stands for, or the one that is named.

    Raises:
        ZambaCompatError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    remedy = "Use cpu, cuda or cuda:N."
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ZambaCompatError(f"{name!r} is no device.", remedy=remedy) from error
    if device.type not in ("cpu", "cuda") and not (device.type == "mps" and torch.backends.mps.is_available()):
        raise ZambaCompatError(f"No model runs on {name} here.", remedy=remedy)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ZambaCompatError(f"There is no {name}: torch sees {count} GPUs.", remedy="Use --device cpu or auto.")
    return name


def peak_memory(device: str) -> int:
    """Bytes: the most that this process has held, on a GPU what torch has allocated there."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _words(name: str, directory: str, how: Loading, device: str) -> dict[str, Any]:
    """The arguments of from_pretrained."""
    from transformers import AutoConfig, BitsAndBytesConfig

    try:
        config = AutoConfig.from_pretrained(directory)
    except ZambaCompatError:
        raise
    except Exception as error:  # releases differ in what they raise for a config that they cannot take
        raise _absent(name, error) from error
    stored = _stored_quantization(config)
    dtype = _dtype_word()
    words: dict[str, Any] = {dtype: how.load if how.load in _SHORT.values() else "auto"}
    if how.ablate is not None:
        words["config"] = ablations.changed(config, how.ablate, name)
    if stored is not None:
        if how.load not in ("auto", stored):
            raise CheckpointError(
                f"It is stored in {stored}, so it cannot be loaded in {how.load}.",
                where=name,
                remedy="Leave --load out, or give the checkpoint that it was quantized from.",
            )
        return {**words, "device_map": {"": device}}
    if how.load in ("4bit", "8bit"):
        import torch

        words["device_map"] = {"": device}
        if how.load == "8bit":
            words["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
            return words
        words["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        words[dtype] = torch.bfloat16
    return words


def _dtype_word() -> str:
    """What from_pretrained calls a dtype: torch_dtype, of which transformers warns since 4.56 (#39782)."""
    import transformers
    from packaging.version import Version

    return "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def _stored_quantization(config: Any) -> str | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    words = found if isinstance(found, dict) else found.to_dict()
    method: str = words.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        return method
    return "8bit" if words.get("load_in_8bit") or words.get("_load_in_8bit") else "4bit"


def directory_of(name: str) -> str:
    """The directory that a name stands for: its own, or that of a model of the hub in the local cache.

    Raises:
        CheckpointError: there is none.
    """
    remedy = "Give a checkpoint's directory, or a model's name on the hub (OWNER/NAME)."
    path = Path(name)
    try:
        if name and path.is_dir():
            enter(path)  # transformers takes a directory that cannot be read for an empty one
            return name
        if name and os.path.lexists(path):
            what = "It is a file, and a model is loaded from a directory."
            raise CheckpointError(what, where=name, remedy=f"Give {path.parent}.")
        if (hub := on_hub(name)) is not None:
            return str(fetch(hub))
        path.exists()
    except (OSError, ValueError) as error:  # no permission, a name that is too long; a null character
        if isinstance(error, ZambaCompatError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"It cannot be read: {reason}.", where=ascii(name)[1:-1], remedy=remedy) from error
    raise CheckpointError("There is no such directory.", where=name, remedy=remedy)


def _check_config(directory: str) -> None:
    """Refuse a config of Zamba that describes no model, before a release's own code stumbles over it.

    Raises:
        ConfigError: in the words of `inspect`.
    """
    file = Path(directory, "config.json")
    if not os.path.lexists(file):
        return  # told by transformers
    read_small(file, where=str(file))
    raw = read_config(file)
    if raw.get("model_type") in MODEL_TYPES and not dialect_of(raw).startswith("zyphra"):
        config = normalise_config(file)
        SharingMap.from_config(config)
        fill_in(config, directory)


def _absent(name: str, error: Exception) -> CheckpointError:
    """What to raise where transformers loads no model from a directory."""
    remedy = f"zamba-compat inspect {name} says what is there."
    return CheckpointError(f"No model can be loaded from there: {_line(error)}", where=name, remedy=remedy)


def _line(error: Exception) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...")  # between words: an address stays whole

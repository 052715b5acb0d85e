"""Say what a file is that is no weights.

Symptom:  a git-lfs pointer, a web page, a GGUF or a pickled file in the place of model.safetensors: SafetensorError
          "header too large", JSONDecodeError, UnicodeDecodeError; a folder that holds a LoRA adapter, without PEFT:
          "no file named model.safetensors".
Cause:    the loader opens the file for its dtype and metadata, and shows what the reader says.
Upstream: none known; 4.x looks for git-lfs pointers among pickled files.
Remove:   when upstream looks at the file before it shows that error.
"""

from __future__ import annotations

import functools
from typing import Any

from zamba_compat._engine.registry import Adapter


def from_pretrained(original: Any) -> Any:
    @functools.wraps(original)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, *args, **kwargs)
        except Exception as error:
            from zamba_compat.errors import ZambaCompatError
            from zamba_compat.runtime.hub_layout import refuse_other_files

            source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            if not isinstance(error, ZambaCompatError) and source is not None:
                refuse_other_files(source, kwargs.get("subfolder"))
            raise

    return from_pretrained


ADAPTERS = tuple(
    Adapter(
        name=f"{model_type}-other-files",
        library="transformers",
        since="4.49",
        group="loading",
        target=f"transformers.models.{model_type}.modeling_{model_type}:{cls}.from_pretrained",
        replace=from_pretrained,
        signature=("cls", "pretrained_model_name_or_path", ...),
        upstream="none known",
    )
    for model_type, cls in (("zamba2", "Zamba2PreTrainedModel"), ("zamba", "ZambaPreTrainedModel"))
)

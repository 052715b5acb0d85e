"""Say what is wrong with a config whose layers cannot be built.

Symptom:  StopIteration, without a word, from from_pretrained where num_mem_blocks is 0.
Cause:    Zamba2Model takes the next of no shared blocks, and nothing checks the config before.
Upstream: none known.
Remove:   when Zamba2Config refuses fewer than one shared block.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def init(original: Any) -> Any:
    from zamba_compat.errors import ConfigError
    from zamba_compat.layout.config import normalise_config

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, config, *args, **kwargs)
        except StopIteration as error:
            try:
                normalise_config(config)  # names the key
            except ConfigError as found:
                where = getattr(config, "_name_or_path", None) or "config"
                raise ConfigError(found.what, where=where, remedy=found.remedy) from error
            raise

    return __init__


ADAPTER = Adapter(
    name="zamba2-config-refused",
    library="transformers",
    since="4.49",
    group="config",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2Model.__init__",
    replace=init,
    signature=("self", "config", ...),
    upstream="none known",
)

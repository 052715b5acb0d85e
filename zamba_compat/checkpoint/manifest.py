"""The manifest of a conversion: what was made of what, and the hash of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .location import MANIFEST
from .staging import Staging
from .writer import Written

FORMAT_VERSION = 1


def write_manifest(
    staging: Staging,
    written: Written,
    *,
    sources: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> None:
    """Write zamba_compat_manifest.json: the same for the same sources, options and release of this package.

    Args:
        written: what `write_shards` returned.
        sources: `Checkpoint.identity` of every checkpoint that was read.
        options: what was asked for; anything JSON can hold.

    Raises:
        DestinationError: it could not be written.
    """
    from zamba_compat import __version__

    content = {
        "format_version": FORMAT_VERSION,
        "package": {"name": "zamba_compat", "version": __version__},
        "sources": list(sources),
        "options": dict(options),
        "total_size": written.total_size,
        "shards": dict(written.shards),
        "tensors": {
            output.name: {
                "sha256": written.sha256[output.name],
                "dtype": output.dtype,
                "shape": list(output.shape),
                "shard": written.weight_map[output.name],
            }
            for output in written.outputs
        },
    }
    staging.write(MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

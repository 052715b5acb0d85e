"""The manifest of what was written: of what it was made, and the hash of everything in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zamba_compat._version import __version__
from zamba_compat.checkpoint.reading.location import MANIFEST
from zamba_compat.checkpoint.reading.manifest import FORMAT_VERSION, digest_of

from .staging import Staging
from .writer import Written


def write_manifest(
    staging: Staging,
    written: Written,
    *,
    sources: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> None:
    """Write zamba_compat_manifest.json: the same for the same sources, options and release of this package.

    It comes last: a file that is written after it is not in it.

    Args:
        written: what `write_shards` returned.
        sources: `Checkpoint.identity` of every checkpoint that was read.
        options: what was asked for; anything JSON can hold.

    Raises:
        DestinationError: it could not be written.
    """
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "package": {"name": "zamba_compat", "version": __version__},
        "sources": list(sources),
        "options": dict(options),
        "total_size": written.total_size,
        "shards": dict(written.shards),
        "headers": dict(written.headers),
        "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in sorted(staging.files.items())},
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
    content["digest"] = digest_of(content)
    staging.write(MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

"""Which transformers releases are tested, and the packages that old ones need beside the environment's."""

from __future__ import annotations

RELEASES = (
    "4.49.0", "4.50.3", "4.51.3", "4.52.4", "4.53.3", "4.54.1", "4.55.4", "4.56.2", "4.57.6",
    "5.0.0", "5.1.0", "5.2.0", "5.3.0", "5.4.0", "5.5.4", "5.6.2", "5.7.0", "5.8.1", "5.9.0",
    "5.10.4", "5.11.0", "5.12.1", "5.13.1", "5.14.1", "5.15.1", "5.16.1", "5.17.0", "5.18.0", "5.19.0",
    "5.20.2", "5.21.1", "5.22.2", "5.23.0", "5.24.0",
)  # fmt: skip
"""The last patch release of every minor line that has Zamba2, oldest first."""

PINS: dict[str, tuple[str, ...]] = {
    "certifi": ("2026.10.18",),
    "charset-normalizer": ("3.5.2",),
    "httpcore": ("1.0.9",),
    "httpx": ("0.28.1",),
    "huggingface-hub": ("0.36.2", "1.33.0"),
    "requests": ("2.34.2",),
    "tokenizers": ("0.21.4", "0.22.2"),
    "typer-slim": ("0.24.0",),
    "urllib3": ("2.8.0",),
}
"""Exact versions of what a release requires and the environment lacks; the newest that fits is taken."""

MERGEKIT = {"mergekit": "0.1.5", "immutables": "0.21"}
"""mergekit and what its merges import beside the environment's packages. The rest of what it requires (datasets, scipy,
sentencepiece, protobuf: half a gigabyte) is for other commands of it."""

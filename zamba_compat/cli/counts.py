"""How many there are, in words."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 shard`, `2 shards`, `1,000 shards`; of nouns that take an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

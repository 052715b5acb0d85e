"""One shard is no "1 shards"."""

from __future__ import annotations

import pytest

from zamba_compat.cli.counts import counted


@pytest.mark.parametrize(("count", "said"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards"), (4321, "4,321 shards")])
def test_counted(count: int, said: str) -> None:
    assert counted(count, "shard") == said

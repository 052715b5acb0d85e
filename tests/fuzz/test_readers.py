"""Every reader on kept inputs, and on new ones that hypothesis draws; `make fuzz` goes on for longer."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS, checkpoint, seeds


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("fuzz") / "checkpoint")


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str, directory: Path) -> None:
    first, *kept = seeds(name, directory)
    assert TARGETS[name].run(directory, first)
    for data in kept:
        TARGETS[name].run(directory, data)


@pytest.mark.parametrize("name", TARGETS)
def test_new_inputs(name: str, directory: Path) -> None:
    target, known = TARGETS[name], seeds(name, directory)
    accepted = set()

    # Whole commands take longer than readers.
    examples = 200 if name in ("index", "header", "config") else 60

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(seed=st.sampled_from(known), draw=st.randoms(use_true_random=False))
    def run(seed: bytes, draw: Random) -> None:
        accepted.add(target.run(directory, target.mutate(seed, draw)))

    run()
    assert False in accepted  # it is changes that the readers notice

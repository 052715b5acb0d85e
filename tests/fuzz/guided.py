"""A target under atheris, for tools/fuzz.py --atheris; imported by nothing else, since atheris is no requirement."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path


def run(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process. What it finds interesting goes to build/fuzz/NAME."""
    import atheris

    with atheris.instrument_imports(include=["zamba_compat"]):
        from fuzz.targets import TARGETS, checkpoint, seeds
    top = tempfile.TemporaryDirectory()
    directory = checkpoint(Path(top.name, "checkpoint"))
    corpus = Path("build", "fuzz", name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name, directory)):
        (corpus / f"seed-{number}").write_bytes(data)

    def one(data: bytes) -> None:
        TARGETS[name].run(directory, data)

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        draw = random.Random(seed)
        changed = TARGETS[name].mutate(data, draw) if draw.randrange(3) else atheris.Mutate(data, limit)
        return bytes(changed[:limit])

    arguments = [sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-max_len=300000", "-rss_limit_mb=0"]
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()

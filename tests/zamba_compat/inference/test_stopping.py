"""Texts that end an answer, held back while they may still come."""

from __future__ import annotations

import pytest

from zamba_compat.inference.stopping import Held, cut


@pytest.mark.parametrize(
    ("pieces", "stops", "wanted"),
    [
        (["ab", "c\n", "\nd"], ("\n\n",), ["ab", "c"]),
        (["a\n", "b"], ("\n\n",), ["a", "\nb"]),
        (["aab", "aac"], ("aaba", "aac"), []),
        (["x<en", "d", ">y"], ("<end>",), ["x"]),
        (["x<en", "x"], ("<end>",), ["x", "<enx"]),
        (["x<en"], ("<end>",), ["x", "<en"]),
        (["abc"], (), ["abc"]),
        (["one stop two STOP"], ("STOP", "stop"), ["one "]),
    ],
)
def test_held(pieces: list[str], stops: tuple[str, ...], wanted: list[str]) -> None:
    got: list[str] = []
    held = Held(got.append, stops)
    for piece in pieces:
        held(piece)
    held.end()
    assert got == wanted
    assert "".join(got) == cut("".join(pieces), stops)


def test_nothing_after_the_end() -> None:
    got: list[str] = []
    held = Held(got.append, ("x",))
    for piece in ("ax", "b"):
        held(piece)
    held.end()
    assert got == ["a"]

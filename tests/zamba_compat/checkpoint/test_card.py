"""The section of a model card."""

from __future__ import annotations

import pytest

from zamba_compat.checkpoint.writing.card import with_conversion

CARD = "---\nlicense: apache-2.0\n---\n# A model\n\nText.\n"


@pytest.mark.parametrize("card", ["", CARD, CARD.rstrip()])
def test_the_section_comes_last_and_comes_once(card: str) -> None:
    once = with_conversion(card, ["Done."])
    assert once.startswith(card.rstrip())
    assert once.endswith("\n- Done.\n") and once.count("## Conversion") == 1
    assert with_conversion(once, []) == once
    again = with_conversion(once, ["More.", "Still more."])
    assert again == once + "- More.\n- Still more.\n"


def test_what_follows_stays_behind() -> None:
    once = with_conversion(CARD, ["Done."])
    rest = "\n## Licence\n\n- Free.\n"
    assert with_conversion(once + rest, ["More."]) == once + "- More.\n" + rest
    assert with_conversion(once.rstrip("\n"), ["More."]) == once + "- More.\n"


def test_nothing_done_is_said_too() -> None:
    assert "no tensor changed" in with_conversion(CARD, [])


def test_a_heading_of_someone_else_is_left_alone() -> None:
    theirs = "## Conversion\n\nOurs.\n"
    assert with_conversion(theirs, ["Done."]).startswith(theirs)

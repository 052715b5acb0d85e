"""Links lead somewhere, and the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from docs import pages
from docs.pages import PAGES, PRESENT, ROOT

_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(pages.prose(page)):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{target} does not exist"
        assert ROOT in there.parents, f"{target} lies outside of the checkout"
        if anchor:
            assert anchor in pages.anchors(there), f"{there.name} has no heading #{anchor}"


@pytest.mark.parametrize("page", PRESENT, ids=pages.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Of this repository, written as code: docs/x, tests/x, tools/x."""
    for path in re.findall(r"`((?:docs|tests|tools|patches)/[\w./-]+)`", pages.prose(page)):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short() -> None:
    words = len(pages.read(ROOT / "README.md").split())
    assert words <= 1500, f"{words} words, tables included; what is more belongs into docs/"


def test_every_page_is_in_the_site() -> None:
    """What lies beside docs/ comes in by a hook, under another name."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": ([\w-]+\.md)$", yaml.safe_dump(yaml.safe_load(text)["nav"], width=1000), re.MULTILINE)
    beside = {"README.md": "index.md"} | {p.name: p.name.lower() for p in ROOT.glob("*.md") if p.name != "README.md"}
    assert sorted(listed) == sorted([*beside.values(), *(p.name for p in (ROOT / "docs").glob("*.md"))])

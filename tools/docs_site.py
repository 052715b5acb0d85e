"""A hook of mkdocs: the pages that lie beside docs/, under the names of the site, with their links and others' to them.

README.md is the front page. Links that lead out of docs/ in the checkout (../README.md) lead to the page in the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")


def moved(text: str, folder: str) -> str:
    """A page's text with the links that it has in the site.

    Args:
        text: Markdown.
        folder: where the page lies in the checkout, "" or "docs".
    """

    def link(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        if folder:
            path = PAGES.get(path.removeprefix("../"), path) if path.startswith("../") else path
        else:
            path = PAGES.get(path, path.removeprefix("docs/"))
        return f"]({path}{anchor})"

    return _LINK.sub(link, text)


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        text = moved((ROOT / source).read_text(encoding="utf-8"), "")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return markdown if page.file.src_uri in PAGES.values() else moved(markdown, "docs")

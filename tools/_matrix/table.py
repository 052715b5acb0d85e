"""The tables in docs/support.md and docs/adapters.md: results from the support file, the adapters' bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from packaging.requirements import Requirement

SUPPORT, ADAPTERS = "support-table", "adapters-table"
NOTE = "<!-- made by `make matrix`; do not edit -->"


class Bounded(Protocol):
    """What the table needs to know of an adapter."""

    @property
    def name(self) -> str: ...
    @property
    def requires(self) -> str: ...
    @property
    def upstream(self) -> str: ...
    @property
    def summary(self) -> str: ...


def applies(adapter: Bounded, release: str) -> bool:
    """Whether an adapter is for transformers, and for this release of it."""
    bounds = Requirement(adapter.requires)
    return bounds.name == "transformers" and bounds.specifier.contains(release, prereleases=True)


def share(entry: Mapping[str, Any] | None) -> str:
    """How many of the tests that ran are right."""
    if entry is None:
        return "not run"
    total = entry["passed"] + entry["failed"]
    if "broke" in entry:
        return f"broke: {entry['broke']}"
    return f"all {total}" if not entry["failed"] else f"{entry['passed']} of {total}"


def markers(name: str) -> tuple[str, str]:
    """What a table of this name stands between."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def releases(support: Mapping[str, Any], adapters: Sequence[Bounded]) -> str:
    """The support table: a row per release of transformers."""
    environment = ", ".join(f"{name} {version}" for name, version in support["environment"].items())
    lines = [
        NOTE,
        "",
        f"Conformance tests that pass, with the import and without it ({environment}):",
        "",
        "| transformers | with `import zamba_compat` | stock | adapters |",
        "| --- | --- | --- | --- |",
    ]
    for release, entry in support["releases"].items():
        count = sum(applies(adapter, release) for adapter in adapters)
        lines.append(f"| {release} | {share(entry.get('import'))} | {share(entry.get('stock'))} | {count} |")
    return "\n".join(lines)


def listing(adapters: Sequence[Bounded]) -> str:
    """The table of adapters, in the order in which they are applied."""
    lines = [NOTE, "", "| adapter | applies to | what it does | upstream |", "| --- | --- | --- | --- |"]
    for adapter in adapters:
        lines.append(f"| {adapter.name} | `{adapter.requires}` | {cell(adapter.summary)} | {cell(adapter.upstream)} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def section(page: str, name: str) -> str:
    """What a page has between the markers of a table.

    Raises:
        ValueError: it does not have each marker once, in order.
    """
    begin, end = markers(name)
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs one {begin} and one {end} after it")
    return page.partition(begin)[2].partition(end)[0].strip("\n")


def splice(page: str, name: str, table: str) -> str:
    """The page with another table between its markers."""
    section(page, name)
    begin, end = markers(name)
    head, _, rest = page.partition(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"

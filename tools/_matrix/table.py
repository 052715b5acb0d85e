"""The README's support table: results from the support file, ranges from the adapters' bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from packaging.requirements import Requirement

BEGIN = "<!-- support-table:begin -->"
END = "<!-- support-table:end -->"
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


def render(support: Mapping[str, Any], adapters: Sequence[Bounded]) -> str:
    """The Markdown between the markers."""
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
    lines += ["", "| adapter | applies to | what it does | upstream |", "| --- | --- | --- | --- |"]
    for adapter in adapters:
        lines.append(f"| {adapter.name} | `{adapter.requires}` | {cell(adapter.summary)} | {cell(adapter.upstream)} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def section(readme: str) -> str:
    """What the README has between the markers.

    Raises:
        ValueError: it does not have each marker once, in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"the README needs one {BEGIN} and one {END} after it")
    return readme.partition(BEGIN)[2].partition(END)[0].strip("\n")


def splice(readme: str, table: str) -> str:
    """The README with another table between its markers."""
    section(readme)
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"

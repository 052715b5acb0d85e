"""YAML as a merge's configuration may have it: one document of plain values, no key twice, nothing that explodes."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.errors import ConfigError

LIMIT = 2**20  # bytes; a slice per layer of the largest models takes 50 kB
_MOST_VALUES = 100_000  # with every alias written out
_DEEPEST = 32
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


def parse_yaml(data: bytes, *, where: str) -> Any:
    """The value of a YAML document; anchors and aliases are allowed as far as they stay small.

    Args:
        data: UTF-8.
        where: the file, for errors.

    Raises:
        ConfigError: not UTF-8, not YAML, several documents, nested too deeply, aliases that grow beyond what a
            configuration needs or contain themselves, tags (which can name Python objects), a key twice.
    """
    if len(data) > LIMIT:
        raise _refuse(f"It has more than the {LIMIT:,} bytes that a configuration may have.", where)
    try:
        text = data.decode("utf-8")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise _refuse("It is empty.", where)
            _check(node, where, [0], 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except RecursionError as error:
        raise _refuse("It is nested too deeply.", where) from error
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise _refuse(f"It is not readable YAML: {' '.join(str(error).split())}.", where) from error


def _check(node: yaml.Node, where: str, count: list[int], depth: int) -> None:
    """Walk the tree as it is once aliases are followed, before anything is made of it."""
    count[0] += 1
    if depth > _DEEPEST or count[0] > _MOST_VALUES:
        raise _refuse(
            f"Its aliases and lists unfold to more than {_MOST_VALUES} values or {_DEEPEST} levels.",
            where,
            "Write the values out; a configuration needs few.",
        )
    line = f"{where}, line {node.start_mark.line + 1}"
    if node.tag not in _PLAIN:
        raise _refuse(
            f"The tag {listed([node.tag])} is no plain value.", line, "Write numbers, texts, lists and mappings only."
        )
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, where, count, depth + 1)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refuse("A key is no plain text.", line)
            if key.value in seen and key.tag != _MERGE:
                again = f"{where}, line {key.start_mark.line + 1}"
                raise _refuse(f"The key {listed([key.value])} stands there twice.", again, "Leave one of them.")
            seen.add(key.value)
            _check(key, where, count, depth + 1)
            _check(value, where, count, depth + 1)


def _refuse(what: str, where: str, remedy: str = "Correct the file.") -> ConfigError:
    return ConfigError(what, where=where, remedy=remedy)

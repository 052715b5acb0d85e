"""Tokenizers that come with the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.merges import parents, slerp_of, write
from zamba_compat.errors import ConfigError
from zamba_compat.merging.companions import _highest
from zamba_compat.operations.merge import merge


def test_a_tokenizer_has_to_fit_the_embedding(tmp_path: Path) -> None:
    config, base, other = parents()
    first, second = write(tmp_path, config, base, other)
    rows = config["vocab_size"]
    for parent, number in ((first, rows - 1), (second, rows)):
        words = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": number, "content": "<b>"}]}
        (parent / "tokenizer.json").write_text(json.dumps(words))
    yml = slerp_of(first, second, config["num_hidden_layers"], 0.5)
    with pytest.raises(ConfigError, match=f"tokens up to {rows}, the base's embedding {rows} rows"):
        merge(yml | {"tokenizer_source": str(second)}, tmp_path / "out")
    merge(yml | {"tokenizer_source": "base"}, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "highest"),
    [({"model": {"vocab": {"a": 3, "b": 9}}}, 9), ({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}, 1),
     ({"model": {"vocab": {"a": 3}}, "added_tokens": [{"id": 12}, {"id": "13"}]}, 12),
     ({"model": 5, "added_tokens": 7, "vocab": 8}, -1), ({"model": {"vocab": 5}, "added_tokens": {"id": 1}}, -1)],
)  # fmt: skip
def test_the_highest_number_whatever_the_file_says(words: dict[str, Any], highest: int) -> None:
    """The last two: vocab.json, where these are tokens; and nonsense."""
    assert _highest(words) == highest


LIST = [{"name": "default", "template": "{{ a }}"}, {"name": "tools", "template": "{{ b }}"}]


def with_templates(directory: Path, form: str, template: object) -> None:
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    words: dict[str, object] = {"eos_token": directory.name}
    if form == "config":
        words["chat_template"] = template
    elif form:
        (directory / form).write_text(template if isinstance(template, str) else json.dumps(template))
    (directory / "tokenizer_config.json").write_text(json.dumps(words))


@pytest.mark.parametrize(
    ("form", "template"),
    [("config", "{{ a }}"), ("config", LIST), ("chat_template.json", {"chat_template": "{{ a }}"}),
     ("chat_template.jinja", "{{ a }}")],
)  # fmt: skip
def test_the_commonest_chat_template_in_its_own_form(form: str, template: object, tmp_path: Path) -> None:
    """`auto`, the base without one: everything of templates is the other's, everything else the base's."""
    config, base, other = parents()
    first, second = write(tmp_path, config, base, other)
    with_templates(first, "", None)
    with_templates(second, form, template)
    yml = slerp_of(first, second, config["num_hidden_layers"], 0.5) | {"tokenizer_source": "base"}
    merge(yml | {"chat_template": "auto"}, tmp_path / "out")

    words = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert words.pop("eos_token") == first.name
    assert words == ({"chat_template": template} if form == "config" else {})
    found = {path.name: path.read_text() for path in (tmp_path / "out").glob("chat_template*")}
    assert found == ({} if form == "config" else {form: (second / form).read_text()})

    merge(yml | {"chat_template": "{{ mine }}"}, tmp_path / "text")
    assert json.loads((tmp_path / "text" / "tokenizer_config.json").read_text())["chat_template"] == "{{ mine }}"
    assert [path.read_text() for path in (tmp_path / "text").glob("chat_template*")] == ["{{ mine }}"]

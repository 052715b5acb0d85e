"""What lies beside the merged weights: tokenizer, chat template, generation config."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from zamba_compat.checkpoint.reading.files import read_small
from zamba_compat.checkpoint.reading.opening import Checkpoint
from zamba_compat.checkpoint.reading.strict_json import listed, parse_object
from zamba_compat.errors import ConfigError

from .config import MergeConfig
from .parents import Parent, Parents

_TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
_VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_TEMPLATES = (_TEMPLATE, "chat_template.json")
_WORD = "chat_template"  # of tokenizer_config.json
_MORE_TEMPLATES = "additional_chat_templates"
_OWN = ("README.md", "mergekit_config.yml")  # written anew


@dataclass(frozen=True)
class Companions:
    """The files to write beside the weights.

    Attributes:
        copied: name -> file to copy.
        written: name -> content.
        tokenizer_of: the model whose tokenizer it is; None without one.
        notes: what a person should hear.
    """

    copied: Mapping[str, Path]
    written: Mapping[str, str] = field(default_factory=dict)
    tokenizer_of: str | None = None
    notes: tuple[str, ...] = ()


def choose(config: MergeConfig, parents: Parents) -> Companions:
    """Decide whose files go with the result: the base's, and the tokenizer of tokenizer_source.

    Raises:
        ConfigError: tokenizers or chat templates differ between the parents and nothing says whose to take, or what is
            asked for would change the vocabulary.
        CheckpointError: a tokenizer's file that cannot be read.
    """
    base = parents[config.base_model]
    found = {parent.model: _Tokenizer.of(parent) for parent in parents}
    holders = {model: tokenizer for model, tokenizer in found.items() if tokenizer.files}
    vocabularies = {tokenizer.vocabulary for tokenizer in holders.values()}
    notes = []
    source = config.tokenizer_source
    if len(vocabularies) > 1:
        told = "The parents have different tokenizers: " + ", ".join(
            f"{model} ({', '.join(tokenizer.files)})" for model, tokenizer in holders.items()
        )
        if source in (None, "union"):
            joined = " A union would change the vocabulary and so the embedding, which is not done here."
            raise ConfigError(
                f"{told}.{joined if source == 'union' else ''}",
                where=config.where,
                remedy="Choose one: tokenizer_source: base, none, or the model's name. The merged embedding is the "
                "base's, row by row, with what is merged into it.",
            )
        notes.append(f"{told}; the result has that of {source}.")
    chosen = _chosen(config, found, base)
    templates = {tokenizer.template for tokenizer in holders.values()}
    if len(templates) > 1 and source is None and config.chat_template is None:
        raise ConfigError(
            "The parents have different chat templates.",
            where=config.where,
            remedy="Choose one: tokenizer_source: base or the model's name, or chat_template: auto or its text.",
        )
    copied = {
        name: path for name, path in _beside(base.checkpoint).items() if not _is_tokenizer(name) and name not in _OWN
    }
    if chosen is None:
        if config.chat_template is not None:
            raise ConfigError(
                "A chat template belongs to a tokenizer, and the result has none.",
                where=config.where,
                remedy="Leave chat_template out, or choose a tokenizer.",
            )
        return Companions(copied, notes=tuple(notes))
    if len(templates) > 1:
        by = "chat_template" if config.chat_template is not None else f"tokenizer_source: {source}"
        notes.append(f"The parents have different chat templates; the result has the one chosen by {by}.")
    own = found[chosen]
    rows = base.config.get("vocab_size")
    if chosen != base.model and isinstance(rows, int) and own.highest >= rows:
        raise ConfigError(
            f"The tokenizer of {chosen} has tokens up to {own.highest}, the base's embedding {rows} rows.",
            where=config.where,
            remedy="Choose tokenizer_source: base, or make the model with the larger embedding the base.",
        )
    copied |= own.files
    written: dict[str, str] = {}
    other = _commonest(holders.values()) if config.chat_template == "auto" else None
    if config.chat_template and (config.chat_template != "auto" or (other and other.template != own.template)):
        copied = {name: path for name, path in copied.items() if not _is_template(name) and name != _CONFIG}
        words: dict[str, Any] = {name: value for name, value in own.config.items() if name != _WORD}
        if other is None:
            words[_WORD] = written[_TEMPLATE] = config.chat_template
        else:  # in whatever form that model has it: text, several with names, a file
            words |= {_WORD: other.config[_WORD]} if other.config.get(_WORD) else {}
            copied |= {name: path for name, path in other.files.items() if _is_template(name)}
        written[_CONFIG] = json.dumps(words, indent=2, ensure_ascii=False) + "\n"
    return Companions(copied, written, chosen, tuple(notes))


@dataclass(frozen=True)
class _Tokenizer:
    files: Mapping[str, Path]
    vocabulary: str  # equal for equal tokenizers
    highest: int  # of a token's numbers; -1 where tokenizer.json does not say
    config: Mapping[str, Any]
    template: str

    @classmethod
    def of(cls, parent: Parent) -> _Tokenizer:
        files = {name: path for name, path in _beside(parent.checkpoint).items() if _is_tokenizer(name)}
        digest, highest = sha256(), -1
        for name in _VOCABULARY:
            if name in files:
                data = _content(files[name])
                if name.endswith(".json"):  # the same in other words
                    words = parse_object(data, where=str(files[name]), what="tokenizer")
                    data = json.dumps(words, sort_keys=True).encode()
                    highest = max(highest, _highest(words))
                digest.update(name.encode() + b"\0" + sha256(data).digest())
        config: dict[str, Any] = {}
        if _CONFIG in files:
            config = parse_object(_content(files[_CONFIG]), where=str(files[_CONFIG]), what="tokenizer config")
        template = config.get(_WORD) or ""
        if not isinstance(template, str):
            template = json.dumps(template, sort_keys=True)
        for name in reversed(_TEMPLATES):
            if name in files:
                template = _content(files[name]).decode("utf-8", errors="replace")
        return cls(files, digest.hexdigest(), highest, config, template)


def _commonest(tokenizers: Iterable[_Tokenizer]) -> _Tokenizer | None:
    """The first one with the template that most of them have; None where none has any."""
    having = [tokenizer for tokenizer in tokenizers if tokenizer.template]
    counted = Counter(tokenizer.template for tokenizer in having)
    return max(having, key=lambda tokenizer: counted[tokenizer.template], default=None)


def _highest(words: Mapping[str, Any]) -> int:
    """The highest number of a token in tokenizer.json's content; -1 where it has none, as in other files."""
    model, added = words.get("model"), words.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    numbers: list[Any] = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else []
    if isinstance(vocabulary, list):  # in order: a Unigram model's
        numbers.append(len(vocabulary) - 1)
    if isinstance(added, list):
        numbers += [token.get("id") for token in added if isinstance(token, Mapping)]
    return max((number for number in numbers if isinstance(number, int)), default=-1)


def _chosen(config: MergeConfig, found: Mapping[str, _Tokenizer], base: Parent) -> str | None:
    source = config.tokenizer_source
    if source == "none":
        return None
    if source in (None, "base", "union"):
        if found[base.model].files:
            return base.model
        if source == "base":
            raise ConfigError("The base model has no tokenizer.", where=base.where, remedy="Choose another model's.")
        return next((model for model, tokenizer in found.items() if tokenizer.files), None)
    assert source is not None
    if source not in found:
        raise ConfigError(
            f"tokenizer_source {listed([source])} is none of the models that are merged.",
            where=config.where,
            remedy=f"Use base, none or one of {', '.join(found)}.",
        )
    if not found[source].files:
        raise ConfigError(f"{source} has no tokenizer.", where=config.where, remedy="Choose another model's.")
    return source


def _content(path: Path) -> bytes:
    return read_small(path, where=str(path))[0]


def _beside(checkpoint: Checkpoint) -> dict[str, Path]:
    return {str(path.relative_to(checkpoint.path)): path for path in checkpoint.companions}


def _is_template(name: str) -> bool:
    return name in _TEMPLATES or name.startswith(_MORE_TEMPLATES)


def _is_tokenizer(name: str) -> bool:
    return name in _TOKENIZER or _is_template(name)

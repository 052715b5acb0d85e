"""A merge's configuration, read from mergekit's YAML and checked by itself."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zamba_compat.checkpoint.dtypes import DTYPES
from zamba_compat.checkpoint.reading.files import open_regular
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.checkpoint.resolving.resolve import CHOICES
from zamba_compat.errors import CheckpointError, ConfigError

from .config import SHARED, MergeConfig, Parameters, Slice, Source
from .methods import METHODS, PARAMETERS
from .near import near
from .settings import Setting, parse_setting
from .strict_yaml import LIMIT, parse_yaml

_TOP = {
    *("models", "slices", "modules", "merge_method", "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template", "shared", "resolve"),
}
_SLICE = {"sources", "base_model", "parameters", "residual_weight"}
_SOURCE = {"model", "layer_range", "parameters"}
_MODULE = {"models", "slices", "parameters"}
_MAPPING = "config"  # where what was not read from a file stands


def read_merge_config(config: object) -> MergeConfig:
    """A configuration from a file, from what its YAML holds, or as it is.

    Raises:
        ConfigError: YAML that is unsafe or unreadable, or no configuration of a merge that is done here.
    """
    if isinstance(config, MergeConfig):
        return config
    if isinstance(config, Mapping):
        import yaml  # type: ignore[import-untyped]

        try:
            text = yaml.safe_dump(dict(config), sort_keys=False)
        except yaml.YAMLError as error:
            raise _refuse(f"It holds what YAML cannot: {error}.", _MAPPING, "Give plain values.") from error
        return _Reader(_MAPPING).read(parse_yaml(text.encode(), where=_MAPPING), text)
    if not isinstance(config, (str, os.PathLike)):
        what = f"An object of type {type(config).__name__} is no configuration of a merge."
        raise _refuse(what, _MAPPING, "Give the path of a YAML file, or a mapping.")
    where = os.fspath(config)
    try:
        with open(open_regular(Path(where), where=where), "rb") as file:
            data = file.read(LIMIT + 1)
    except CheckpointError as error:
        raise ConfigError(error.what, where=where, remedy="Give a YAML file.") from error
    return _Reader(where).read(parse_yaml(data, where=where), data.decode())


class _Reader:
    def __init__(self, where: str) -> None:
        self.where = where
        self.notes: list[str] = []

    def read(self, content: Any, text: str) -> MergeConfig:
        top = self._mapping(content, "the configuration", _TOP)
        method = top.get("merge_method")
        if method not in METHODS:
            known = [name for name in METHODS]
            if not method:
                raise self._refuse("merge_method is missing.", f"Use one of {', '.join(known)}.")
            close = near(str(method), known).strip() or f"Use one of {', '.join(known)}."
            raise self._refuse(
                f"merge_method {listed([str(method)])} is not done here.", f"{close} {self._by_mergekit('a newer one')}"
            )
        self._method = str(method)
        module = self._module(top)
        slices = self._slices({**top, **module})
        base = self._model(top["base_model"]) if top.get("base_model") is not None else None
        has_base = base is not None
        if base is None:
            if METHODS[self._method].base == "required":
                raise self._refuse(f"{method} needs base_model.", "Say which model is the base.")
            base = slices[0].sources[0].model
        dtype = self._choice(top.get("dtype"), "dtype", DTYPES)
        source, template = self._tokenizer(top)
        return MergeConfig(
            where=self.where,
            text=text,
            method=self._method,
            base_model=base,
            slices=slices,
            module_parameters=self._parameters(module.get("parameters"), "modules: parameters"),
            parameters=self._parameters(top.get("parameters"), "parameters"),
            dtype=self._choice(top.get("out_dtype"), "out_dtype", DTYPES) or dtype,
            tokenizer_source=source,
            chat_template=template,
            shared=self._choice(top.get("shared"), "shared", SHARED) or "mean",
            resolve=self._choice(top.get("resolve"), "resolve", CHOICES) or "error",
            has_base=has_base,
            notes=tuple(self.notes),
        )

    def _module(self, top: Mapping[str, Any]) -> dict[str, Any]:
        given = [key for key in ("models", "slices", "modules") if top.get(key)]
        if len(given) != 1:
            raise self._refuse(f"There are {' and '.join(given) or 'no models'}.", "Give either models or slices.")
        if given != ["modules"]:
            return {}
        modules = top["modules"]
        if not isinstance(modules, Mapping) or list(modules) != ["default"]:
            what = "modules has other entries than default."
            raise self._refuse(
                what, f"A language model has this one only. {self._by_mergekit('models of several parts')}"
            )
        module = self._mapping(modules["default"], "modules: default", _MODULE)
        if bool(module.get("models")) == bool(module.get("slices")):
            raise self._refuse("The module has not just one of models and slices.", "Give either models or slices.")
        return module

    def _slices(self, content: Mapping[str, Any]) -> tuple[Slice, ...]:
        if content.get("models"):
            sources = self._sources(content["models"], "models", ranged=False)
            return (Slice(sources),)
        if not isinstance(content["slices"], list):
            raise self._refuse("slices is no list.", "Write a list of slices, each with its sources.")
        slices = []
        for number, item in enumerate(content["slices"], 1):
            part = self._mapping(item, f"slice {number}", _SLICE)
            if part.get("residual_weight") is not None:
                self.notes.append("residual_weight has no effect, as in mergekit.")
            base = part.get("base_model")
            slices.append(
                Slice(
                    self._sources(part.get("sources"), f"slice {number}: sources", ranged=True),
                    None if base is None else self._model(base),
                    self._parameters(part.get("parameters"), f"slice {number}: parameters"),
                )
            )
        return tuple(slices)

    def _sources(self, content: Any, what: str, *, ranged: bool) -> tuple[Source, ...]:
        if not isinstance(content, list) or not content:
            raise self._refuse(f"{what} is no list of models.", "Write one entry per model, such as - model: NAME.")
        sources = []
        for item in content:
            words = self._mapping(item, what, _SOURCE if ranged else _SOURCE - {"layer_range"})
            if "model" not in words:
                raise self._refuse(f"An entry of {what} names no model.", "Write - model: NAME.")
            found = self._range(words.get("layer_range"), what) if ranged else None
            where = f"{what}: parameters"
            sources.append(Source(self._model(words["model"]), found, self._parameters(words.get("parameters"), where)))
        names = [source.model for source in sources]
        if len(set(names)) < len(names):
            raise self._refuse(f"{what} names one model twice.", "Name each model once.")
        return tuple(sources)

    def _range(self, value: Any, what: str) -> tuple[int, int]:
        numbers = [_whole(number) for number in value] if isinstance(value, list) else []
        if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
            raise self._refuse(
                f"{what}: layer_range {listed([str(value)])} is no range of layers.",
                "Write the first layer and the one after the last, such as [0, 38].",
            )
        return numbers[0], numbers[1]

    def _model(self, value: Any) -> str:
        if isinstance(value, Mapping) and set(value) <= {"model", "lora", "override_architecture"}:
            if value.get("lora") or value.get("override_architecture"):
                what = f"{listed([str(dict(value))])} is more than a model."
                raise self._refuse(what, f"Merge the LoRA into its model first. {self._by_mergekit('all of it')}")
            value = value.get("model")
        if isinstance(value, Mapping) and set(value) <= {"path", "revision"}:
            value = value.get("path") if not value.get("revision") else f"{value.get('path')}@{value['revision']}"
        if not isinstance(value, str) or not value.strip():
            raise self._refuse(
                f"{listed([str(value)])} names no model.", "Give a directory, or OWNER/NAME[@REVISION] on the hub."
            )
        if not os.path.lexists(value) and "+" in value:  # MODEL[@REVISION]+LORA, as mergekit writes it
            remedy = f"Merge the LoRA into its model first. {self._by_mergekit('both')}"
            raise self._refuse(f"{listed([value])} is more than a model.", remedy)
        return value

    def _parameters(self, content: Any, what: str) -> Parameters:
        if content is None:
            return {}
        if not isinstance(content, Mapping):
            raise self._refuse(f"{what} is no mapping.", "Write a name and a value per line.")
        found: dict[str, Setting] = {}
        for name, value in content.items():
            if name not in PARAMETERS:
                close = near(str(name), PARAMETERS)
                if close:
                    raise self._refuse(f"{what}: {listed([str(name)])} is no parameter.", close.strip())
            own = METHODS[self._method].parameters
            if name not in own:
                self.notes.append(f"{what}: {name} means nothing to {self._method}, and has no effect.")
                continue
            setting = parse_setting(value, where=f"{self.where}, {what}: {name}")
            found[str(name)] = METHODS[self._method].check(str(name), setting, f"{self.where}, {what}: {name}")
        return found

    def _tokenizer(self, top: Mapping[str, Any]) -> tuple[str | None, str | None]:
        source = top.get("tokenizer_source")
        if top.get("tokenizer") is not None:
            if source is not None:
                raise self._refuse("There are tokenizer_source and tokenizer.", "Give one of them.")
            words = self._mapping(top["tokenizer"], "tokenizer", {"source", "tokens", "pad_to_multiple_of"})
            if words.get("tokens") or words.get("pad_to_multiple_of"):
                raise self._refuse(
                    "tokenizer: tokens and pad_to_multiple_of change the vocabulary, which is not done here.",
                    f"Leave them out, or change it afterwards. {self._by_mergekit('it with the merge')}",
                )
            source = words.get("source", "union")
        if source is not None and source not in ("base", "union", "none"):
            source = self._model(source)
        template = top.get("chat_template")
        if template is None or template == "auto":
            return source, template
        if not isinstance(template, str) or "{" not in template:
            raise self._refuse(
                f"chat_template {listed([str(template)])} is neither auto nor the text of a template.",
                "Write the Jinja template itself, or leave it out to take the tokenizer's.",
            )
        return source, template

    def _choice(self, value: Any, what: str, known: Any) -> str | None:
        if value is None:
            return None
        word = str(value).removeprefix("torch.")
        if word not in known:
            raise self._refuse(f"{what} {listed([str(value)])} is not known.", f"Use one of {', '.join(known)}.")
        return word

    def _mapping(self, content: Any, what: str, known: set[str]) -> dict[str, Any]:
        if not isinstance(content, Mapping):
            raise self._refuse(f"{what} is no mapping.", "See mergekit's examples for the form.")
        for key in content:
            if key not in known:
                close = near(str(key), known)
                if close:
                    raise self._refuse(f"{what}: {listed([str(key)])} is no key of it.", close.strip())
                self.notes.append(f"{what}: {listed([str(key)])} has no effect.")
        return dict(content)

    def _by_mergekit(self, what: str) -> str:
        """Where mergekit does what is not done here."""
        return f"mergekit does {what}, in more memory: {by_mergekit(self.where)}"

    def _refuse(self, what: str, remedy: str) -> ConfigError:
        return _refuse(what[0].upper() + what[1:], self.where, remedy)


def _whole(value: Any) -> int:
    """An integer, also of its text, as mergekit takes it; -1 of anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 7:
        return int(value)
    return value if type(value) is int else -1


def by_mergekit(where: str) -> str:
    """The command that hands a configuration to mergekit, with the adapters."""
    return f"zamba-compat run -- mergekit-yaml {shlex.quote(where) if where != _MAPPING else 'CONFIG'} OUT"


def _refuse(what: str, where: str, remedy: str) -> ConfigError:
    return ConfigError(what, where=where, remedy=remedy)

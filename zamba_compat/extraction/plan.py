"""What of two checkpoints becomes a pair of factors, what is saved whole, and what the adapter cannot carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from zamba_compat.checkpoint.dtypes import DTYPES
from zamba_compat.checkpoint.reading.headers import TensorInfo
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.writing.writer import Output
from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.merging.near import near
from zamba_compat.merging.parents import HEAD, Parent
from zamba_compat.merging.plan import compare_configs

from .settings import ExtractOptions

PREFIX = "base_model.model."  # PEFT's, before the names of what it adapts
_FEED_FORWARD = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
LINEARS = frozenset(("in_proj", "out_proj", "linear", "q_proj", "k_proj", "v_proj", "o_proj", *_FEED_FORWARD))
_WHOLE = frozenset(("embed_tokens", "lm_head", "conv1d", "mamba", "norm", "layernorm", "input_layernorm"))
_WHOLE |= {"pre_ff_layernorm", "final_layernorm"} | LINEARS
_ADAPTER = re.compile(r"_adapter_list\.[0-9]+\.[01]\Z")
_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Difference:
    """One tensor in both checkpoints.

    Attributes:
        name: in the base, its module's with "model." in front.
        places: the names under which PEFT finds the tensor, in either form of the shared blocks.
        info: of the base's.
        base, tuned: how to read it, as `Parents` names sources.
    """

    name: str
    places: tuple[str, ...]
    info: TensorInfo
    base: Recipe
    tuned: Recipe

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class ExtractPlan:
    """Attributes: the matrices that get factors; the tensors that are saved whole; all others; words of config."""

    matrices: tuple[Difference, ...]
    saved: tuple[Difference, ...]
    others: tuple[Difference, ...]
    modules_to_save: tuple[str, ...]


def make_plan(base: Parent, tuned: Parent, options: ExtractOptions) -> ExtractPlan:
    """Decide from headers alone.

    Raises:
        CheckpointError: checkpoints that do not fit each other.
        ConfigError: a word or an expression that matches nothing, or what no adapter can have.
    """
    found = differences(base, tuned, options.per_position)
    words = _saved_words(options.modules_to_save, base, found)
    saved = [one for one in found if _is_saved(one, words)]
    rest = [one for one in found if not _is_saved(one, words)]
    linear = [one for one in rest if _is_linear(one)]
    _check_targets(options, linear)
    matrices = [one for one in linear if _is_wanted(one, options)]
    if not matrices:
        raise ConfigError(
            "No module is left to adapt.",
            where="--target-modules, --include-regex, --exclude-regex",
            remedy="Leave one of them out; without any, every linear module of the layers is adapted.",
        )
    names = {one.name for one in matrices}
    return ExtractPlan(tuple(matrices), tuple(saved), tuple(one for one in rest if one.name not in names), words)


def differences(base: Parent, tuned: Parent, per_position: bool) -> list[Difference]:
    """Every tensor of the base beside the tuned one: one per block and adapter, or one per position.

    Raises:
        CheckpointError: the checkpoints do not fit each other.
    """
    one, other = base.sharing, tuned.sharing
    if one is None or other is None:
        strange = base if one is None else tuned
        raise CheckpointError(
            f"A {strange.architecture} model has no shared blocks; it is not for this command.",
            where=strange.where,
            remedy="mergekit-extract-lora is for other architectures.",
        )
    if (one.model_type, one.hybrid_layers, one.num_layers) != (other.model_type, other.hybrid_layers, other.num_layers):
        raise CheckpointError(
            f"It is a {other.model_type} of {other.num_layers} layers, hybrid ones {list(other.hybrid_layers)}; the "
            f"base is a {one.model_type} of {one.num_layers}, hybrid ones {list(one.hybrid_layers)}.",
            where=tuned.where,
            remedy="Give the checkpoint that it was trained from as the base.",
        )
    if one.num_blocks != other.num_blocks and not per_position:
        raise CheckpointError(
            f"It has {other.num_blocks} shared blocks and the base {one.num_blocks}, so one pair of factors for each "
            "of the base's cannot say what became of them.",
            where=tuned.where,
            remedy="Give --per-position, or --resolve mean for copies that differ.",
        )
    compare_configs(base, tuned)  # refuses other heads
    assert base.contents is not None
    prefix = base.contents.prefix
    found: list[Difference] = []
    names = [name for name in base.recipes if name not in base.unknown]
    if tuned.has_own_head and HEAD not in names:
        names.append(HEAD)
    for name in names:
        shared = one.parse(name)
        aliases: Sequence[str] = one.aliases(name)
        if shared is not None and shared.adapter is not None:
            # Where its position is, and where PEFT finds it when the positions of a block have one module.
            own = one.at_layer(name, one.positions[shared.adapter].layer)
            found.append(_difference(base, tuned, name, tuple(dict.fromkeys((name, own))), own, prefix))
        elif per_position:
            found += [_difference(base, tuned, alias, (alias,), alias, prefix) for alias in aliases]
        else:
            found.append(_difference(base, tuned, name, tuple(aliases), name, prefix))
    return found


def _difference(base: Parent, tuned: Parent, name: str, places: tuple[str, ...], own: str, prefix: str) -> Difference:
    mine = base.canonical(name)
    theirs = tuned.canonical(own)
    assert tuned.contents is not None
    if prefix != tuned.contents.prefix and theirs not in tuned.recipes:
        theirs = tuned.contents.prefix + theirs.removeprefix(prefix)
    a, b = base.tensors[mine], tuned.tensors.get(theirs)
    if b is None or a.shape != b.shape:
        raise CheckpointError(
            f"{own} is {'missing' if b is None else list(b.shape)} here and {list(a.shape)} in the base.",
            where=tuned.where,
            remedy="Give the checkpoint that it was trained from as the base.",
        )
    long = name if name == HEAD else "model." + name.removeprefix(prefix)
    named = tuple(place if place == HEAD else "model." + place.removeprefix(prefix) for place in places)
    return Difference(long, named, a, base.recipe(mine), tuned.recipe(theirs))


def _is_linear(one: Difference) -> bool:
    module = one.module
    last = module.rpartition(".")[2]
    return one.name.endswith(".weight") and (last in LINEARS or _ADAPTER.search(module) is not None)


def _is_wanted(one: Difference, options: ExtractOptions) -> bool:
    module = one.module
    return (
        (not options.target_modules or bool({*module.split(".")} & {*options.target_modules}))
        and (not options.include or any(re.search(pattern, module) for pattern in options.include))
        and not any(re.search(pattern, module) for pattern in options.exclude)
    )


def _check_targets(options: ExtractOptions, linear: Sequence[Difference]) -> None:
    known = {part for one in linear for part in one.module.split(".") if not part.isdigit()}
    for word in options.target_modules:
        if word not in known:
            _refuse_target(word, known)


def _refuse_target(word: str, known: set[str]) -> NoReturn:
    if word == "conv1d":
        raise ConfigError(
            "conv1d cannot have an adapter: the fused Mamba kernels read its weight and never call the module.",
            where="--target-modules",
            remedy="Save it whole: --modules-to-save conv1d.",
        )
    raise ConfigError(
        f"No linear module is called {listed([word])} or lies in one.{near(word, known)}",
        where="--target-modules",
        remedy=f"Use some of {', '.join(sorted(known - {'model', 'layers'}))}.",
    )


def _saved_words(asked: Sequence[str], base: Parent, found: Sequence[Difference]) -> tuple[str, ...]:
    """The words of modules_to_save, a tied head beside its embedding: PEFT would untie them."""
    words = list(dict.fromkeys(asked))
    modules = {place.rpartition(".")[0] for one in found for place in one.places}
    modules |= {above for name in modules if (above := name.rpartition(".")[0]).endswith(".mamba")} | {"lm_head"}
    for word in words:
        if word not in _WHOLE or not any(module.endswith(word) for module in modules):
            raise ConfigError(
                f"There is no module {listed([word])} that could be saved.{near(word, _WHOLE)}",
                where="--modules-to-save",
                remedy=f"Use some of {', '.join(sorted(w for w in _WHOLE if any(m.endswith(w) for m in modules)))}.",
            )
    if "mamba" in words:
        inside = [word for word in words if word in ("norm", "conv1d", "in_proj", "out_proj")]
        if inside:
            raise ConfigError(
                f"{', '.join(inside)} would be saved inside of mamba, which is saved whole.",
                where="--modules-to-save",
                remedy="Leave it out; norms outside of the mixers are called input_layernorm and so on.",
            )
    if base.ties_head and ("embed_tokens" in words) != ("lm_head" in words):
        words.append("lm_head" if "embed_tokens" in words else "embed_tokens")
    return tuple(words)


def _is_saved(one: Difference, words: Sequence[str]) -> bool:
    """By PEFT's rule: a module whose name ends with the word, with all that is in it."""
    module = one.module
    above = module if module.endswith(".mamba") else module.rpartition(".")[0]
    names = [module, above] if above.endswith(".mamba") else [module]
    return any(name.endswith(word) for name in names for word in words)


def saved_places(one: Difference, base: Parent, words: Sequence[str]) -> tuple[str, ...]:
    """The names of a saved tensor in the adapter; a tied head is saved beside its embedding."""
    if one.name == _EMBEDDING and base.ties_head and "lm_head" in words:
        return (*one.places, HEAD)
    return one.places


def words_for(names: Sequence[str]) -> tuple[str, ...]:
    """What to add to modules_to_save to carry these tensors: the shortest list of words PEFT takes."""
    words: list[str] = []
    for name in names:
        last = name.rpartition(".")[0].rpartition(".")[2]
        words.append(last)  # "mamba" for a parameter of the mixer itself
    if "mamba" in words:
        words = [word for word in words if word not in ("norm", "conv1d")]
    return tuple(dict.fromkeys(word for word in words if word in _WHOLE))


def dtype_of(one: Difference, options: ExtractOptions) -> str:
    """Of a matrix's factors, in the words of safetensors."""
    return one.info.dtype if options.dtype is None else DTYPES[options.dtype]


def factor_names(one: Difference, end: str) -> list[str]:
    """All that one of a matrix's two factors is called, "lora_A" or "lora_B", without `PREFIX`."""
    return [f"{place.rpartition('.')[0]}.{end}.weight" for place in one.places]


def announced(plan: ExtractPlan, options: ExtractOptions) -> tuple[Output, ...]:
    """What is written if every matrix differs; the names without `PREFIX`."""
    outputs = []
    for one in plan.matrices:
        rows, columns = one.info.shape
        rank = min(options.rank, rows, columns)
        for end, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
            recipe = Recipe((f"{end}:{one.name}",))
            outputs += [Output(name, dtype_of(one, options), shape, recipe) for name in factor_names(one, end)]
    for one in plan.saved:
        outputs += [Output(place, one.info.dtype, one.info.shape, one.tuned) for place in one.places]
    return tuple(outputs)

"""What a next release might bring, each a function from a release that exists to the files that differ.

Those in HARMLESS leave every behaviour as it is, save for what stock gets wrong already. Those in DEFECTS bring
something wrong of their own: in places that no adapter replaces, so that whatever the adapters' targets look like, what
a model holds or computes has to be looked at.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from support.invented.base import Base
from support.invented.edits import (
    call_renamed,
    copied,
    edited,
    moved,
    plainly_written,
    replaced,
    segment,
    word_renamed,
)

MODELING = "models/zamba2/modeling_zamba2.py"
UTILS = "modeling_utils.py"
QUANTIZERS = ("quantizers/quantizer_bnb_4bit.py", "quantizers/quantizer_bnb_8bit.py")
TARGETED = (
    MODELING,
    UTILS,
    *QUANTIZERS,
    "models/zamba2/configuration_zamba2.py",
    "models/zamba/modeling_zamba.py",
    "models/zamba/configuration_zamba.py",
    "models/auto/configuration_auto.py",
    "quantizers/base.py",
    "integrations/bitsandbytes.py",
    "integrations/accelerate.py",
)
"""Files with targets of adapters, and with functions that adapters rely on."""

Files = dict[str, str]
"""What a variant writes instead of the base's: path below the package -> source."""

Variant = Callable[[Base], Files]


def version_only(base: Base) -> Files:
    """Nothing but the number."""
    return {}


def formatting(base: Base) -> Files:
    """Other comments, docstrings, annotations and line breaks in every file that an adapter looks at."""
    return {name: plainly_written(base.read(name)) for name in TARGETED}


def mixer_parameter(base: Base) -> Files:
    """The mixer's cache under a name that no release has used, in the mixer and where it is called."""
    old = _cache_name(base)

    def mixer(function: ast.FunctionDef) -> None:
        for node in ast.walk(function):
            if isinstance(node, ast.arg) and node.arg == old:
                node.arg = "layer_states"
            elif isinstance(node, ast.Name) and node.id == old:
                node.id = "layer_states"
            elif isinstance(node, ast.Constant) and node.value == old:  # what a deprecated name became
                node.value = "layer_states"

    source = edited(base.read(MODELING), "Zamba2MambaMixer.forward", mixer)

    def layer(function: ast.FunctionDef) -> None:
        calls = [n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == "self.mamba"]
        [keyword] = [keyword for call in calls for keyword in call.keywords if keyword.arg == old]
        keyword.arg = "layer_states"

    return {MODELING: edited(source, "Zamba2MambaDecoderLayer.forward", layer)}


def _cache_name(base: Base) -> str:
    names = ("cache", "cache_params")
    return next(name for name in names if re.search(rf"^        {name}: Cache", base.read(MODELING), re.M))


def loader_renamed(base: Base) -> Files:
    """`_load_pretrained_model` under another name, everywhere."""
    return word_renamed(base, "_load_pretrained_model", "_read_pretrained_weights")


def loader_bypassed(base: Base) -> Files:
    """`from_pretrained` calls another method; the old one stays as it was, and nobody calls it."""
    source = base.read(UTILS)
    new = call_renamed(source, "PreTrainedModel.from_pretrained", "_load_pretrained_model", "_read_weights")
    return {UTILS: copied(new, "PreTrainedModel._load_pretrained_model", "_read_weights")}


def ties_renamed(base: Base) -> Files:
    """`get_expanded_tied_weights_keys` under another name, everywhere."""
    return word_renamed(base, "get_expanded_tied_weights_keys", "tied_weights_by_name")


TIES = '''
def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
    """The tied weights of this model; with `all_submodels` those of every model inside it, too."""
    if all_submodels:
        return {
            ".".join(filter(None, (prefix, alias))): ".".join(filter(None, (prefix, source)))
            for prefix, module in self.named_modules(remove_duplicate=False)
            if isinstance(module, PreTrainedModel)
            for alias, source in module.get_expanded_tied_weights_keys().items()
        }
    patterns = self._tied_weights_keys
    if not patterns or not getattr(self.config, "tie_word_embeddings", False):
        return {}
    if all(re.match(r"^[A-Za-z0-9_\\.]+(weight)|(bias)$", text) for pair in patterns.items() for text in pair):
        return dict(patterns)
    names = {name for name, _ in self.named_parameters(remove_duplicate=False)}
    names = sorted(names.union(name for name, _ in self.named_buffers(remove_duplicate=False)))
    ties = {}
    for alias_pattern, source_pattern in patterns.items():
        aliases = [name for name in names if re.match(alias_pattern, name)]
        sources = [name for name in names if re.match(source_pattern, name)]
        if not aliases or not sources or len(aliases) % len(sources):
            raise ValueError(f"{alias_pattern} cannot be tied to {source_pattern}")
        for position, alias in enumerate(aliases):
            source = sources[position % len(sources)]
            ties[alias] = ties.get(source, source)
    return ties
'''


def ties_rewritten(base: Base) -> Files:
    """`get_expanded_tied_weights_keys` in other words: it answers the same."""
    name = "PreTrainedModel.get_expanded_tied_weights_keys"
    return {UTILS: replaced(base.read(UTILS), name, TIES)}


def ties_elsewhere(base: Base) -> Files:
    """Ties come from a function; the method that gave them stays as it was, and nobody calls it."""
    source, name = base.read(UTILS), "get_expanded_tied_weights_keys"
    method = segment(source, f"PreTrainedModel.{name}")
    calling = re.sub(rf"\b(self|submodule)\.{name}\(", r"_ties_of(\1, ", source)
    both = copied(calling, f"PreTrainedModel.{name}", "_ties_of", as_function=True)
    return {UTILS: replaced(both, f"PreTrainedModel.{name}", method)}


def ties_copied(base: Base) -> Files:
    """A tied weight gets the other's numbers, in memory of its own: nothing wrong but what it takes."""

    def copying(function: ast.FunctionDef) -> None:
        [call] = [n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == "setattr"]
        held = ast.unparse(call.args[2])
        is_block = "'.shared_transf' in target_param_name"
        copy = f"type({held})({held}.detach().clone(), requires_grad={held}.requires_grad) if {is_block} else {held}"
        call.args[2] = ast.parse(copy, mode="eval").body

    return {UTILS: edited(base.read(UTILS), "PreTrainedModel.tie_weights", copying)}


def mixer_moved(base: Base) -> Files:
    """The mixer, and all that stands above it, in a module of its own, imported back."""
    new, rest = moved(base.read(MODELING), "Zamba2MambaMixer", to="mixer_zamba2")
    return {MODELING: rest, "models/zamba2/mixer_zamba2.py": new}


def save_rewritten(base: Base) -> Files:
    """`save_pretrained` with other names inside."""
    names = {"state_dict_split": "shards", "filename_pattern": "name_of_shard", "weight_map": "shard_of_tensor"}

    def inside(function: ast.FunctionDef) -> None:
        found = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id in names]
        if not found:
            raise ValueError(f"save_pretrained has none of {', '.join(names)}")
        for name in found:
            name.id = names[name.id]

    return {UTILS: edited(base.read(UTILS), "PreTrainedModel.save_pretrained", inside)}


TRACED = '''"""A decorator that changes nothing."""

import functools


def traced(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper
'''
DECORATED = {
    MODELING: ("Zamba2MambaMixer.forward", "Zamba2MambaMixer.__init__", "Zamba2RMSNorm.forward"),
    UTILS: tuple(
        f"PreTrainedModel.{name}"
        for name in ("get_expanded_tied_weights_keys", "_load_pretrained_model", "save_pretrained")
    ),
    QUANTIZERS[0]: ("Bnb4BitHfQuantizer._process_model_before_weight_loading",),
    QUANTIZERS[1]: ("Bnb8BitHfQuantizer._process_model_before_weight_loading",),
}


def decorated(base: Base) -> Files:
    """A decorator more on targets of several groups."""

    def innermost(function: ast.FunctionDef) -> None:
        function.decorator_list.append(ast.Name("traced"))

    files = {"traced.py": TRACED}
    for name, functions in DECORATED.items():
        first = r"(?m)^(?=(import|from) (?!__future__))"
        files[name] = re.sub(first, "from transformers.traced import traced\n", base.read(name), count=1)
        for function in functions:
            files[name] = edited(files[name], function, innermost)
    return files


def quantizer_renamed(base: Base) -> Files:
    """`_process_model_before_weight_loading` under another name, everywhere."""
    return word_renamed(base, "_process_model_before_weight_loading", "_prepare_modules")


def skips_elsewhere(base: Base) -> Files:
    """Blocks are left in 16 bits where modules are replaced, whatever the list of modules to skip says."""

    def skipping(function: ast.FunctionDef) -> None:
        [loop] = [n for n in function.body if isinstance(n, ast.For)]
        loop.body[:0] = ast.parse("if '.shared_transf' in module_name:\n    continue").body

    name = "integrations/bitsandbytes.py"
    return {name: edited(base.read(name), "replace_with_bnb_linear", skipping)}


def rope_inlined(base: Base) -> Files:
    """The rotary embedding computes its frequencies itself; the method that did so stays, and nobody calls it."""

    def inline(function: ast.FunctionDef) -> None:
        [call] = [n for n in ast.walk(function) if isinstance(n, ast.Assign) and "rope_init_fn(" in ast.unparse(n)]
        lines = """
dim = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads
inv_freq = 1.0 / config.rope_parameters['rope_theta'] ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
self.attention_scaling = 1.0
"""
        place = function.body.index(call)
        function.body[place : place + 1] = ast.parse(lines).body

    return {MODELING: edited(base.read(MODELING), "Zamba2RotaryEmbedding.__init__", inline)}


def mask_dropped(base: Base) -> Files:
    """The mixers are no longer told where padding is."""

    def dropping(function: ast.FunctionDef) -> None:
        masks = [n for n in ast.walk(function) if isinstance(n, ast.Dict)]
        for mask in masks:
            for place, key in enumerate(mask.keys):
                if isinstance(key, ast.Constant) and key.value == "linear_attention":
                    mask.values[place] = ast.Constant(None)

    return {MODELING: edited(base.read(MODELING), "Zamba2Model.forward", dropping)}


HARMLESS: dict[str, Variant] = {
    "version only": version_only,
    "formatting": formatting,
    "mixer's parameter renamed": mixer_parameter,
    "loader renamed": loader_renamed,
    "ties renamed": ties_renamed,
    "ties rewritten": ties_rewritten,
    "mixer moved": mixer_moved,
    "save_pretrained rewritten": save_rewritten,
    "decorated": decorated,
    "quantizer renamed": quantizer_renamed,
    "loader bypassed": loader_bypassed,
    "ties computed elsewhere": ties_elsewhere,
    "rotary frequencies inlined": rope_inlined,
}
DEFECTS: dict[str, Variant] = {
    "ties copied": ties_copied,
    "blocks skipped elsewhere": skips_elsewhere,
    "mask dropped": mask_dropped,
}
VARIANTS = HARMLESS | DEFECTS

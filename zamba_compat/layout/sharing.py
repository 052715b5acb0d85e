"""The sharing map: which tensors of a Zamba or Zamba2 model are one and the same, and what each is called.

Number the hybrid layers 0, 1, 2, ... in depth order: that is the position. Position p runs block
p % num_blocks and, in Zamba2, uses adapter p, which only that block owns. The canonical copy of a block is
the one at the first layer that uses it. Zamba (v1) is the same rule with one block and no adapters.

Source: Zyphra/transformers_zamba2, modeling_zamba2.py (`blocks[block_count % num_mem_blocks]`), and
`Zamba2Model.get_layers` in transformers 4.49 to 4.57 and from 5.17 on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property

from zamba_compat.errors import ConfigError
from zamba_compat.layout.config import normalise_config

_STEMS = {"zamba2": "shared_transformer", "zamba": "shared_transf"}
_ADAPTER = r"(?:feed_forward\.gate_up_proj|self_attn\.linear_[qkv])_adapter_list\.([0-9]+)(?=\.|\Z)"
_KEYS = {
    kind: re.compile(rf"((?:.*?\.)?)layers\.(0|[1-9][0-9]{{0,5}})\.{stem}(?:\.(?=.)((?:{_ADAPTER})?.*))?")
    for kind, stem in _STEMS.items()
}


@dataclass(frozen=True, slots=True)
class Position:
    """One use of a shared block."""

    index: int  # the number of the hybrid layer, 0-based in depth order; in Zamba2 its adapter's number too
    layer: int  # the layer index
    block: int  # the block that runs here, index % num_blocks
    canonical_layer: int  # the first layer that uses this block


@dataclass(frozen=True, slots=True)
class SharedKey:
    """The parts of a key that names a shared tensor."""

    prefix: str  # what stands before "layers.", such as "model." or ""
    layer: int  # the hybrid layer it is stored under
    suffix: str  # what follows the shared module's name; "" for the module itself
    adapter: int | None  # the number of the adapter it belongs to, None for the rest of the block


@dataclass(frozen=True)
class SharingMap:
    """How one model shares its blocks. Immutable, hashable; equal for configs that share alike.

    Methods that take a key accept any prefix before "layers." ("model.", "", "base_model.model.model."), any
    ending after the parameter (".absmax", ".quant_state.bitsandbytes__nf4", "lora_A.default.weight"), and the
    names of modules. A key that names nothing shared in this model is its own canonical name and only alias.

    Attributes:
        model_type: "zamba2" or "zamba".
        num_layers: all layers.
        hybrid_layers: the layer index of each position.
        num_blocks: shared blocks.
        attention_adapters: whether q, k and v have adapters too (use_shared_attention_adapter).
        tied_embeddings: whether lm_head.weight is embed_tokens.weight.
        linear_bias: whether in_proj, out_proj and (Zamba2) the feed-forward projections have a bias.
        conv_bias: whether conv1d has a bias; Zamba2 always has one, whatever use_conv_bias says.

    Raises:
        ConfigError: values that make up no model.
    """

    model_type: str
    num_layers: int
    hybrid_layers: tuple[int, ...]
    num_blocks: int
    attention_adapters: bool = False
    tied_embeddings: bool = True
    linear_bias: bool = False
    conv_bias: bool = True

    def __post_init__(self) -> None:
        layers = self.hybrid_layers
        if self.model_type not in _STEMS:
            raise ConfigError(f"{self.model_type!r} is neither zamba2 nor zamba.", remedy="Use one of these.")
        if list(layers) != sorted(set(layers)) or not {*layers} <= {*range(self.num_layers)}:
            raise ConfigError(
                f"{layers} are not layers, in depth order, of a model of {self.num_layers}.",
                remedy="Give each hybrid layer's index once, from 0, in ascending order.",
            )
        if not 1 <= self.num_blocks <= len(layers):
            raise ConfigError(
                f"{len(layers)} hybrid layers cannot share {self.num_blocks} blocks.",
                remedy="Give from 1 to as many blocks as there are hybrid layers.",
            )

    @classmethod
    def from_config(cls, config: object) -> SharingMap:
        """The map of a model, from a dict, a config.json or its directory, or a transformers config.

        Raises:
            ConfigError: see `zamba_compat.layout.config.normalise_config`.
        """
        known = normalise_config(config)
        types, zamba2 = known["layers_block_type"], known["model_type"] == "zamba2"
        return cls(
            model_type=known["model_type"],
            num_layers=len(types),
            hybrid_layers=tuple(layer for layer, name in enumerate(types) if name == "hybrid"),
            num_blocks=known["num_mem_blocks"] if zamba2 else 1,
            attention_adapters=zamba2 and bool(known.get("use_shared_attention_adapter")),
            tied_embeddings=known.get("tie_word_embeddings") is not False,
            linear_bias=bool(known.get("add_bias_linear" if zamba2 else "mamba_proj_bias")),
            conv_bias=zamba2 or known.get("mamba_conv_bias") is not False,
        )

    @property
    def stem(self) -> str:
        """The name of a hybrid layer's shared module."""
        return _STEMS[self.model_type]

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """Every use of a shared block, in depth order."""
        n, layers = self.num_blocks, self.hybrid_layers
        return tuple(Position(p, layer, p % n, layers[p % n]) for p, layer in enumerate(layers))

    @cached_property
    def _at(self) -> dict[int, Position]:
        return {position.layer: position for position in self.positions}

    @cached_property
    def _slots(self) -> dict[str, int]:
        return {str(index): index for block in range(self.num_blocks) for index in self.adapters_of(block)}

    @cached_property
    def digest(self) -> str:
        """A hex string that is equal for equal maps only, and the same in every process."""
        from hashlib import sha256  # costs milliseconds, and most runs ask for no digest

        return sha256(repr(astuple(self)).encode()).hexdigest()

    def position_of(self, layer: int) -> Position:
        """The position of a hybrid layer. ValueError for any other layer."""
        if layer not in self._at:
            raise ValueError(f"layer {layer} is not hybrid; the hybrid layers are {self.hybrid_layers}")
        return self._at[layer]

    def block_of(self, layer: int) -> int:
        """The block that runs at a hybrid layer. ValueError for any other layer."""
        return self.position_of(layer).block

    def layers_of(self, block: int) -> tuple[int, ...]:
        """The layers that use a block, the canonical one first. ValueError if there is no such block."""
        if not 0 <= block < self.num_blocks:
            raise ValueError(f"there is no block {block}; the model has {self.num_blocks}")
        return self.hybrid_layers[block :: self.num_blocks]

    def canonical_layer(self, block: int) -> int:
        """The first layer that uses a block. ValueError if there is no such block."""
        return self.layers_of(block)[0]

    def adapters_of(self, block: int) -> tuple[int, ...]:
        """The positions whose adapters a block owns: all that run it in Zamba2, none in Zamba v1."""
        layers = self.layers_of(block)
        return tuple(self._at[layer].index for layer in layers) if self.model_type == "zamba2" else ()

    def parse(self, key: str) -> SharedKey | None:
        """The parts of a key under a hybrid layer's shared module, or None if it names nothing shared here.

        None too for a layer that is not hybrid and for an adapter that no position uses. What the suffix
        names is not checked: compare with `shared_suffixes` or the lists of keys for that.
        """
        match = _KEYS[self.model_type].fullmatch(key) if self.stem in key else None
        if match is None or int(match[2]) not in self._at:
            return None
        adapter = self._slots.get(match[4]) if match[4] else None
        if match[4] and adapter is None:
            return None
        return SharedKey(match[1], int(match[2]), match[3] or "", adapter)

    def layer_of(self, key: str) -> int | None:
        """The hybrid layer a shared tensor is stored under; None if it is not shared."""
        shared = self.parse(key)
        return None if shared is None else shared.layer

    def canonical_key(self, key: str) -> str:
        """The name of the same tensor at its canonical layer; a key that is not shared comes back unchanged.

        An adapter's number says its block, so one stored in another block's slots goes to the right one.
        """
        shared = self.parse(key)
        return key if shared is None else self._name(shared, self.hybrid_layers[self._owner(shared)])

    def is_canonical(self, key: str) -> bool:
        """Whether `canonical_key` leaves the key as it is, as it does every key that is not shared."""
        return self.canonical_key(key) == key

    def is_misplaced(self, key: str) -> bool:
        """Whether the key is an adapter's, stored under a layer whose block does not own it.

        Zyphra's fork keeps an unused adapter in each such place, so a copy in the right block comes first.
        """
        shared = self.parse(key)
        return shared is not None and self._owner(shared) != self._at[shared.layer].block

    def at_layer(self, key: str, layer: int) -> str:
        """The name of the same tensor at another hybrid layer; a key that is not shared comes back unchanged.

        Raises:
            ValueError: the layer is not hybrid.
        """
        shared = self.parse(key)
        return key if shared is None else self._name(shared, self.position_of(layer).layer)

    def aliases(self, key: str) -> tuple[str, ...]:
        """Every right name of the tensor, one per position of its block, the canonical name first."""
        shared = self.parse(key)
        if shared is None:
            return (key,)
        return tuple(self._name(shared, layer) for layer in self.layers_of(self._owner(shared)))

    def shared_suffixes(self, block: int) -> tuple[str, ...]:
        """The parameters of a block by their names inside it, such as "self_attn.q_proj.weight"."""
        zamba2 = self.model_type == "zamba2"
        slots = [f"{adapter}.{half}" for adapter in self.adapters_of(block) for half in (0, 1)]
        names = [f"self_attn.{p}_proj.weight" for p in "qkvo"]
        if self.attention_adapters:
            names += [f"self_attn.linear_{p}_adapter_list.{slot}.weight" for p in "qkv" for slot in slots]
        for linear in ("gate_up_proj", "down_proj") if zamba2 else ("gate_proj", "up_proj", "down_proj"):
            names += _parameters(f"feed_forward.{linear}", bias=zamba2 and self.linear_bias)
        names += [f"feed_forward.gate_up_proj_adapter_list.{slot}.weight" for slot in slots]
        return (*names, "input_layernorm.weight", "pre_ff_layernorm.weight")

    def shared_keys(self, *, prefix: str = "model.") -> tuple[str, ...]:
        """The canonical names of the shared tensors, block by block."""
        blocks = enumerate(self.hybrid_layers[: self.num_blocks])
        return tuple(key for block, layer in blocks for key in self._block_keys(prefix, layer, block))

    def hub_keys(self, *, prefix: str = "model.") -> tuple[str, ...]:
        """Every tensor of a checkpoint that stores each block once, in depth order.

        Args:
            prefix: "model." for a language model, with lm_head.weight unless it is tied; "" for a base model.
        """
        return tuple(self._keys(prefix, expanded=False))

    def expanded_keys(self, *, prefix: str = "model.") -> tuple[str, ...]:
        """As `hub_keys`, of a checkpoint that stores each block at every layer that uses it."""
        return tuple(self._keys(prefix, expanded=True))

    def tied_keys(self, *, prefix: str = "model.") -> dict[str, str]:
        """Each name the hub layout leaves out, a tied lm_head.weight among them -> the canonical name."""
        shared = self.shared_keys(prefix=prefix)
        heads = _head(prefix) if self.tied_embeddings else ()
        ties = {alias: key for key in shared for alias in self.aliases(key)[1:]}
        return ties | dict.fromkeys(heads, f"{prefix}embed_tokens.weight")

    def untied(self) -> SharingMap:
        """The exact form of a checkpoint whose copies differ: each position a block with its own adapter.

        In a Zamba2 config that is num_mem_blocks = number of hybrid layers; Zamba v1 has no key for it.
        """
        return replace(self, num_blocks=len(self.hybrid_layers))

    def _owner(self, shared: SharedKey) -> int:
        return self._at[shared.layer].block if shared.adapter is None else shared.adapter % self.num_blocks

    def _name(self, shared: SharedKey, layer: int) -> str:
        module = f"{shared.prefix}layers.{layer}.{self.stem}"
        return f"{module}.{shared.suffix}" if shared.suffix else module

    def _block_keys(self, prefix: str, layer: int, block: int) -> list[str]:
        return [f"{prefix}layers.{layer}.{self.stem}.{suffix}" for suffix in self.shared_suffixes(block)]

    def _keys(self, prefix: str, *, expanded: bool) -> Iterator[str]:
        zamba2 = self.model_type == "zamba2"
        mamba = ["dt_bias", "norm.weight"] if zamba2 else ["x_proj_weight", "dt_proj_weight", "dt_proj_bias"]
        mamba += ["A_log", "D", *_parameters("conv1d", bias=self.conv_bias)]
        for linear in ("in_proj", "out_proj"):
            mamba += _parameters(linear, bias=self.linear_bias)
        yield f"{prefix}embed_tokens.weight"
        for layer in range(self.num_layers):
            position, module = self._at.get(layer), f"{prefix}layers.{layer}."
            if position is not None:
                yield f"{module}linear.weight"
                if expanded or layer == position.canonical_layer:
                    yield from self._block_keys(prefix, layer, position.block)
                module += "mamba_decoder."
            yield from (f"{module}mamba.{name}" for name in mamba)
            yield f"{module}input_layernorm.weight"
        yield f"{prefix}final_layernorm.weight"
        yield from () if self.tied_embeddings else _head(prefix)


def _parameters(module: str, *, bias: bool) -> list[str]:
    return [f"{module}.weight", f"{module}.bias"] if bias else [f"{module}.weight"]


def _head(prefix: str) -> tuple[str, ...]:
    # A base model's prefix does not end in "model."; it has no head.
    return (prefix.removesuffix("model.") + "lm_head.weight",) if prefix.endswith("model.") else ()

"""Kinds of tensors that one parent alone has."""

from __future__ import annotations

from types import SimpleNamespace

from zamba_compat.merging.mergekit.presence import is_tied_head, is_trained, of_one_only


def test_kinds_are_told_once_whatever_the_layer() -> None:
    weights = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(12)]
    biases = [f"model.layers.{layer}.mlp.up_proj.bias" for layer in range(12)]
    found = of_one_only({"a": weights, "b": [*weights[:4], *biases, "model.extra"]}, known=())
    assert found == {biases[0]: ["b"], "model.extra": ["b"]}
    assert of_one_only({"a": weights, "b": [*weights, *biases]}, known=biases[:1]) == {}
    assert of_one_only({"a": weights}, known=()) == {}


def test_buffers_and_heads() -> None:
    assert not is_trained("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not is_trained("transformer.h.0.attn.bias")
    assert is_trained("transformer.h.0.attn.c_attn.bias")
    assert is_trained("model.layers.0.self_attn.q_proj.bias")
    tied, untied = SimpleNamespace(tie_word_embeddings=True), SimpleNamespace(tie_word_embeddings=False)
    assert is_tied_head("lm_head.weight", tied)
    assert not is_tied_head("lm_head.weight", untied)
    assert not is_tied_head("model.embed_tokens.weight", tied)

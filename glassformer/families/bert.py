"""BERT (Devlin et al. 2019) and MiniLM: an encoder with learned positions, token types and post-norms.

The heads of a checkpoint are detected from its tensors, not from its config.json. The pooler and the heads for masked
language modelling and next-sentence prediction are supported; a classifier is rejected. An untied head raises
ConfigError: no published model has one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from glassformer.config import (
    Activation,
    AttentionConfig,
    LayerConfig,
    MaskedHeadConfig,
    MLPConfig,
    NormConfig,
    TextEncoderConfig,
)
from glassformer.errors import ConfigError
from glassformer.families.common.family import ACTIVATION_NAMES, ConfigFields, Family, TensorRule, linear, rule

LAYER = "encoder.layer.{i}"


def norm_rules(theirs: str, ours: str) -> tuple[TensorRule, ...]:
    """Return the rules of a norm with TensorFlow's names for its two vectors."""
    return rule(f"{theirs}.gamma", f"{ours}.weight"), rule(f"{theirs}.beta", f"{ours}.bias")


def norms(prefix: str) -> tuple[tuple[str, str], ...]:
    """Return (checkpoint name, our name) of the norms."""
    return (
        (f"{prefix}embeddings.LayerNorm", "embed_norm"),
        (f"{prefix}{LAYER}.attention.output.LayerNorm", "blocks.{i}.attn_post_norm"),
        (f"{prefix}{LAYER}.output.LayerNorm", "blocks.{i}.mlp_post_norm"),
    )


def rules(prefix: str) -> tuple[TensorRule, ...]:
    """Return the rules of BERT and RoBERTa, whose prefixes differ, without heads."""
    layer = f"{prefix}{LAYER}"
    parts = (
        *((f"{layer}.attention.self.{name}", f"blocks.{{i}}.attn.{name[0]}") for name in ("query", "key", "value")),
        (f"{layer}.attention.output.dense", "blocks.{i}.attn.o"),
        (f"{layer}.intermediate.dense", "blocks.{i}.mlp.up"),
        (f"{layer}.output.dense", "blocks.{i}.mlp.down"),
        (f"{prefix}pooler.dense", "pooler"),
        *norms(prefix),
    )
    return (
        rule(f"{prefix}embeddings.word_embeddings.weight", "embed.weight"),
        rule(f"{prefix}embeddings.position_embeddings.weight", "positions.weight"),
        rule(f"{prefix}embeddings.token_type_embeddings.weight", "token_types.weight"),
        *(one for theirs, ours in parts for one in linear(theirs, ours)),
    )


def read_stack(raw: ConfigFields, family: str, offset: int = 0) -> TextEncoderConfig:
    """Read the stack of BERT or RoBERTa, whose positions begin in row `offset` of their table."""
    norm = NormConfig("layer", raw.number("layer_norm_eps", 1e-12))
    for name, *allowed in (
        ("position_embedding_type", "absolute", None), ("is_decoder", False), ("add_cross_attention", False),
        ("tie_word_embeddings", True, None),
    ):  # fmt: skip
        raw.expect(name, *allowed)
    mlp = MLPConfig(raw.size("intermediate_size", 3072), raw.activation("hidden_act", "gelu"), gated=False, bias=True)
    d_model = raw.size("hidden_size", 768)
    layer = LayerConfig(read_attention(raw, d_model, raw.size("num_attention_heads", 12)), mlp, norm, ("post",))
    return TextEncoderConfig(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=raw.size("max_position_embeddings", 512, minimum=offset + 1) - offset,
        layers=(layer,) * raw.size("num_hidden_layers", 12),
        final_norm=None,
        positions="learned",
        position_offset=offset,
        embed_norm=norm,
        family=family,
        n_token_types=raw.size("type_vocab_size", 2),
    )


def read_attention(raw: ConfigFields, d_model: int, n_heads: int) -> AttentionConfig:
    """Read bidirectional attention with biases."""
    if d_model % n_heads:
        raise ConfigError(f"{raw.source}: the width {d_model} must be a multiple of the number of heads, {n_heads}")
    return AttentionConfig(n_heads, n_heads, d_model // n_heads, bias=True, out_bias=True, causal=False)


def detect_heads_by_prefix(config: TextEncoderConfig, names: Collection[str], head: str, activation: Activation) -> Any:
    """Add the heads that a checkpoint has tensors of. Names of the masked LM head begin with `head`."""
    pooler = any(name.endswith(("pooler.dense.weight", "pooler.dense.bias")) for name in names)
    masked, follows = (any(name.startswith(begin) for name in names) for begin in (head, "cls.seq_relationship."))
    masked_head = MaskedHeadConfig(activation, config.layers[0].norm) if masked else None
    return replace(config, pooler=pooler or follows, head=masked_head, next_sentence=follows)


def read(raw: ConfigFields) -> TextEncoderConfig:
    return read_stack(raw, "bert")


def detect_heads(config: TextEncoderConfig, names: Collection[str]) -> TextEncoderConfig:
    return detect_heads_by_prefix(config, names, "cls.predictions.", config.layers[0].mlp.activation)


def write_stack(config: TextEncoderConfig, name: str) -> dict[str, Any]:
    """Return the config.json of BERT or RoBERTa; `name` is the prefix of their class names."""
    layer = config.layers[0]
    heads = config.head is not None, config.next_sentence
    kinds = {(False, False): "Model", (True, False): "ForMaskedLM", (True, True): "ForPreTraining"}
    return {
        "architectures": [name + kinds.get(heads, "ForNextSentencePrediction")],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": layer.attention.n_heads,
        "intermediate_size": layer.mlp.d_ff,
        "hidden_act": ACTIVATION_NAMES[layer.mlp.activation],
        "max_position_embeddings": config.context_length + config.position_offset,
        "type_vocab_size": config.n_token_types,
        "layer_norm_eps": layer.norm.eps,
    }


def write(config: TextEncoderConfig) -> dict[str, Any]:
    return write_stack(config, "Bert")


HEAD = (
    *linear("cls.predictions.transform.dense", "head.dense"),
    *linear("cls.predictions.transform.LayerNorm", "head.norm"),
    rule("cls.predictions.bias", "head.output.bias"),
    *linear("cls.seq_relationship", "next_sentence"),
)
NORMS = (*norms("bert."), ("cls.predictions.transform.LayerNorm", "head.norm"))
FAMILY = Family(
    "bert", "BertModel", read, write, rules=(*rules("bert."), *HEAD), prefix="bert.", detect_heads=detect_heads,
    ignored=(r"embeddings\.position_ids",),
    alternatives=tuple(one for pair in NORMS for one in norm_rules(*pair)),
    embedding_copies=("cls.predictions.decoder.weight",),
    duplicates=(("cls.predictions.decoder.bias", "cls.predictions.bias"),),
)  # fmt: skip

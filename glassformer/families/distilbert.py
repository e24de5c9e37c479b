"""DistilBERT (Sanh et al. 2019): BERT with half the layers, no token types, and different names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from glassformer.config import LayerConfig, MLPConfig, NormConfig, TextEncoderConfig
from glassformer.families.bert import detect_heads_by_prefix, read_attention
from glassformer.families.common.family import ACTIVATION_NAMES, ConfigFields, Family, linear, rule

LAYER = "distilbert.transformer.layer.{i}"
NORM = NormConfig("layer", 1e-12)
RULES = (
    rule("distilbert.embeddings.word_embeddings.weight", "embed.weight"),
    rule("distilbert.embeddings.position_embeddings.weight", "positions.weight"),
    *linear("distilbert.embeddings.LayerNorm", "embed_norm"),
    *(one for part in "qkv" for one in linear(f"{LAYER}.attention.{part}_lin", f"blocks.{{i}}.attn.{part}")),
    *linear(f"{LAYER}.attention.out_lin", "blocks.{i}.attn.o"),
    *linear(f"{LAYER}.sa_layer_norm", "blocks.{i}.attn_post_norm"),
    *linear(f"{LAYER}.ffn.lin1", "blocks.{i}.mlp.up"),
    *linear(f"{LAYER}.ffn.lin2", "blocks.{i}.mlp.down"),
    *linear(f"{LAYER}.output_layer_norm", "blocks.{i}.mlp_post_norm"),
    *linear("vocab_transform", "head.dense"),
    *linear("vocab_layer_norm", "head.norm"),
    rule("vocab_projector.bias", "head.output.bias"),
)


def read(raw: ConfigFields) -> TextEncoderConfig:
    d_model = raw.size("dim", 768)
    raw.flag("sinusoidal_pos_embds", False)  # only the initialization: the table is stored either way
    raw.expect("tie_weights_", True)
    raw.expect("tie_word_embeddings", True, None)
    mlp = MLPConfig(raw.size("hidden_dim", 3072), raw.activation("activation", "gelu"), gated=False, bias=True)
    layer = LayerConfig(read_attention(raw, d_model, raw.size("n_heads", 12)), mlp, NORM, ("post",))
    return TextEncoderConfig(
        vocab_size=raw.size("vocab_size", 30522),
        d_model=d_model,
        context_length=raw.size("max_position_embeddings", 512),
        layers=(layer,) * raw.size("n_layers", 6),
        final_norm=None,
        positions="learned",
        embed_norm=NORM,
        family="distilbert",
    )


def detect_heads(config: TextEncoderConfig, names: Collection[str]) -> TextEncoderConfig:
    return detect_heads_by_prefix(config, names, "vocab_", config.layers[0].mlp.activation)


def write(config: TextEncoderConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return {
        "architectures": ["DistilBertModel" if config.head is None else "DistilBertForMaskedLM"],
        "vocab_size": config.vocab_size,
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": layer.attention.n_heads,
        "hidden_dim": layer.mlp.d_ff,
        "activation": ACTIVATION_NAMES[layer.mlp.activation],
        "max_position_embeddings": config.context_length,
    }


FAMILY = Family(
    "distilbert", "DistilBertModel", read, write, rules=RULES, prefix="distilbert.", detect_heads=detect_heads,
    ignored=(r"embeddings\.position_ids",), embedding_copies=("vocab_projector.weight",),
)  # fmt: skip

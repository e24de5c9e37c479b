"""BERT (Devlin et al. 2019), MiniLM too: an encoder with learned positions, types of tokens, and norms behind.

What stands upon the last states (the pooler, heads for some task) is no part of the encoder, and is left out.
"""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, EncoderConfig, LayerConfig, MLPConfig, NormConfig
from glassformer.errors import ConfigError
from glassformer.families.family import ACTIVATION_NAMES, Family, Fields, Rule, linear, rule

LAYER = "encoder.layer.{i}"


def rules(prefix: str) -> tuple[Rule, ...]:
    """The tensors of BERT and of RoBERTa, which call theirs by other first names."""
    layer = f"{prefix}{LAYER}"
    table = {"query": "attn.q", "key": "attn.k", "value": "attn.v"}
    return (
        rule(f"{prefix}embeddings.word_embeddings.weight", "embed.weight"),
        rule(f"{prefix}embeddings.position_embeddings.weight", "positions.weight"),
        rule(f"{prefix}embeddings.token_type_embeddings.weight", "token_types.weight"),
        *linear(f"{prefix}embeddings.LayerNorm", "embed_norm"),
        *(
            one
            for name, ours in table.items()
            for one in linear(f"{layer}.attention.self.{name}", f"blocks.{{i}}.{ours}")
        ),
        *linear(f"{layer}.attention.output.dense", "blocks.{i}.attn.o"),
        *linear(f"{layer}.attention.output.LayerNorm", "blocks.{i}.attn_residual.post"),
        *linear(f"{layer}.intermediate.dense", "blocks.{i}.mlp.up"),
        *linear(f"{layer}.output.dense", "blocks.{i}.mlp.down"),
        *linear(f"{layer}.output.LayerNorm", "blocks.{i}.mlp_residual.post"),
    )


def read_stack(raw: Fields, family: str, offset: int = 0) -> EncoderConfig:
    """Of BERT and of RoBERTa, whose positions begin in row `offset` of their table."""
    d_model, n_heads = raw.size("hidden_size", 768), raw.size("num_attention_heads", 12)
    norm = NormConfig("layer", raw.number("layer_norm_eps", 1e-12))
    raw.only("position_embedding_type", "absolute", None)
    raw.only("is_decoder", False)
    raw.only("add_cross_attention", False)
    raw.take("tie_word_embeddings", True)  # of a head that is left out
    mlp = MLPConfig(raw.size("intermediate_size", 3072), raw.activation("hidden_act", "gelu"), gated=False, bias=True)
    layer = LayerConfig(read_attention(raw, d_model, n_heads), mlp, norm, ("post",))
    rows = raw.size("max_position_embeddings", 512, least=offset + 1)
    return EncoderConfig(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=rows - offset,
        layers=(layer,) * raw.size("num_hidden_layers", 12),
        final_norm=None,
        positions="learned",
        position_offset=offset,
        embed_norm=norm,
        family=family,
        n_token_types=raw.size("type_vocab_size", 2),
    )


def read_attention(raw: Fields, d_model: int, n_heads: int) -> AttentionConfig:
    """Attention to the whole row, with biases."""
    if d_model % n_heads:
        raise ConfigError(f"{raw.source}: the width {d_model} must be a multiple of the number of heads, {n_heads}")
    return AttentionConfig(n_heads, n_heads, d_model // n_heads, bias=True, out_bias=True, causal=False)


def read(raw: Fields) -> EncoderConfig:
    return read_stack(raw, "bert")


def write(config: EncoderConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return {
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


HEADS = (r"(cls|pooler|classifier|qa_outputs)\..+", r"embeddings\.position_ids")
FAMILY = Family("bert", "BertModel", read, write, rules=rules("bert."), prefix="bert.", ignored=HEADS)

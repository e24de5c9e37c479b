"""T5 and Flan-T5: relative position biases of the scores, shared by a side's layers (Raffel et al. 2020).

RMSNorm, no biases, unscaled scores. The input of a tied head is scaled by d_model^-0.5; that of an untied head (T5 1.1,
Flan-T5, with gated feed-forward layers) is not. The model has no maximum length: `n_positions`, or else 512, is used as
context length on both sides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import (
    AttentionConfig,
    EncoderConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RelativeConfig,
)
from glassformer.errors import ConfigError
from glassformer.families.common.family import ACTIVATION_NAMES, ACTIVATIONS, ConfigFields, Family, TensorRule, rule


def stack_rules(theirs: str, ours: str, cross_attention: bool, gated: bool) -> tuple[TensorRule, ...]:
    """Return the rules of one side."""
    block, mine = f"{theirs}.block.{{i}}.layer", f"{ours}blocks.{{i}}"
    attentions = [("0.SelfAttention", "attn"), *([("1.EncDecAttention", "cross")] if cross_attention else [])]
    mlp = f"{block}.{len(attentions)}.DenseReluDense"
    into = {"wi_0": "gate", "wi_1": "up"} if gated else {"wi": "up"}
    return (
        rule(
            f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{ours}relative_positions.weight"
        ),
        *(
            rule(f"{block}.{name}.{part}.weight", f"{mine}.{short}.{part}.weight")
            for name, short in attentions
            for part in "qkvo"
        ),
        *(
            rule(f"{block}.{number}.layer_norm.weight", f"{mine}.{short}_norm.weight")
            for number, short in enumerate([*(short for _, short in attentions), "mlp"])
        ),
        *(rule(f"{mlp}.{part}.weight", f"{mine}.mlp.{name}.weight") for part, name in (*into.items(), ("wo", "down"))),
        rule(f"{theirs}.final_layer_norm.weight", f"{ours}norm.weight"),
    )


def rules(config: ModelConfig) -> tuple[TensorRule, ...]:
    gated = config.layers[0].mlp.gated
    return (
        rule("shared.weight", "embed.weight"),
        *stack_rules("encoder", "encoder.", False, gated),
        *stack_rules("decoder", "", True, gated),
        rule("lm_head.weight", "head.weight", fallback="shared.weight"),  # newer files of T5 1.1 have one table
    )


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads, context = raw.size("d_model", 512), raw.size("num_heads", 8), raw.size("n_positions", 512)
    norm = NormConfig("rms", raw.number("layer_norm_epsilon", 1e-6))
    relative = RelativeConfig(
        raw.size("relative_attention_num_buckets", 32), raw.size("relative_attention_max_distance", 128)
    )
    raw.expect("is_decoder", False)
    raw.expect("is_encoder_decoder", True)
    tied = raw.flag("tie_word_embeddings", True)
    tied = raw.flag("scale_decoder_outputs", tied) and tied  # some files state tied embeddings for every model
    attention = AttentionConfig(n_heads, n_heads, raw.size("d_kv", 64), scale=1.0, causal=False)
    mlp = read_mlp(raw)
    encoder_layer = LayerConfig(attention, mlp, norm)
    decoder_layer = LayerConfig(replace(attention, causal=True), mlp, norm, cross=attention)
    n_layers, vocab_size = raw.size("num_layers", 6), raw.size("vocab_size")
    encoder = EncoderConfig(vocab_size, d_model, context, (encoder_layer,) * n_layers, norm, relative=relative)
    return ModelConfig(
        family="t5",
        vocab_size=vocab_size,
        d_model=d_model,
        context_length=context,
        layers=(decoder_layer,) * raw.size("num_decoder_layers", n_layers),
        final_norm=norm,
        tied_head=tied,
        relative=relative,
        head_scale=d_model**-0.5 if tied else 1.0,
        encoder=encoder,
        shared_embedding=True,
    )


def read_mlp(raw: ConfigFields) -> MLPConfig:
    """Read the MLP. `feed_forward_proj` is [gated-]activation; "gated-gelu" means the tanh approximation."""
    projection = raw.take("feed_forward_proj", "relu")
    gated = isinstance(projection, str) and projection.startswith("gated-")
    name = "gelu_new" if projection == "gated-gelu" else str(projection).removeprefix("gated-")
    if not isinstance(projection, str) or name not in ACTIVATIONS:
        allowed = ", ".join(ACTIVATIONS)
        raise ConfigError(f"{raw.source}: feed_forward_proj = {projection!r} is not supported, only [gated-]{allowed}")
    raw.expect("is_gated_act", gated)
    raw.expect("dense_act_fn", name)
    return MLPConfig(raw.size("d_ff", 2048), ACTIVATIONS[name], gated)


def write(config: ModelConfig) -> dict[str, Any]:
    assert config.encoder is not None
    assert config.relative is not None
    layer = config.layers[0]
    name = ACTIVATION_NAMES[layer.mlp.activation]
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": layer.attention.head_dim,
        "d_ff": layer.mlp.d_ff,
        "num_layers": config.encoder.n_layers,
        "num_decoder_layers": config.n_layers,
        "num_heads": layer.attention.n_heads,
        "n_positions": config.context_length,
        "relative_attention_num_buckets": config.relative.n_buckets,
        "relative_attention_max_distance": config.relative.max_distance,
        "layer_norm_epsilon": layer.norm.eps,
        "feed_forward_proj": f"gated-{name}" if layer.mlp.gated else name,
        "is_gated_act": layer.mlp.gated,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tied_head,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    }


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
FAMILY = Family(
    "t5",
    "T5ForConditionalGeneration",
    read,
    write,
    rules=rules,
    ignored=UNUSED,
    embedding_copies=COPIES,
    adds_special_tokens=True,
)

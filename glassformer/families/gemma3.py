"""Gemma 3, text: Gemma 2 with norms of queries and keys instead of the cap, and rotary bases by kind of layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from glassformer.errors import ConfigError
from glassformer.families import gemma2, qwen3
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.neutral import neutral_values
from glassformer.families.common.rope import read_rope, write_rope

RULES = (*gemma2.RULES, *(one for one in qwen3.RULES if "_norm.weight" in one.tensor_name))
LOCAL = ("rope_local_base_freq", "partial_rotary_factor")


def read(raw: ConfigFields) -> ModelConfig:
    d_model, context = raw.size("hidden_size"), raw.size("max_position_embeddings", 131072)
    n_layers, head_dim = raw.size("num_hidden_layers"), raw.size("head_dim", 256)
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6), "float32 1+")
    bias = raw.flag("attention_bias", False)
    raw.expect("use_bidirectional_attention", False, None)
    raw.expect("attn_logit_softcapping", None)
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_activation", "gelu_pytorch_tanh"))
    full = AttentionConfig(
        n_heads=raw.size("num_attention_heads", 8),
        n_kv_heads=raw.size("num_key_value_heads", 4),
        head_dim=head_dim,
        scale=raw.size("query_pre_attn_scalar", 256) ** -0.5,
        bias=bias,
        out_bias=bias,
        qk_norm=norm,
        rope=read_rope(raw, head_dim, context, theta=1e6, layer_type="full_attention"),
    )
    every = raw.size("_sliding_window_pattern", raw.size("sliding_window_pattern", 6))
    windows = raw.layer_windows(
        n_layers, raw.size("sliding_window", 4096), [(i + 1) % every > 0 for i in range(n_layers)]
    )
    local = read_rope(raw, head_dim, context, keys=LOCAL, layer_type="sliding_attention", scaling_key=None)
    attentions = [full if window is None else replace(full, rope=local, window=window) for window in windows]
    return ModelConfig(
        family="gemma3_text",
        vocab_size=raw.size("vocab_size", 262_208),
        d_model=d_model,
        context_length=context,
        layers=tuple(LayerConfig(attention, mlp, norm, ("pre", "out")) for attention in attentions),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", True),
        logit_softcap=raw.optional("final_logit_softcapping", None, float),
        embed_scale=d_model**0.5,
        round_embed_scale=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    def rope(sliding: bool) -> RopeConfig | None:
        attentions = (layer.attention for layer in config.layers if (layer.attention.window is not None) == sliding)
        return next((attention.rope for attention in attentions), None)

    raw, local = gemma2.write(config), rope(sliding=True)
    return raw | write_rope(rope(sliding=False), raw["head_dim"]) | {LOCAL[0]: None if local is None else local.theta}


OTHER_PARTS = ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")


def read_multimodal(raw: ConfigFields) -> ModelConfig:
    """Read the text model's part of the config.json of a model with images."""
    settings, tied = raw.take("text_config"), raw.take("tie_word_embeddings", None)
    if not isinstance(settings, dict):
        raise ConfigError(f"{raw.source}: text_config must be an object, got {settings!r:.100}")
    for key in OTHER_PARTS:
        raw.take(key, None)
    tie = {} if tied is None else {"tie_word_embeddings": tied}
    text = ConfigFields(tie | settings, f"{raw.source}: text_config")
    text.expect("model_type", "gemma3_text")
    config = read(text)
    text.close(neutral_values(config))
    return config


MULTIMODAL = Family(
    "gemma3", "Gemma3ForConditionalGeneration", read_multimodal, write, rules=RULES,
    renamed=(
        ("model.language_model.", "model."), ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."), ("language_model.", "model."),
    ),
    left_out=(r"(vision_tower|multi_modal_projector)\..*",),
)  # fmt: skip
FAMILY = Family("gemma3_text", "Gemma3ForCausalLM", read, write, rules=RULES)

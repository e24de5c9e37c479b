"""Gemma 2: Gemma with norms after each branch too, caps on scores and logits, and a window in every second layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama
from glassformer.families.common.family import ConfigFields, Family, rule
from glassformer.families.common.rope import read_rope

NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "attn_out_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}
RULES = (
    *(one for one in llama.RULES if "layernorm" not in one.tensor_name),
    *(rule(f"model.layers.{{i}}.{theirs}.weight", f"blocks.{{i}}.{ours}.weight") for theirs, ours in NORMS.items()),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, context = raw.size("hidden_size"), raw.size("max_position_embeddings", 8192)
    n_layers, head_dim = raw.size("num_hidden_layers"), raw.size("head_dim", 256)
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6), "float32 1+")
    bias = raw.flag("attention_bias", False)
    raw.expect("use_bidirectional_attention", None, False)
    raw.take("hidden_act", None)  # a key of Gemma 1; Gemma 2 uses hidden_activation
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_activation", "gelu_pytorch_tanh"))
    attention = AttentionConfig(
        n_heads=raw.size("num_attention_heads"),
        n_kv_heads=raw.size("num_key_value_heads", 4),
        head_dim=head_dim,
        scale=raw.size("query_pre_attn_scalar", 256) ** -0.5,
        bias=bias,
        out_bias=bias,
        softcap=raw.optional("attn_logit_softcapping", 50.0, float),
        rope=read_rope(raw, head_dim, context),
    )
    windows = raw.layer_windows(n_layers, raw.optional("sliding_window", 4096), [i % 2 == 0 for i in range(n_layers)])
    return ModelConfig(
        family="gemma2",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=tuple(LayerConfig(replace(attention, window=w), mlp, norm, ("pre", "out")) for w in windows),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", True),
        logit_softcap=raw.optional("final_logit_softcapping", 30.0, float),
        embed_scale=d_model**0.5,
        round_embed_scale=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw = llama.write(config)
    raw["hidden_activation"] = raw.pop("hidden_act")
    del raw["mlp_bias"]
    attention, windows = config.layers[0].attention, [layer.attention.window for layer in config.layers]
    return raw | {
        "query_pre_attn_scalar": round((attention.scale or attention.head_dim**-0.5) ** -2),
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": next((w for w in windows if w is not None), 4096),
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
    }


FAMILY = Family("gemma2", "Gemma2ForCausalLM", read, write, rules=RULES)

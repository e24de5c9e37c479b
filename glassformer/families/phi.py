"""Phi-1, 1.5 and 2: LayerNorm, biases, partial rotary positions, parallel branches that share one norm."""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families.common.family import ACTIVATION_NAMES, ConfigFields, Family, linear, rule
from glassformer.families.common.rope import read_rope, write_rope

LAYER, ATTENTION = "model.layers.{i}", "blocks.{i}.attn"
RULES = (
    rule("model.embed_tokens.weight", "embed.weight"),
    *linear(f"{LAYER}.input_layernorm", "blocks.{i}.attn_norm"),
    *(one for p in "qkv" for one in linear(f"{LAYER}.self_attn.{p}_proj", f"{ATTENTION}.{p}")),
    *(one for p in "qk" for one in linear(f"{LAYER}.self_attn.{p}_layernorm", f"{ATTENTION}.{p}_norm")),
    *linear(f"{LAYER}.self_attn.dense", f"{ATTENTION}.o"),
    *linear(f"{LAYER}.mlp.fc1", "blocks.{i}.mlp.up"),
    *linear(f"{LAYER}.mlp.fc2", "blocks.{i}.mlp.down"),
    *linear("model.final_layernorm", "norm"),
    rule("lm_head.weight", "head.weight"),
    rule("lm_head.bias", "head.bias"),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim, context = max(1, d_model // n_heads), raw.size("max_position_embeddings", 2048)
    norm = NormConfig("layer", raw.number("layer_norm_eps", 1e-5))
    raw.expect("tie_word_embeddings", False)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", n_heads),
        head_dim=head_dim,
        bias=True,
        out_bias=True,
        qk_norm=norm if raw.flag("qk_layernorm", False) else None,
        rope=read_rope(raw, head_dim, context, rotary_share=0.5),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "gelu_new"), gated=False, bias=True)
    layer = LayerConfig(attention, mlp, norm, parallel=True, shared_norm=True)
    return ModelConfig(
        family="phi",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(layer,) * raw.size("num_hidden_layers"),
        final_norm=norm,
        head_bias=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    attention, mlp = layer.attention, layer.mlp
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "intermediate_size": mlp.d_ff,
        "hidden_act": ACTIVATION_NAMES[mlp.activation],
        "max_position_embeddings": config.context_length,
        "layer_norm_eps": layer.norm.eps,
        "qk_layernorm": attention.qk_norm is not None,
        **write_rope(attention.rope, attention.head_dim, factor_key="partial_rotary_factor"),
    }


FAMILY = Family("phi", "PhiForCausalLM", read, write, rules=RULES)

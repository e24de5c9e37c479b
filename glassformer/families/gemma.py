"""Gemma: Llama with a scaled embedding, norms that multiply by 1 + their weight, and GELU in its feed-forward layer."""

from __future__ import annotations

from typing import Any

from glassformer.config import Activation, AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.rope import read_rope


def read(raw: ConfigFields) -> ModelConfig:
    d_model, context = raw.size("hidden_size"), raw.size("max_position_embeddings", 8192)
    head_dim, bias = raw.size("head_dim", 256), raw.flag("attention_bias", False)
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6), "float32 1+")
    raw.expect("use_bidirectional_attention", None, False)
    attention = AttentionConfig(
        n_heads=raw.size("num_attention_heads"),
        n_kv_heads=raw.size("num_key_value_heads", 16),
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        rope=read_rope(raw, head_dim, context),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), read_activation(raw))
    return ModelConfig(
        family="gemma",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(LayerConfig(attention, mlp, norm),) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", True),
        embed_scale=d_model**0.5,
        round_embed_scale=True,
    )


def read_activation(raw: ConfigFields) -> Activation:
    """Read the activation. Early files use "gelu" for the tanh approximation; later ones add a second key."""
    raw.expect("hidden_activation", None, "gelu_pytorch_tanh")
    activation = raw.activation("hidden_act", "gelu_pytorch_tanh")
    return "gelu_tanh" if activation == "gelu" else activation


def write(config: ModelConfig) -> dict[str, Any]:
    raw = llama.write(config)
    del raw["mlp_bias"]
    return raw


FAMILY = Family("gemma", "GemmaForCausalLM", read, write, rules=llama.RULES)

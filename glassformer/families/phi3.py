"""Phi-3, 3.5 and 4: Llama with q, k, v in one tensor, gate and up in another, and LongRoPE in the long variants."""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, LongScaling, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama
from glassformer.families.common.family import ConfigFields, Family, linear
from glassformer.families.common.rope import read_rope, write_rope

FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
RULES = (
    *(one for one in llama.RULES if not any(name in one.tensor_name for name in FUSED)),
    *linear("model.layers.{i}.self_attn.qkv_proj", *(f"blocks.{{i}}.attn.{part}" for part in "qkv")),
    *linear("model.layers.{i}.mlp.gate_up_proj", "blocks.{i}.mlp.gate", "blocks.{i}.mlp.up"),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim, context = max(1, d_model // n_heads), raw.size("max_position_embeddings", 4096)
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-5))
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        raw.expect(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        raw.expect(name, 1)
    old_names = {"su": "longrope", "yarn": "longrope"}
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", n_heads),
        head_dim=head_dim,
        rope=read_rope(raw, head_dim, context, rotary_share=1.0, aliases=old_names),
        window=raw.optional("sliding_window"),
    )
    raw.size("original_max_position_embeddings", context)  # read with the scaling, where there is one
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    return ModelConfig(
        family="phi3",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(LayerConfig(attention, mlp, norm),) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw, attention = llama.write(config), config.layers[0].attention
    for name in ("attention_bias", "mlp_bias", "head_dim"):
        del raw[name]
    scaling = None if attention.rope is None else attention.rope.scaling
    if isinstance(scaling, LongScaling):
        raw["original_max_position_embeddings"] = scaling.original_context
    rope = write_rope(attention.rope, attention.head_dim, factor_key="partial_rotary_factor")
    return raw | rope | {"sliding_window": attention.window, "pad_token_id": None}


FAMILY = Family("phi3", "Phi3ForCausalLM", read, write, rules=RULES)

"""Tensor names of GGUF. All architectures share most of them; QKV layouts and norms differ.

A rule applies only if the model has its parameters, so architectures can share rules.
"""

from __future__ import annotations

from dataclasses import replace

from glassformer.families.common.family import TensorRule, linear, rule

EMBED, HEAD = "token_embd.weight", "output.weight"
BLOCK, OURS = "blk.{i}", "blocks.{i}"
EXPERT = f"{OURS}.mlp.experts.{{j}}"
PARTS = ("gate", "up", "down")

COMMON = (
    TensorRule(EMBED, ("embed.weight",)),
    TensorRule("position_embd.weight", ("positions.weight",)),
    *linear("output_norm", "norm"),
    rule(HEAD, "head.weight"),
    rule("output.bias", "head.bias"),
    *linear(f"{BLOCK}.attn_norm", f"{OURS}.attn_norm"),
    *linear(f"{BLOCK}.attn_output", f"{OURS}.attn.o"),
    *linear(f"{BLOCK}.ffn_norm", f"{OURS}.mlp_norm"),
    *(one for part in PARTS for one in linear(f"{BLOCK}.ffn_{part}", f"{OURS}.mlp.{part}")),
    rule(f"{BLOCK}.post_attention_norm.weight", f"{OURS}.attn_out_norm.weight"),
    rule(f"{BLOCK}.post_ffw_norm.weight", f"{OURS}.mlp_out_norm.weight"),
    rule(f"{BLOCK}.attn_sinks.weight", f"{OURS}.attn.sinks"),
    *(rule(f"{BLOCK}.attn_{p}_norm.weight", f"{OURS}.attn.{p}_norm.weight") for p in "qk"),
    *(rule(f"{BLOCK}.attn_{p}_norm.weight", f"{OURS}.attn.{p}_norm.{{j}}.weight") for p in "qk"),
    *linear(f"{BLOCK}.ffn_gate_inp", f"{OURS}.mlp.router"),
    *(one for part in PARTS for one in linear(f"{BLOCK}.ffn_{part}_exps", f"{EXPERT}.{part}")),
)


def _separate(interleaved: bool) -> tuple[TensorRule, ...]:
    return (
        *linear(f"{BLOCK}.attn_q", f"{OURS}.attn.q", interleaved_rope=interleaved),
        *linear(f"{BLOCK}.attn_k", f"{OURS}.attn.k", interleaved_rope=interleaved),
        *linear(f"{BLOCK}.attn_v", f"{OURS}.attn.v"),
    )


# Queries, keys and values: three tensors with rotary pairs half a head apart, or interleaved; or one fused tensor.
SEPARATE_QKV, INTERLEAVED_QKV = _separate(interleaved=False), _separate(interleaved=True)
FUSED_QKV = linear(f"{BLOCK}.attn_qkv", *(f"{OURS}.attn.{p}" for p in "qkv"))

# Latent attention with separate tensors for keys and values, and the experts of its models.
LATENT = (
    *linear(f"{BLOCK}.attn_q_a", f"{OURS}.attn.q.reduce"),
    rule(f"{BLOCK}.attn_q_a_norm.weight", f"{OURS}.attn.q.norm.weight"),
    *linear(f"{BLOCK}.attn_q_b", f"{OURS}.attn.q.expand", interleaved_rope=True),
    *linear(f"{BLOCK}.attn_kv_a_mqa", f"{OURS}.attn.kv", interleaved_rope=True, single_head=True),
    rule(f"{BLOCK}.attn_kv_a_norm.weight", f"{OURS}.attn.kv_norm.weight"),
    rule(f"{BLOCK}.attn_k_b.weight", f"{OURS}.attn.expand_k.weight", transposed=True, head_axis=True),
    rule(f"{BLOCK}.attn_v_b.weight", f"{OURS}.attn.expand_v.weight", head_axis=True),
    rule(f"{BLOCK}.exp_probs_b.bias", f"{OURS}.mlp.score_correction", float32=True),
    *(one for part in PARTS for one in linear(f"{BLOCK}.ffn_{part}_shexp", f"{OURS}.mlp.shared.{part}")),
)
FUSED_LATENT = linear(f"{BLOCK}.attn_kv_b", f"{OURS}.attn.expand_k", f"{OURS}.attn.expand_v", grouped_by_kv_head=True)

# Alternatives in some files: gate and up of all experts in one tensor, or one tensor per expert.
ALTERNATIVE_EXPERTS = (
    rule(f"{BLOCK}.ffn_gate_up_exps.weight", f"{EXPERT}.gate.weight", f"{EXPERT}.up.weight"),
    *(rule(f"{BLOCK}.ffn_{part}.{{j}}.weight", f"{EXPERT}.{part}.weight") for part in PARTS),
)

# Encoders: post-norms and token types.
TOKEN_TYPES = "token_types.weight"
ENCODER = (
    rule(TOKEN_TYPES, TOKEN_TYPES),
    *linear("token_embd_norm", "embed_norm"),
    *linear(f"{BLOCK}.attn_output_norm", f"{OURS}.attn_post_norm"),
    *linear(f"{BLOCK}.layer_output_norm", f"{OURS}.mlp_post_norm"),
)

# Encoder-decoders: both sides have relative positions, a bias of the scores that block 0 stores for all layers.
RELATIVE = "attn_rel_b.weight"


def _side(theirs: str, ours: str, source: bool) -> tuple[TensorRule, ...]:
    block, mine = f"{theirs}.{BLOCK}", f"{ours}{OURS}"
    attentions = (("attn", "attn"), *((("cross_attn", "cross"),) if source else ()))
    return (
        rule(f"{theirs}.output_norm.weight", f"{ours}norm.weight"),
        rule(f"{theirs}.blk.0.{RELATIVE}", f"{ours}relative_positions.weight"),
        *(
            rule(f"{block}.{name}_{part}.weight", f"{mine}.{short}.{part}.weight")
            for name, short in attentions
            for part in "qkvo"
        ),
        *(
            rule(f"{block}.{name}_norm.weight", f"{mine}.{short}_norm.weight")
            for name, short in (*attentions, ("ffn", "mlp"))
        ),
        *(rule(f"{block}.ffn_{part}.weight", f"{mine}.mlp.{part}.weight") for part in PARTS),
    )


ENCODER_DECODER = (
    rule(EMBED, "embed.weight"),
    *_side("enc", "encoder.", source=False),
    *_side("dec", "", source=True),
    rule(HEAD, "head.weight"),
)


def without(rules: tuple[TensorRule, ...], *names: str) -> tuple[TensorRule, ...]:
    """Return the rules without those of the named tensors of a block."""
    gone = {f"{BLOCK}.{name}.{part}" for name in names for part in ("weight", "bias")}
    return tuple(one for one in rules if one.tensor_name not in gone)


def norms_plus_one(rules: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
    """Return the rules of a model whose norms multiply by 1 + weight; the tensors hold 1 + weight."""
    return tuple(replace(one, offset=1.0) if "_norm." in one.tensor_name else one for one in rules)

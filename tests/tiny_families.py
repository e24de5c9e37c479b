"""A tiny configuration of each decoder family, with all its features."""

import math
from collections.abc import Callable
from dataclasses import replace

from glassformer.config import (
    AttentionConfig,
    LatentConfig,
    LayerConfig,
    LinearScaling,
    LongScaling,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    NormConfig,
    RopeConfig,
    YarnScaling,
)

RMS, LAYER = NormConfig("rms", 1e-2), NormConfig("layer", 1e-2)
ONE_PLUS = NormConfig("rms", 1e-2, "float32 1+")
ROPE = RopeConfig(100.0)  # rotates far within 64 tokens
PART = RopeConfig(100.0, dim=6)
V, D, T = 97, 48, 64  # vocab_size, d_model, context_length


def qwen3() -> ModelConfig:
    attention = AttentionConfig(4, 2, 16, bias=True, out_bias=True, qk_norm=RMS, rope=ROPE)
    full, sliding = (LayerConfig(a, MLPConfig(72), RMS) for a in (attention, replace(attention, window=5)))
    return ModelConfig("qwen3", V, D, T, (full, sliding, full), RMS)


def llama() -> ModelConfig:
    attention = AttentionConfig(4, 1, 12, bias=True, out_bias=True, rope=ROPE)
    layer = LayerConfig(attention, MLPConfig(72, bias=True), RMS)
    return ModelConfig("llama", V, D, T, (layer,) * 3, RMS, tied_head=True)


def gpt2() -> ModelConfig:
    attention = AttentionConfig(4, 4, 12, bias=True, out_bias=True)
    layer = LayerConfig(attention, MLPConfig(72, "gelu_tanh", gated=False, bias=True), LAYER)
    return ModelConfig("gpt2", V, D, T, (layer,) * 3, LAYER, positions="learned", tied_head=True)


def mistral() -> ModelConfig:
    attention = AttentionConfig(4, 2, 10, rope=ROPE, window=6)
    return ModelConfig("mistral", V, D, T, (LayerConfig(attention, MLPConfig(72), RMS),) * 3, RMS)


def qwen2() -> ModelConfig:
    attention = AttentionConfig(4, 2, 12, bias=True, rope=ROPE)
    full, sliding = (LayerConfig(a, MLPConfig(72), RMS) for a in (attention, replace(attention, window=5)))
    return ModelConfig("qwen2", V, D, T, (full, sliding, sliding), RMS)


def gpt_neox() -> ModelConfig:
    attention = AttentionConfig(4, 4, 12, bias=True, out_bias=True, rope=PART)
    layer = LayerConfig(attention, MLPConfig(72, "gelu", gated=False, bias=True), LAYER, parallel=True)
    return ModelConfig("gpt_neox", V, D, T, (layer,) * 3, LAYER)


def gemma() -> ModelConfig:
    attention = AttentionConfig(4, 1, 16, bias=True, out_bias=True, rope=ROPE)
    layers = (LayerConfig(attention, MLPConfig(72, "gelu_tanh"), ONE_PLUS),) * 3
    return ModelConfig("gemma", V, D, T, layers, ONE_PLUS, tied_head=True, embed_scale=D**0.5, round_embed_scale=True)


def gemma2() -> ModelConfig:
    attention = AttentionConfig(4, 2, 16, scale=7**-0.5, bias=True, out_bias=True, softcap=10.0, rope=ROPE)
    both = (replace(attention, window=5), attention)
    sliding, full = (LayerConfig(a, MLPConfig(72, "gelu_tanh"), ONE_PLUS, ("pre", "out")) for a in both)
    return replace(gemma(), family="gemma2", layers=(sliding, full, sliding), logit_softcap=20.0)


def gemma3_text() -> ModelConfig:
    scaled = RopeConfig(400.0, scaling=LinearScaling(2.0))
    full = AttentionConfig(4, 2, 16, scale=7**-0.5, bias=True, out_bias=True, qk_norm=ONE_PLUS, rope=scaled)
    both = (replace(full, window=5, rope=ROPE), full)
    sliding, full = (LayerConfig(a, MLPConfig(72, "gelu_tanh"), ONE_PLUS, ("pre", "out")) for a in both)
    return replace(gemma(), family="gemma3_text", layers=(sliding, full, sliding), logit_softcap=20.0)


def phi3() -> ModelConfig:
    long = LongScaling((1.0, 1.1, 1.3, 1.2), (1.5, 2.0, 3.0, 4.0), 24, 1.2)
    attention = AttentionConfig(4, 2, 12, rope=RopeConfig(100.0, 8, long), window=9)
    return ModelConfig("phi3", V, D, T, (LayerConfig(attention, MLPConfig(72), RMS),) * 3, RMS)


def phi() -> ModelConfig:
    attention = AttentionConfig(4, 2, 12, bias=True, out_bias=True, qk_norm=LAYER, rope=PART)
    mlp = MLPConfig(72, "gelu_tanh", gated=False, bias=True)
    layer = LayerConfig(attention, mlp, LAYER, parallel=True, shared_norm=True)
    return ModelConfig("phi", V, D, T, (layer,) * 3, LAYER, head_bias=True)


def olmo() -> ModelConfig:
    bare = NormConfig("layer", 1e-5, None)
    attention = AttentionConfig(4, 2, 12, bias=True, out_bias=True, clip=3.0, rope=ROPE)
    return ModelConfig("olmo", V, D, T, (LayerConfig(attention, MLPConfig(72), bare),) * 3, bare)


def olmo2() -> ModelConfig:
    norm = NormConfig("rms", 1e-2, "float32")
    attention = AttentionConfig(4, 2, 12, bias=True, out_bias=True, qk_norm=norm, qk_norm_over="width", rope=ROPE)
    return ModelConfig("olmo2", V, D, T, (LayerConfig(attention, MLPConfig(72), norm, ("out",)),) * 3, norm)


def smollm3() -> ModelConfig:
    attention = AttentionConfig(4, 2, 12, bias=True, out_bias=True, rope=ROPE)
    both = (attention, replace(attention, rope=None, window=7))
    turning, still = (LayerConfig(a, MLPConfig(72, bias=True), RMS) for a in both)
    return ModelConfig("smollm3", V, D, T, (turning, turning, still), RMS, tied_head=True)


def falcon() -> ModelConfig:
    attention = AttentionConfig(4, 1, 12, bias=True, out_bias=True, rope=ROPE)
    mlp = MLPConfig(72, "gelu", gated=False, bias=True)
    layer = LayerConfig(attention, mlp, LAYER, parallel=True, shared_norm=True)
    return ModelConfig("falcon", V, D, T, (layer,) * 3, LAYER, tied_head=True)


def stablelm() -> ModelConfig:
    attention = AttentionConfig(4, 2, 12, bias=True, qk_norm=LAYER, qk_norm_over="each", rope=PART)
    layer = LayerConfig(attention, MLPConfig(72), LAYER, parallel=True, shared_norm=True)
    return ModelConfig("stablelm", V, D, T, (layer,) * 3, LAYER)


def mixtral() -> ModelConfig:
    attention = AttentionConfig(4, 2, 10, rope=ROPE, window=6)
    layer = LayerConfig(attention, MLPConfig(24), RMS, experts=MoEConfig(6, 2))
    return ModelConfig("mixtral", V, D, T, (layer,) * 3, RMS)


def qwen3_moe() -> ModelConfig:
    attention = AttentionConfig(4, 2, 16, bias=True, out_bias=True, qk_norm=RMS, rope=ROPE, window=5)
    plain = LayerConfig(attention, MLPConfig(72), RMS)
    routed = replace(plain, mlp=MLPConfig(24), experts=MoEConfig(6, 3, normed=False))
    return ModelConfig("qwen3_moe", V, D, T, (routed, routed, plain), RMS)


def olmoe() -> ModelConfig:
    attention = AttentionConfig(4, 2, 12, bias=True, out_bias=True, qk_norm=RMS, qk_norm_over="width", rope=ROPE)
    layer = LayerConfig(attention, MLPConfig(24), RMS, experts=MoEConfig(6, 3, normed=False))
    return ModelConfig("olmoe", V, D, T, (layer,) * 3, RMS)


def gpt_oss() -> ModelConfig:
    yarn = YarnScaling(4.0, 16, beta_fast=2.5, beta_slow=0.1, attention_factor=1.2, truncate=False)
    attention = AttentionConfig(4, 2, 12, bias=True, out_bias=True, rope=RopeConfig(100.0, scaling=yarn), sinks=True)
    mlp = MLPConfig(24, "quick_gelu", bias=True, limit=0.8, up_plus_one=True)
    full = LayerConfig(attention, mlp, NormConfig("rms", 1e-2, "float32"), experts=MoEConfig(6, 3, router_bias=True))
    sliding = replace(full, attention=replace(attention, window=5))
    return ModelConfig("gpt_oss", V, D, T, (sliding, full, sliding), full.norm)


def deepseek_v2() -> ModelConfig:
    yarn = YarnScaling(4.0, 16, beta_fast=2.5, beta_slow=0.1, attention_factor=1.2)
    rope, gain = RopeConfig(100.0, 8, yarn), 0.1 * 1.3 * math.log(4.0) + 1
    latent = LatentConfig(20, 10, q_rank=28)
    attention = AttentionConfig(
        4, 4, 14, scale=gain**2 / math.sqrt(14), bias=True, out_bias=True, rope=rope, latent=latent
    )
    plain = LayerConfig(attention, MLPConfig(72), RMS)
    moe = MoEConfig(6, 3, normed=False, scale=1.7, float32_router=True, n_groups=3, top_groups=2, shared_d_ff=48)
    routed = replace(plain, mlp=MLPConfig(24), experts=moe)
    return ModelConfig("deepseek_v2", V, D, T, (plain, routed, routed), RMS)


def deepseek_v3() -> ModelConfig:
    plain, routed, _ = deepseek_v2().layers
    moe = MoEConfig(
        8, 3, "sigmoid", scale=1.7, float32_router=True, score_correction=True, n_groups=4, top_groups=2, group_best=2,
        shared_d_ff=24,
    )  # fmt: skip
    routed = replace(routed, experts=moe)
    return ModelConfig("deepseek_v3", V, D, T, (plain, routed, routed), RMS)


EVERY = (
    qwen3, llama, gpt2, mistral, qwen2, gpt_neox, gemma, gemma2, gemma3_text, phi3, phi, olmo, olmo2, smollm3, falcon,
    stablelm, mixtral, qwen3_moe, olmoe, gpt_oss, deepseek_v2, deepseek_v3,
)  # fmt: skip
CONFIGS: dict[str, Callable[[], ModelConfig]] = {f.__name__: f for f in EVERY}
DECODERS = tuple(CONFIGS)

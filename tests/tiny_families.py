"""A tiny configuration of each family of decoders, with all that the family can do."""

from collections.abc import Callable
from dataclasses import replace

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig

RMS, LAYER = NormConfig("rms", 1e-2), NormConfig("layer", 1e-2)
ROPE = RopeConfig(100.0)  # turns far within 64 tokens
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


CONFIGS: dict[str, Callable[[], ModelConfig]] = {f.__name__: f for f in (qwen3, llama, gpt2)}
DECODERS = tuple(CONFIGS)

"""Model shapes: the sizes that a user sets for a new model, and named presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from glassformer.config import (
    AttentionConfig,
    EncoderConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RecurrentConfig,
)
from glassformer.config.checks import MAX_LAYERS
from glassformer.errors import ConfigError


@dataclass(frozen=True)
class ShapeConfig:
    """The shape of a decoder whose layers are all equal. A size of 0 follows from the others: see `fill`.

    `family` is the architecture: qwen3 and llama (RMSNorm, rotary positions, gated feed-forward; qwen3 with
    qk-norm), or gpt2 (LayerNorm, learned positions). `context` is in tokens.
    """

    family: str = "qwen3"
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 0
    head_dim: int = 0
    d_ff: int = 0
    context: int = 256
    vocab_size: int = 0
    tied_head: bool = True
    rope_theta: float = 10_000.0

    def fill(self, vocab_size: int) -> ShapeConfig:
        """Return a copy with every size of 0 computed; `vocab_size` is the tokenizer's.

        d_ff is 4 d_model for a plain feed-forward layer, and 8/3 d_model, rounded up to a multiple of 32, for a gated
        one, which has three matrices instead of two.
        """
        _check_layers(self.n_layers)
        if self.head_dim == 0 and self.d_model % self.n_heads:
            raise ConfigError(f"d_model must be a multiple of n_heads, got {self.d_model} and {self.n_heads}")
        plain = 4 * self.d_model
        gated = -(-8 * self.d_model // 3 // 32) * 32
        defaults: dict[str, Any] = {
            "n_kv_heads": self.n_heads,
            "head_dim": self.d_model // self.n_heads,
            "d_ff": plain if self.family == "gpt2" else gated,
            "vocab_size": vocab_size,
        }
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) == 0})


@dataclass(frozen=True)
class Seq2SeqShape:
    """The shape of an encoder-decoder as in "Attention Is All You Need". A size of 0 follows from the others.

    LayerNorm, biases, a plain feed-forward layer with ReLU, embeddings times sqrt(d_model). `norm_at` "post" is the
    paper's, without final norms; "pre" has final norms. `shared_embedding` requires one vocabulary for source and
    target. `n_layers` is the number of each side; `context` and `source_context` are in tokens.
    """

    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 8
    d_ff: int = 0
    context: int = 256
    source_context: int = 0
    norm_at: Literal["pre", "post"] = "post"
    positions: Literal["learned", "sinusoidal"] = "sinusoidal"
    shared_embedding: bool = True
    tied_head: bool = True

    def expand(self, vocab_size: int, source_vocab_size: int = 0) -> ModelConfig:
        """Return the full configuration for these vocabularies. ConfigError: the sizes do not fit together."""
        _check_layers(self.n_layers)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model must be a multiple of n_heads, got {self.d_model} and {self.n_heads}")
        if self.norm_at not in ("pre", "post"):
            raise ConfigError(f"norm_at must be 'pre' or 'post', got {self.norm_at!r}")
        cross = AttentionConfig(
            self.n_heads, self.n_heads, self.d_model // self.n_heads, bias=True, out_bias=True, causal=False
        )
        mlp, norm = MLPConfig(self.d_ff or 4 * self.d_model, "relu", gated=False, bias=True), NormConfig("layer", 1e-5)
        encoder_layer = LayerConfig(cross, mlp, norm, (self.norm_at,))
        decoder_layer = replace(encoder_layer, attention=replace(cross, causal=True), cross=cross)
        encoder = EncoderConfig(
            vocab_size=source_vocab_size or vocab_size,
            d_model=self.d_model,
            context_length=self.source_context or self.context,
            layers=(encoder_layer,) * self.n_layers,
            final_norm=norm if self.norm_at == "pre" else None,
            positions=self.positions,
            embed_scale=math.sqrt(self.d_model),
        )
        return ModelConfig(
            family="pair",
            vocab_size=vocab_size,
            d_model=self.d_model,
            context_length=self.context,
            layers=(decoder_layer,) * self.n_layers,
            final_norm=encoder.final_norm,
            positions=self.positions,
            tied_head=self.tied_head,
            embed_scale=encoder.embed_scale,
            encoder=encoder,
            shared_embedding=self.shared_embedding,
        )


@dataclass(frozen=True)
class RecurrentShape:
    """The shape of a recurrent encoder-decoder: see `RecurrentConfig`. `d_hidden` 0 means 2 d_model.

    `context` and `source_context` (0: the same), in tokens, limit the length of training examples; the model itself
    has no limit.
    """

    d_model: int = 128
    d_hidden: int = 0
    n_layers: int = 1
    cell: Literal["gru", "lstm"] = "gru"
    bidirectional: bool = True
    attention: Literal["additive", "dot", "general"] | None = "additive"
    input_feeding: bool = False
    context: int = 256
    source_context: int = 0
    shared_embedding: bool = True

    def expand(self, vocab_size: int, source_vocab_size: int = 0) -> RecurrentConfig:
        """Return the full configuration for these vocabularies. ConfigError: the sizes do not fit together."""
        _check_layers(self.n_layers)
        return RecurrentConfig(
            source_vocab_size=source_vocab_size or vocab_size,
            target_vocab_size=vocab_size,
            d_model=self.d_model,
            d_hidden=self.d_hidden or 2 * self.d_model,
            n_layers=self.n_layers,
            cell=self.cell,
            bidirectional=self.bidirectional,
            attention=self.attention,
            input_feeding=self.input_feeding,
            shared_embedding=self.shared_embedding,
        )


SHAPE_FAMILIES = ("qwen3", "llama", "gpt2")  # the values of ShapeConfig.family
PRESETS: dict[str, ShapeConfig] = {
    "tiny": ShapeConfig(d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, context=256),
    "small": ShapeConfig(d_model=384, n_layers=6, n_heads=6, n_kv_heads=2, context=256),
    "medium": ShapeConfig(d_model=768, n_layers=12, n_heads=12, n_kv_heads=4, context=1024),
    "gpt2-small": ShapeConfig(family="gpt2", d_model=768, n_layers=12, n_heads=12, context=1024),
}


def _check_layers(n_layers: int) -> None:
    """Raise ConfigError for more layers than a configuration may hold: it has one object per layer."""
    if n_layers > MAX_LAYERS:
        raise ConfigError(f"n_layers must be at most {MAX_LAYERS:,}, got {n_layers:,}")

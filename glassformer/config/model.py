"""Configuration of a Transformer: one `LayerConfig` per block, already expanded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.config.attention import RelativeConfig
from glassformer.config.checks import require
from glassformer.config.layer import LayerConfig
from glassformer.config.norm import NormConfig
from glassformer.config.rope_scaling import LongScaling

Positions = Literal["learned", "sinusoidal", "sinusoidal halves"]


def _check_stack(config: EncoderConfig | ModelConfig, causal: bool) -> None:
    """Check the fields that encoders and decoders share. Raises ConfigError."""
    for name in ("vocab_size", "d_model", "context_length"):
        require(getattr(config, name) >= 1, f"{name} must be at least 1, got {getattr(config, name)}")
    require(len(config.layers) >= 1, "a model needs at least one layer, got none")
    known = (None, "learned", "sinusoidal", "sinusoidal halves")
    require(config.positions in known, f"positions must be one of {known}, got {config.positions!r}")
    attentions = [layer.attention for layer in config.layers]
    kinds = [config.positions, config.relative, next((a.rope for a in attentions if a.rope is not None), None)]
    require(
        sum(kind is not None for kind in kinds) <= 1,
        f"at most one of added, relative and rotary positions is allowed, got {', '.join(map(str, kinds))}",
    )
    require(
        config.relative is None or all((a.n_heads, a.window) == (attentions[0].n_heads, None) for a in attentions),
        "a relative bias is shared by all layers: they must have the same n_heads and no window",
    )
    require(config.position_offset >= 0, f"position_offset must be at least 0, got {config.position_offset}")
    require(
        config.position_offset == 0 or config.positions == "learned",
        f"position_offset requires learned positions, got positions {config.positions!r}",
    )
    require(config.embed_scale > 0, f"embed_scale must be above 0, got {config.embed_scale}")
    where = "a decoder" if causal else "an encoder"
    require(
        all(layer.attention.causal == causal for layer in config.layers),
        f"the attention of {where} must have causal = {causal} in every layer",
    )


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder of an encoder-decoder: embedding, `layers` without a causal mask, final norm.

    Fields as in `ModelConfig`. `context_length` is the longest source.
    """

    vocab_size: int
    d_model: int
    context_length: int
    layers: tuple[LayerConfig, ...]
    final_norm: NormConfig | None = NormConfig()  # noqa: RUF009 (frozen)
    positions: Positions | None = None
    embed_scale: float = 1.0
    embed_norm: NormConfig | None = None
    position_offset: int = 0
    relative: RelativeConfig | None = None

    def __post_init__(self):
        _check_stack(self, causal=False)
        require(all(layer.cross is None for layer in self.layers), "an encoder has no cross-attention")

    @property
    def n_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class ModelConfig:
    """A language model: embedding, `layers`, final norm, language-modelling head; with an `encoder`, a seq2seq model.

    `family` names the module in `families/` that saves it. `positions` are added to the embedding; rotary positions
    belong to each layer's attention instead. `context_length` is in tokens. `embed_scale` multiplies the embedding
    (sqrt(d_model) in Vaswani et al. 2017); `round_embed_scale`: it is rounded to the embedding's dtype first.
    `embed_norm` normalizes the input of block 0. `position_offset`: the row of the table for position 0. `relative`: a
    bias of the scores, shared by all layers. `head_scale` multiplies the input of the head. `logit_softcap` c maps a
    logit l to c tanh(l/c). With an encoder every layer has cross-attention; `shared_embedding`: encoder and decoder
    share one embedding.
    """

    family: str
    vocab_size: int
    d_model: int
    context_length: int
    layers: tuple[LayerConfig, ...]
    final_norm: NormConfig | None = NormConfig()  # noqa: RUF009 (frozen)
    positions: Positions | None = None
    tied_head: bool = False
    head_bias: bool = False
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    round_embed_scale: bool = False
    embed_norm: NormConfig | None = None
    position_offset: int = 0
    relative: RelativeConfig | None = None
    head_scale: float = 1.0
    encoder: EncoderConfig | None = None
    shared_embedding: bool = False

    def __post_init__(self):
        _check_stack(self, causal=True)
        require(self.head_scale > 0, f"head_scale must be above 0, got {self.head_scale}")
        cap = self.logit_softcap
        require(cap is None or cap > 0, f"logit_softcap must be above 0, got {cap}")
        long = _original_contexts(self.layers)
        require(len(long) <= 1, f"all layers with a LongScaling must have the same original_context, got {long}")
        require(
            all((layer.cross is None) == (self.encoder is None) for layer in self.layers),
            "cross-attention must be in every layer of a model with an encoder, and in no layer without one",
        )
        if self.encoder is None:
            require(not self.shared_embedding, "shared_embedding requires an encoder, got encoder None")
            return
        require(
            self.encoder.d_model == self.d_model,
            f"encoder and decoder must have the same d_model, got {self.encoder.d_model} and {self.d_model}",
        )
        require(
            not self.shared_embedding or self.encoder.vocab_size == self.vocab_size,
            "shared_embedding requires the same vocab_size on both sides, "
            f"got {self.encoder.vocab_size} and {self.vocab_size}",
        )

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def long_text(self) -> int | None:
        """The text length from which a `LongScaling` uses its long factors; None without one."""
        return next((n + 1 for n in _original_contexts(self.layers)), None)


def _original_contexts(layers: tuple[LayerConfig, ...]) -> set[int]:
    """Return the original contexts of all `LongScaling`s."""
    scalings = (layer.attention.rope.scaling for layer in layers if layer.attention.rope is not None)
    return {scaling.original_context for scaling in scalings if isinstance(scaling, LongScaling)}

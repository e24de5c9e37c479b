"""What a model is, as frozen data. One `LayerConfig` per block, already expanded; no torch, no family names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from glassformer.errors import ConfigError
from glassformer.latent_config import LatentConfig
from glassformer.moe_config import MoEConfig
from glassformer.rope_scaling import LongScaling, Scaling, YarnScaling

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"]
Positions = Literal["learned", "sinusoidal", "sinusoidal halves"]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True)
class NormConfig:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis.

    `scale` is what the normed x is multiplied by: "weight", in x's own dtype; "float32", the weight in float32, before
    the cast back; "float32 1+", 1 + the weight, likewise; None, nothing (and no bias is added).
    """

    kind: Literal["layer", "rms"] = "rms"
    eps: float = 1e-6
    scale: Literal["weight", "float32", "float32 1+"] | None = "weight"

    def __post_init__(self):
        scales = {"layer": ("weight", None), "rms": ("weight", "float32", "float32 1+")}
        _require(self.kind in ("layer", "rms"), f"norm kind must be 'layer' or 'rms', got {self.kind!r}")
        _require(self.eps > 0, f"norm eps must be above 0, got {self.eps}")
        allowed = scales[self.kind]
        _require(self.scale in allowed, f"scale of a {self.kind} norm must be one of {allowed}, got {self.scale!r}")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021): pair i of R/2 turns by position * theta^(-2i/R).

    R is `dim`, the first dimensions of a head, or all of them (None). `scaling` changes the angles.
    """

    theta: float = 10_000.0
    dim: int | None = None
    scaling: Scaling | None = None

    def __post_init__(self):
        least = 1 if isinstance(self.scaling, YarnScaling) else 0
        _require(self.theta > least, f"rope theta must be above {least}, got {self.theta}")
        ok = self.dim is None or (self.dim >= 2 and self.dim % 2 == 0)
        _require(ok, f"rotary positions turn pairs: rope dim must be even, got {self.dim}")


@dataclass(frozen=True)
class RelativeConfig:
    """A learned bias of scores for each head and bucket of distances (Raffel et al. 2020, section 2.1).

    Half the buckets are of one distance each, the others wider and wider up to `max_distance`; all farther ones fall
    into the last. Where later tokens are seen too, they have half of all buckets for themselves.
    """

    n_buckets: int = 32
    max_distance: int = 128

    def __post_init__(self):
        _require(
            self.n_buckets >= 4 and self.n_buckets % 4 == 0,
            f"n_buckets must be a multiple of 4, got {self.n_buckets}",
        )
        _require(
            self.max_distance > self.n_buckets // 2,
            f"max_distance must be above {self.n_buckets // 2}, half of n_buckets, got {self.max_distance}",
        )


@dataclass(frozen=True)
class AttentionConfig:
    """Multi-head, grouped-query (n_kv_heads < n_heads) or multi-query (n_kv_heads = 1) attention.

    `scale` multiplies q.k; None is 1/sqrt(head_dim) and 1.0 the unscaled product. `softcap` c makes a score s
    c tanh(s/c). `window` is how many keys a query sees, itself included; None is all. `bias` is of q, k and v;
    `out_bias` of o. `clip` bounds what q, k and v are projected to. `qk_norm` norms q and k: each head by itself, all
    with one weight ("head"), or each with its own, without bias ("each"); or all heads as one vector ("width").
    `causal`: a query sees no later key; False in an encoder and in cross-attention. `sinks`: one more score per head is
    learned, whose probability goes nowhere (Xiao et al. 2024; gpt-oss). `latent`: keys and values are made of what is
    kept in their place; `bias` is then of what makes the latents.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float | None = None
    bias: bool = False
    out_bias: bool = False
    qk_norm: NormConfig | None = None
    qk_norm_over: Literal["head", "each", "width"] = "head"
    clip: float | None = None
    softcap: float | None = None
    rope: RopeConfig | None = None
    window: int | None = None
    causal: bool = True
    sinks: bool = False
    latent: LatentConfig | None = None

    def __post_init__(self):
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(
            self.n_heads % self.n_kv_heads == 0,
            f"n_heads must be a multiple of n_kv_heads, got {self.n_heads} and {self.n_kv_heads}",
        )
        turned = 0 if self.rope is None else self.head_dim if self.rope.dim is None else self.rope.dim
        _require(turned % 2 == 0, f"rotary positions turn pairs: head_dim must be even, got {self.head_dim}")
        _require(turned <= self.head_dim, f"rope dim must be at most head_dim {self.head_dim}, got {turned}")
        if self.rope is not None and isinstance(self.rope.scaling, LongScaling):
            n = len(self.rope.scaling.short)
            _require(n == turned // 2, f"rope scaling has {n} factors, and {turned} dimensions are {turned // 2} pairs")
        for name in ("clip", "softcap"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be above 0, got {value}")
        known = ("head", "each", "width")
        _require(self.qk_norm_over in known, f"qk_norm_over must be one of {known}, got {self.qk_norm_over!r}")
        _require(
            self.qk_norm is not None or self.qk_norm_over == "head", f"qk_norm_over is {self.qk_norm_over!r} of no norm"
        )
        _require(self.window is None or self.window >= 1, f"window must be at least 1, got {self.window}")
        _require(self.causal or self.window is None, f"a window looks back: only causal attention has one, got {self}")
        if self.latent is not None:
            self.latent.check(self, turned)

    @property
    def v_dim(self) -> int:
        """The width of a head's values."""
        return self.head_dim if self.latent is None else self.latent.v_dim

    @property
    def kept(self) -> int:
        """How many numbers a token leaves behind for later ones."""
        if self.latent is None:
            return 2 * self.n_kv_heads * self.head_dim
        return self.latent.rank + ((self.rope and self.rope.dim) or 0)


@dataclass(frozen=True)
class MLPConfig:
    """The feed-forward layer: down(act(up x)), or gated, down(act(gate x) * up x) (Shazeer 2020).

    `limit` l: gate x is bounded by l from above, and up x by l on either side. `up_plus_one`: act(gate x) multiplies
    1 + up x (gpt-oss has both).
    """

    d_ff: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    up_plus_one: bool = False

    def __post_init__(self):
        _require(self.d_ff >= 1, f"d_ff must be at least 1, got {self.d_ff}")
        known = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu")
        _require(self.activation in known, f"activation must be one of {', '.join(known)}, got {self.activation!r}")
        _require(self.limit is None or self.limit > 0, f"limit must be above 0, got {self.limit}")
        _require(
            self.gated or (self.limit is None and not self.up_plus_one),
            "limit and up_plus_one are of a gated feed-forward layer",
        )


@dataclass(frozen=True)
class LayerConfig:
    """One block: x -> post(x + out(f(pre(x)))) for attention, then for the feed-forward layer.

    `norm_at` says which of the three norms there are: ("pre",) in GPT-2 and Llama, ("post",) in the paper of 2017.
    `cross` stands between the two: attention to an encoder's output. `parallel`: both read the same x, and both are
    added to it ("GPT-J", Wang & Komatsuzaki 2021); with `shared_norm` they read it through one norm. `experts`: there
    are many feed-forward layers like `mlp`, and each token goes through some of them.
    """

    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()
    norm_at: tuple[Literal["pre", "out", "post"], ...] = ("pre",)
    cross: AttentionConfig | None = None
    parallel: bool = False
    shared_norm: bool = False
    experts: MoEConfig | None = None

    def __post_init__(self):
        known = {"pre", "out", "post"}
        _require(
            len(self.norm_at) > 0 and set(self.norm_at) <= known and len(set(self.norm_at)) == len(self.norm_at),
            f"norm_at must name one or more of pre, out and post, each once, got {self.norm_at!r}",
        )
        _require(
            self.cross is None or not (self.cross.causal or self.cross.rope or self.cross.sinks),
            "cross-attention sees its whole source, and has no positions in common with it, and no sinks: "
            f"causal must be False and rope None, got {self.cross}",
        )
        _require(
            not self.parallel or (self.norm_at == ("pre",) and self.cross is None),
            "the branches of a parallel block are normed before, and none of them reads a source: "
            f"got norm_at {self.norm_at} and cross {self.cross}",
        )
        _require(self.parallel or not self.shared_norm, "only the branches of a parallel block share a norm")


def _check_stack(config: EncoderConfig | ModelConfig, causal: bool) -> None:
    """What holds of an encoder and of a decoder."""
    for name in ("vocab_size", "d_model", "context_length"):
        _require(getattr(config, name) >= 1, f"{name} must be at least 1, got {getattr(config, name)}")
    _require(len(config.layers) >= 1, "a model needs at least one layer, got none")
    known = (None, "learned", "sinusoidal", "sinusoidal halves")
    _require(config.positions in known, f"positions must be one of {known}, got {config.positions!r}")
    attentions = [layer.attention for layer in config.layers]
    kinds = [config.positions, config.relative, next((a.rope for a in attentions if a.rope is not None), None)]
    _require(
        sum(kind is not None for kind in kinds) <= 1,
        "added, relative and rotary positions are not used together by any known model: "
        f"got {', '.join(map(str, kinds))}",
    )
    _require(
        config.relative is None or all((a.n_heads, a.window) == (attentions[0].n_heads, None) for a in attentions),
        "a relative bias is shared by all layers, which must have as many heads and no window",
    )
    _require(config.position_offset >= 0, f"position_offset must be at least 0, got {config.position_offset}")
    _require(
        config.position_offset == 0 or config.positions == "learned",
        f"position_offset is of learned positions, got {config.positions} positions",
    )
    _require(config.embed_scale > 0, f"embed_scale must be above 0, got {config.embed_scale}")
    where = "a decoder" if causal else "an encoder"
    _require(
        all(layer.attention.causal == causal for layer in config.layers),
        f"the attention of {where} must have causal = {causal} in every layer",
    )


@dataclass(frozen=True)
class EncoderConfig:
    """What reads the source of an encoder-decoder: embedding, `layers` that see their whole row, final norm.

    Fields as in `ModelConfig`. `context_length` is the longest source.
    """

    vocab_size: int
    d_model: int
    context_length: int
    layers: tuple[LayerConfig, ...]
    final_norm: NormConfig | None = NormConfig()
    positions: Positions | None = None
    embed_scale: float = 1.0
    embed_norm: NormConfig | None = None
    position_offset: int = 0
    relative: RelativeConfig | None = None

    def __post_init__(self):
        _check_stack(self, causal=False)
        _require(all(layer.cross is None for layer in self.layers), "an encoder has no cross-attention")

    @property
    def n_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class ModelConfig:
    """A language model: embedding, `layers`, final norm, language-modelling head; with an `encoder`, of a source.

    `family` names the file in `families/` whose config.json and tensor names it is saved under. `positions` are added
    to the embedding; rotary positions are part of each layer's attention instead. `context_length` is in tokens.
    `embed_scale` multiplies the embedding: sqrt(d_model) in the paper of 2017; `round_embed_scale`: rounded to the
    embedding's dtype first. `embed_norm` norms what enters block 0. `position_offset`: the row of their table at which
    learned positions begin. `relative`: a bias of scores, shared by all layers. `head_scale` multiplies what the head
    reads. `logit_softcap` c makes a logit l c tanh(l/c). With an encoder every layer has cross-attention;
    `shared_embedding`: the encoder looks its tokens up in the decoder's table.
    """

    family: str
    vocab_size: int
    d_model: int
    context_length: int
    layers: tuple[LayerConfig, ...]
    final_norm: NormConfig | None = NormConfig()
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
        _require(self.head_scale > 0, f"head_scale must be above 0, got {self.head_scale}")
        cap = self.logit_softcap
        _require(cap is None or cap > 0, f"logit_softcap must be above 0, got {cap}")
        long = _original_contexts(self.layers)
        _require(len(long) <= 1, f"a text must become long for all layers at once, got original contexts {long}")
        _require(
            all((layer.cross is None) == (self.encoder is None) for layer in self.layers),
            "with an encoder every layer has cross-attention, and without one no layer has",
        )
        if self.encoder is None:
            _require(not self.shared_embedding, "there is no encoder to share the embedding with")
            return
        _require(
            self.encoder.d_model == self.d_model,
            f"encoder and decoder must have the same d_model, got {self.encoder.d_model} and {self.d_model}",
        )
        _require(
            not self.shared_embedding or self.encoder.vocab_size == self.vocab_size,
            "a shared embedding needs the same vocab_size on both sides, "
            f"got {self.encoder.vocab_size} and {self.vocab_size}",
        )

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def long_text(self) -> int | None:
        """From how many tokens on all positions of a text turn by other angles (`LongScaling`); None: never."""
        return next((n + 1 for n in _original_contexts(self.layers)), None)


def _original_contexts(layers: tuple[LayerConfig, ...]) -> set[int]:
    """Of the scalings that choose by the length of a text."""
    scalings = (layer.attention.rope.scaling for layer in layers if layer.attention.rope is not None)
    return {scaling.original_context for scaling in scalings if isinstance(scaling, LongScaling)}


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return asdict(config)


def change(config: Any, path: str, value: Any) -> Any:
    """A copy with one field changed: `change(config, "layers.2.attention.window", 8)`."""
    head, _, rest = path.partition(".")
    if isinstance(config, tuple):
        i = int(head)
        return (*config[:i], change(config[i], rest, value) if rest else value, *config[i + 1 :])
    if not is_dataclass(config) or head not in {f.name for f in fields(config)}:
        raise ConfigError(f"no field {head!r} in {type(config).__name__}")
    new = change(getattr(config, head), rest, value) if rest else value
    return replace(config, **{head: new})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class RecurrentConfig:
    """A recurrent encoder-decoder: GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997) on either side.

    `d_model` is the embeddings' width, `d_hidden` that of a state on either side: where the encoder reads both ways,
    each way has half of it. `attention` None leaves the decoder nothing but the encoder's last state (Sutskever et al.
    2014); "additive" is Bahdanau et al. 2015, "dot" and "general" are Luong et al. 2015, who with `input_feeding` also
    show the cell what the step before made. `shared_embedding`: source and target tokens are looked up in one table.
    """

    source_vocab_size: int
    target_vocab_size: int
    d_model: int
    d_hidden: int
    n_layers: int = 1
    cell: Literal["gru", "lstm"] = "gru"
    bidirectional: bool = True
    attention: Literal["additive", "dot", "general"] | None = None
    input_feeding: bool = False
    shared_embedding: bool = False

    def __post_init__(self):
        for name in ("source_vocab_size", "target_vocab_size", "d_model", "d_hidden", "n_layers"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(self.cell in ("gru", "lstm"), f"cell must be 'gru' or 'lstm', got {self.cell!r}")
        known = (None, "additive", "dot", "general")
        _require(self.attention in known, f"attention must be one of {known}, got {self.attention!r}")
        _require(
            not self.bidirectional or self.d_hidden % 2 == 0,
            f"each way of a bidirectional encoder has half the state: d_hidden must be even, got {self.d_hidden}",
        )
        _require(
            not self.input_feeding or self.attention in ("dot", "general"),
            f"input_feeding goes with attention 'dot' or 'general', got attention {self.attention!r}",
        )
        _require(
            not self.shared_embedding or self.source_vocab_size == self.target_vocab_size,
            "a shared embedding needs one vocabulary, got source_vocab_size "
            f"{self.source_vocab_size} and target_vocab_size {self.target_vocab_size}",
        )

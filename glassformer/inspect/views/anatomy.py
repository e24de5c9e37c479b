"""The parts of a model, their shapes and sizes, and their computation times on a text. View 1."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Language, ModelKind, Receipt, Trace
from glassformer.inspect.views.support import UNAVAILABLE
from glassformer.kernels.packed_linear import packed_modules, weight_shapes
from glassformer.nn.linear import device_of, dtype_of
from glassformer.nn.step import Step

RECURRENT = {
    "source_embed": "source embedding", "target_embed": "target embedding", "alignment": "attention",
    "combine": "attention",
}  # fmt: skip
KINDS = {"attn": "attention", "cross": "cross-attention", "mlp": "feed-forward"}


@dataclass(frozen=True)
class WeightMatrix:
    name: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class ModelPart:
    """One part of the model. layer: the index of its block, None outside the blocks."""

    kind: str
    layer: int | None
    parameters: int
    matrices: tuple[WeightMatrix, ...]


@dataclass(frozen=True)
class Layer:
    """The configuration of one block: the fields that drawings show."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int | None
    rotary: bool
    d_ff: int
    gated: bool
    experts: int | None
    parallel: bool
    norm_at: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """The result of `anatomy`.

    shares: the fraction of all parameters by kind of part. tied: the head shares the embedding's matrix, which is
    counted once. layers: of the decoder, or of an encoder-only model; encoder: of the encoder of an encoder-decoder.
    A recurrent model has neither, and no context length. unavailable: the unsupported views, with the reasons.
    """

    kind: ModelKind
    family: str
    vocab_size: int
    d_model: int
    context: int | None
    positions: str | None
    tied: bool
    dtype: str
    layers: tuple[Layer, ...]
    encoder: tuple[Layer, ...]
    parts: tuple[ModelPart, ...]
    shares: dict[str, float]
    parameters: int
    unavailable: dict[str, str]
    receipt: Receipt


@dataclass(frozen=True)
class Times:
    """Milliseconds of each part of a forward pass over the text; of several passes, the one of median duration."""

    tokens: int
    embedding: float
    attention: tuple[float, ...]
    feed_forward: tuple[float, ...]
    head: float
    total: float
    receipt: Receipt


def anatomy(lm: Language) -> Anatomy:
    """The parts of a model with their parameter counts, computed from the parameters; they cover all parameters."""
    found: dict[tuple[str, int | None], list[WeightMatrix]] = {}
    for name, p in weight_shapes(lm.model).items():
        found.setdefault(classify_parameter(name), []).append(WeightMatrix(name, tuple(p.shape), p.numel()))
    parts = tuple(
        ModelPart(kind, layer, sum(m.parameters for m in matrices), tuple(matrices))
        for (kind, layer), matrices in found.items()
    )
    total = sum(part.parameters for part in parts)
    kind = lm.kind
    stored = {p.data_ptr(): p.numel() for p in lm.model.state_dict().values()}
    stored |= {module.packed.data_ptr(): module.n_out * module.n_in for _, module in packed_modules(lm.model)}
    kinds = dict.fromkeys(part.kind for part in parts)
    shares = {one: sum(p.parameters for p in parts if p.kind == one) / total for one in kinds}
    receipt = Receipt(
        "lm.n_parameters",
        "sum of the parts - the state dict",
        sum(stored.values()) - total,
    )
    config, dtype = lm.model.config, str(dtype_of(lm.model)).removeprefix("torch.")
    if isinstance(config, RecurrentConfig):
        return Anatomy(
            kind, config.cell, config.target_vocab_size, config.d_model, None, None, False, dtype, (), (), parts,
            shares, total, UNAVAILABLE[kind], receipt,
        )  # fmt: skip
    layers = describe_layers(config)
    encoder = () if not isinstance(config, ModelConfig) or config.encoder is None else describe_layers(config.encoder)
    return Anatomy(
        kind, config.family, config.vocab_size, config.d_model, config.context_length,
        config.positions or ("rotary" if any(layer.rotary for layer in layers) else None),
        kind == "encoder" or config.tied_head, dtype, layers, encoder, parts, shares, total, UNAVAILABLE[kind],
        receipt,
    )  # fmt: skip


def describe_layers(config: ModelConfig | EncoderConfig) -> tuple[Layer, ...]:
    """Return the configuration of each block of a stack."""
    return tuple(
        Layer(
            layer.attention.n_heads, layer.attention.n_kv_heads, layer.attention.head_dim, layer.attention.window,
            layer.attention.rope is not None, layer.mlp.d_ff, layer.mlp.gated,
            None if layer.experts is None else layer.experts.n_experts, layer.parallel, layer.norm_at,
        )
        for layer in config.layers
    )  # fmt: skip


def classify_parameter(name: str) -> tuple[str, int | None]:
    """Return the (kind, layer) of the part that a parameter belongs to."""
    first, _, rest = name.partition(".")
    if first in RECURRENT or rest.startswith(("weight_", "bias_")):  # recurrent cells
        return RECURRENT.get(first, first), None
    side = "encoder " if name.startswith("encoder.") else ""
    words = name.removeprefix("encoder.").split(".")
    layer = int(words.pop(1)) if words[0] == "blocks" else None
    words = words[1:] if layer is not None else words
    if "norm" in words[0]:
        return side + "norms", layer
    return side + {"embed": "embedding", "head": "head", "positions": "positions", **KINDS}.get(
        words[0], words[0]
    ), layer


class _Clock:
    """A tap that records the time at which each part of a forward pass ends."""

    def __init__(self):
        self.at: list[tuple[str, float]] = []

    def wants(self, name: str) -> bool:
        return name.endswith(("embed.out", "attn.add", "cross.add", "resid_post", "final.norm", "final.logits"))

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if value.is_cuda:
            torch.cuda.synchronize()
        self.at.append((name, time.perf_counter()))
        return value


@torch.inference_mode()
def times(t: Trace, *, rounds: int = 3) -> Times:
    """The time that each part of a forward pass over this text takes: the median of `rounds` forward passes."""
    check_number("rounds", rounds, 1, 20)
    ids = torch.tensor([t.ids], device=device_of(t.model))
    runs: list[dict[str, float]] = []
    for _ in range(rounds):
        clock, before = _Clock(), time.perf_counter()
        start = before
        t.model(ids, Step.of(ids, tap=clock, source=t.captured.source))  # an encoder is not timed
        parts: dict[str, float] = {}
        for name, at in clock.at:
            parts[name], before = (at - before) * 1e3, at
        runs.append(parts | {"total": (before - start) * 1e3})
    median = sorted(runs, key=lambda run: run["total"])[len(runs) // 2]
    blocks = range(t.config.n_layers)
    attention = tuple(median[f"blocks.{i}.attn.add"] + median.get(f"blocks.{i}.cross.add", 0.0) for i in blocks)
    rest = tuple(median[f"blocks.{i}.resid_post"] for i in blocks)
    head = median["final.norm"] + median["final.logits"]
    every = [median["embed.out"], *attention, *rest, head]
    receipt = Receipt("t.times()", "sum of the parts - the forward pass, in ms", abs(sum(every) - median["total"]))
    return Times(len(t.ids), median["embed.out"], attention, rest, head, median["total"], receipt)

"""The loss of a batch of rows, and of a held-out text: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig
from glassformer.kernels.attention import ATTENTION, choose_attention
from glassformer.kernels.cross_entropy import next_token_loss
from glassformer.nn.attend import Attend
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step
from glassformer.training.data.packing import PackedBatch
from glassformer.training.run.distributed import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text, or of pairs. loss: nats per counted token. bits_per_byte: None where no bytes are
    known. exact: the share (0 to 1) of pairs whose target it writes exactly; None where it was not asked to write.
    """

    loss: float
    tokens: int
    bytes: float
    exact: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Sum of nats / ln 2 / UTF-8 bytes: comparable between tokenizers."""
        return self.loss * self.tokens / math.log(2) / self.bytes if self.bytes else None


@dataclass(frozen=True)
class Compute:
    """How rows go through a model: on which device, in which dtype."""

    device: torch.device
    dtype: torch.dtype

    def attention_for(self, config: ModelConfig | EncoderConfig, length: int) -> Attend:
        """Return the fastest attention for training on sequences of `length` tokens."""
        return ATTENTION[choose_attention(config, self.device, self.dtype, "training", length).value]

    def autocast(self) -> torch.autocast:
        """Products in this dtype, the rest in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def loss(self, model: Decoder, rows: PackedBatch) -> Tensor:
        """Sum over counted targets of -log p(target), in nats; float32."""
        if self.device.type != "cpu":
            rows = rows.to(self.device, non_blocking=True)
        plain = rows.documents is None  # then every row counts positions from 0 alike
        positions = rows.positions[:1] if plain else rows.positions
        step = Step(positions, attend=self.attention_for(model.config, rows.ids.shape[1]), documents=rows.documents)
        with self.autocast():
            return next_token_loss(model, rows.ids, rows.targets, step, self.dtype)


@torch.no_grad()
def evaluate(
    model: Decoder, batches: Iterable[PackedBatch], compute: Compute, world: ProcessGroup = SINGLE_PROCESS
) -> Evaluation:
    """The mean loss over all counted targets of `batches`; under torchrun each process brings its own batches."""
    nats, tokens, size = 0.0, 0, 0.0
    for rows in batches:
        nats += compute.loss(model, rows).item()
        tokens += rows.tokens
        size += rows.bytes
    place = compute.device if world.size > 1 else "cpu"  # nccl sums only what lies on a GPU
    total, count, size = world.all_reduce(
        torch.tensor([nats, tokens, size], dtype=torch.float64, device=place)
    ).tolist()
    return Evaluation(total / max(1.0, count), int(count), size)

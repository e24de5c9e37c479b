"""The loss of a batch of packed sequences, and the evaluation of held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig
from glassformer.errors import GlassformerError
from glassformer.kernels.attention import ATTENTION, choose_attention
from glassformer.kernels.cross_entropy import next_token_loss
from glassformer.nn.attend import Attend
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step
from glassformer.training.data.packing import PackedBatch
from glassformer.training.run.distributed import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    loss: nats per counted token. bytes: UTF-8 bytes of the counted text; 0 where they are not known.
    exact: the fraction of examples decoded to exactly their target; None where none is decoded.
    unknown: counted tokens that are the tokenizer's unknown token, which stands for any text.
    """

    loss: float
    tokens: int
    bytes: float
    exact: float | None = None
    unknown: int = 0

    def __post_init__(self):
        if not math.isfinite(self.loss):
            raise GlassformerError(
                f"the loss of the evaluation is {self.loss}: the weights are damaged, or too large for their dtype"
            )

    @property
    def unknown_share(self) -> float | None:
        """The fraction of unknown tokens; None where there are none."""
        return self.unknown / self.tokens if self.unknown else None

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Total nats / ln 2 / UTF-8 bytes, which is comparable between tokenizers.

        None without bytes, and with unknown tokens: their text is not predicted.
        """
        return self.loss * self.tokens / math.log(2) / self.bytes if self.bytes and not self.unknown else None


@dataclass(frozen=True)
class Compute:
    """The device and dtype of forward passes."""

    device: torch.device
    dtype: torch.dtype

    def attention_for(self, config: ModelConfig | EncoderConfig, length: int) -> Attend:
        """Return the fastest attention for training on sequences of `length` tokens."""
        return ATTENTION[choose_attention(config, self.device, self.dtype, "training", length).value]

    def autocast(self) -> torch.autocast:
        """Return the context that computes matrix products in this dtype and the rest in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def loss(self, model: Decoder, batch: PackedBatch) -> Tensor:
        """Return the sum over counted targets of -log p(target), in nats, in float32."""
        if self.device.type != "cpu":
            batch = batch.to(self.device, non_blocking=True)
        # Without documents every sequence has the positions 0, 1, 2, ...
        positions = batch.positions[:1] if batch.documents is None else batch.positions
        attend = self.attention_for(model.config, batch.ids.shape[1])
        step = Step(positions, attend=attend, documents=batch.documents)
        with self.autocast():
            return next_token_loss(model, batch.ids, batch.targets, step, self.dtype)


@torch.no_grad()
def evaluate(
    model: Decoder,
    batches: Iterable[PackedBatch],
    compute: Compute,
    world: ProcessGroup = SINGLE_PROCESS,
    unk_id: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Return the mean loss over all counted targets of `batches`; each process gives its own batches.

    unk_id: the tokenizer's unknown token, which is counted.
    progress: called after each batch with the number of counted tokens so far.
    """
    nats, tokens, n_bytes, unknown = 0.0, 0, 0.0, 0
    for batch in batches:
        nats += compute.loss(model, batch).item()
        tokens += batch.tokens
        n_bytes += batch.bytes
        unknown += 0 if unk_id is None else int((batch.targets == unk_id).sum())
        if progress is not None:
            progress(tokens)
    device = compute.device if world.size > 1 else "cpu"  # nccl sums only tensors on a GPU
    values = torch.tensor([nats, tokens, n_bytes, unknown], dtype=torch.float64, device=device)
    total, count, size, n_unknown = world.all_reduce(values).tolist()
    return Evaluation(total / max(1.0, count), int(count), size, unknown=int(n_unknown))

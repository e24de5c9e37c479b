"""What is being trained: all that a run's steps, checkpoints and metrics need not know of it.

task       a batch                  its loss                       an evaluation
lm         packed rows of text      of each next token             the loss of held-out text
seq2seq    pairs of like lengths    of each token of the targets   the loss of held-out pairs, and how many of them
                                                                   are written as they should be
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from glassformer.training.tasks.evaluate import Compute, Evaluation


@runtime_checkable
class Batch(Protocol):
    """This process's share of a micro-batch. tokens: how many targets are counted."""

    @property
    def tokens(self) -> int: ...


@runtime_checkable
class Loader(Protocol):
    """Batches without end, and where among them it stands, as JSON."""

    def next(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Task(Protocol):
    """One process's part in training a model: made from what `prepare` has put into the run's folder.

    fingerprint: of the prepared data. train_tokens, held_out_tokens: in them. batch_tokens: in a micro-batch, about.
    matrices: [out, in] of the model's matrices, and how many there are. flops_per_token: floating-point operations of
    their products in a training step, for each counted token.
    """

    compute: Compute
    fingerprint: str
    train_tokens: int
    held_out_tokens: int
    batch_tokens: int
    matrices: Counter[tuple[int, int]]
    flops_per_token: float

    @property
    def model(self) -> nn.Module: ...

    @property
    def loader(self) -> Loader: ...

    def steps_for(self, tokens: int, /) -> int:
        """How many steps from the run's beginning have so many targets, rounded up."""
        ...

    def loss(self, batch: Any, /) -> Tensor:
        """The sum of nats over a batch's counted targets, to go back from."""
        ...

    def evaluate(self) -> Evaluation | None:
        """What the model makes of what is held out, by all processes together; None where nothing is."""
        ...

    def sample(self) -> str:
        """Something that the model writes, the same for the same weights; a person reads it."""
        ...

    def save(self, folder: Path, /) -> None:
        """Write the model's folder, from which it can be used and gone on with."""
        ...

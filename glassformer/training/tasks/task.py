"""The interface between a training run and its task.

task       a batch                        the loss                     an evaluation
lm         packed sequences of text       of each next token           the loss of held-out text
seq2seq    examples of similar lengths    of each token of a target    the loss of held-out examples, and how many are
                                                                       decoded to exactly their target
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from glassformer.training.config import TrainConfig
from glassformer.training.run.metrics import Reporter
from glassformer.training.tasks.evaluate import Compute, Evaluation


@runtime_checkable
class Batch(Protocol):
    """This process's share of a micro-batch. tokens: the number of counted targets."""

    @property
    def tokens(self) -> int: ...


@runtime_checkable
class Loader(Protocol):
    """An endless stream of batches, whose position is saved as JSON."""

    def next(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Task(Protocol):
    """One process's part in training a model, created from the data that `prepare` wrote into the run folder.

    fingerprint: of the prepared data. train_tokens, held_out_tokens: in that data. batch_tokens: in a micro-batch,
    approximately. matrices: [out, in] of the model's matrices with their counts. flops_per_token: floating-point
    operations of their products in a training step per counted token.
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

    def set_batch(self, batch: int, /) -> None:
        """Start the loader again with another number of sequences or examples."""
        ...

    @staticmethod
    def check(config: TrainConfig, documents: Any, held_out: Any, /) -> None:
        """Check a new run before anything is read, trained or written; the data replaces that of the config."""
        ...

    @staticmethod
    def prepare(config: TrainConfig, documents: Any, held_out: Any, reporter: Reporter, /) -> None:
        """Write the tokenizer and the tokenized data into the run folder."""
        ...

    @staticmethod
    def verify(folder: Path, /) -> None:
        """Compare the prepared data of a run with its checksums. Raises DataError."""
        ...

    def steps_for(self, tokens: int, /) -> int:
        """Return how many steps from the start of the run have that many targets, rounded up."""
        ...

    def loss(self, batch: Any, /) -> Tensor:
        """Return the loss of a batch, summed in nats over its counted targets."""
        ...

    def evaluate(self) -> Evaluation | None:
        """Evaluate on the held-out data of all processes; None where there is none."""
        ...

    def sample(self) -> str:
        """Return a generated text, which depends on the weights alone."""
        ...

    def save(self, folder: Path, /) -> None:
        """Save the model, to be used or trained further."""
        ...

"""Recurrent encoder-decoders, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.config.checks import require


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
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.cell in ("gru", "lstm"), f"cell must be 'gru' or 'lstm', got {self.cell!r}")
        known = (None, "additive", "dot", "general")
        require(self.attention in known, f"attention must be one of {known}, got {self.attention!r}")
        require(
            not self.bidirectional or self.d_hidden % 2 == 0,
            f"each way of a bidirectional encoder has half the state: d_hidden must be even, got {self.d_hidden}",
        )
        require(
            not self.input_feeding or self.attention in ("dot", "general"),
            f"input_feeding goes with attention 'dot' or 'general', got attention {self.attention!r}",
        )
        require(
            not self.shared_embedding or self.source_vocab_size == self.target_vocab_size,
            "a shared embedding needs one vocabulary, got source_vocab_size "
            f"{self.source_vocab_size} and target_vocab_size {self.target_vocab_size}",
        )

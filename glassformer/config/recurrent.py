"""Configuration of recurrent encoder-decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.config.checks import require


@dataclass(frozen=True)
class RecurrentConfig:
    """A recurrent encoder-decoder: GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997) on both sides.

    `d_model` is the width of the embeddings, `d_hidden` that of a state; in a bidirectional encoder each direction has
    half of it. `attention` None: the decoder gets the encoder's last state only (Sutskever et al. 2014); "additive":
    Bahdanau et al. 2015; "dot" and "general": Luong et al. 2015, whose `input_feeding` appends the previous hidden
    vector to the cell's input. `shared_embedding`: source and target tokens share one table.
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
            f"d_hidden must be even with a bidirectional encoder, got {self.d_hidden}",
        )
        require(
            not self.input_feeding or self.attention in ("dot", "general"),
            f"input_feeding requires attention 'dot' or 'general', got attention {self.attention!r}",
        )
        require(
            not self.shared_embedding or self.source_vocab_size == self.target_vocab_size,
            "shared_embedding requires vocabularies of the same size, got source_vocab_size "
            f"{self.source_vocab_size} and target_vocab_size {self.target_vocab_size}",
        )

"""Configuration of encoder-only models."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.config.checks import require
from glassformer.config.mlp import Activation
from glassformer.config.model import EncoderConfig
from glassformer.config.norm import NormConfig


@dataclass(frozen=True)
class MaskedHeadConfig:
    """The head of a masked language model: norm(act(dense(x))) times the embedding's table, plus a bias per token."""

    activation: Activation
    norm: NormConfig


@dataclass(frozen=True)
class TextEncoderConfig(EncoderConfig):
    """An encoder-only model (Devlin et al. 2019).

    `family` names the module in `families/` that saves it. `n_token_types`: one learned vector per token type (first or
    second text) is added to the embedding; 0 is none. `pooler`: tanh(dense(x)) of the first state, the input of text
    classification heads. `head`: predicts masked tokens. `next_sentence`: two logits from the pooler: the second text
    follows the first, or not.
    """

    family: str = ""
    n_token_types: int = 0
    pooler: bool = False
    head: MaskedHeadConfig | None = None
    next_sentence: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(self.n_token_types >= 0, f"n_token_types must be at least 0, got {self.n_token_types}")
        require(self.pooler or not self.next_sentence, "next_sentence requires a pooler, got pooler False")

"""Encoder-only models, as frozen data."""

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
    """An encoder that stands by itself (Devlin et al. 2019).

    `family` names the file in `families/` whose config.json and tensor names it is saved under. `n_token_types`: a
    learned vector for each type of tokens (the first text of a pair, the second) is added to the embedding; 0 is none.
    `pooler`: tanh(dense(x)) of the first state, which heads of whole texts read. `head`: what scores the tokens that
    may stand in a hidden place. `next_sentence`: two scores of what the pooler makes, that the second text of a pair
    follows the first, and that it does not.
    """

    family: str = ""
    n_token_types: int = 0
    pooler: bool = False
    head: MaskedHeadConfig | None = None
    next_sentence: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(self.n_token_types >= 0, f"n_token_types must be at least 0, got {self.n_token_types}")
        require(
            self.pooler or not self.next_sentence, "the head next_sentence reads what a pooler makes: there is none"
        )

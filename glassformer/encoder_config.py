"""What a model is that reads a text for its own sake, as frozen data; and how its states become one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from glassformer.config import Activation, EncoderConfig, NormConfig
from glassformer.errors import ConfigError

Pool = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Squash = Literal["tanh", "identity", "relu", "gelu", "sigmoid", "silu"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


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
        _require(self.n_token_types >= 0, f"n_token_types must be at least 0, got {self.n_token_types}")
        _require(
            self.pooler or not self.next_sentence, "the head next_sentence reads what a pooler makes: there is none"
        )


@dataclass(frozen=True)
class DenseConfig:
    """A layer behind pooling: act(W x + b); `residual`: + x, through a matrix of its own where the sizes differ."""

    d_in: int
    d_out: int
    bias: bool = True
    activation: Squash = "tanh"
    residual: bool = False

    def __post_init__(self):
        _require(self.d_in >= 1 and self.d_out >= 1, f"sizes must be at least 1, got {self.d_in} and {self.d_out}")
        known = get_args(Squash)
        _require(self.activation in known, f"activation must be one of {', '.join(known)}, got {self.activation!r}")


@dataclass(frozen=True)
class SentenceConfig:
    """How the states of a text's tokens become one vector (Reimers & Gurevych 2019).

    `pools` are laid side by side. `after`: what follows, in order: dense layers, and "normalize", to length 1.
    `with_prompt`: whether a prompt's tokens are pooled too. `max_tokens`: longer texts are refused or cut. `lowercase`:
    before the tokenizer sees a text. `prompts` are put before a text, by name; `prompt` names the one that is put there
    when none is named. `dimensions`: so many of the numbers are kept. `similarity`: what the vectors were trained for.
    """

    pools: tuple[Pool, ...] = ("mean",)
    after: tuple[DenseConfig | Literal["normalize"], ...] = ()
    with_prompt: bool = True
    max_tokens: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    dimensions: int | None = None
    similarity: Similarity = "cosine"

    def __post_init__(self):
        known = get_args(Pool)
        ok = len(self.pools) > 0 and set(self.pools) <= set(known)
        _require(ok, f"pools must be one or more of {', '.join(known)}, got {self.pools}")
        for name in ("max_tokens", "dimensions"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        known = get_args(Similarity)
        _require(self.similarity in known, f"similarity must be one of {', '.join(known)}, got {self.similarity!r}")
        _require(
            self.prompt is None or self.prompt in self.prompts,
            f"the prompt {self.prompt!r} is none of {', '.join(self.prompts) or 'none'}",
        )

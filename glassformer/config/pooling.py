"""Configuration of sentence embeddings: pooling and the layers after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from glassformer.config.checks import require

Pool = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
DenseActivation = Literal["tanh", "identity", "relu", "gelu", "sigmoid", "silu"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]


@dataclass(frozen=True)
class DenseConfig:
    """A dense layer after pooling: act(W x + b); `residual`: plus x, projected if the sizes differ."""

    d_in: int
    d_out: int
    bias: bool = True
    activation: DenseActivation = "tanh"
    residual: bool = False

    def __post_init__(self):
        require(self.d_in >= 1 and self.d_out >= 1, f"sizes must be at least 1, got {self.d_in} and {self.d_out}")
        known = get_args(DenseActivation)
        require(self.activation in known, f"activation must be one of {', '.join(known)}, got {self.activation!r}")


@dataclass(frozen=True)
class PoolingConfig:
    """How the states of a text's tokens become one vector (Reimers & Gurevych 2019).

    `pools` are concatenated. `after`: dense layers and "normalize" (to length 1), in order. `with_prompt`: the prompt's
    tokens are pooled too. `max_tokens`: longer texts are rejected or truncated. `lowercase`: texts are lowercased
    before tokenization. `prompts`: prefixes by name; `prompt` names the default. `dimensions`: the number of leading
    components of the vector that are returned. `similarity`: the measure that the model was trained for.
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
        require(ok, f"pools must be one or more of {', '.join(known)}, got {self.pools}")
        for name in ("max_tokens", "dimensions"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        known = get_args(Similarity)
        require(self.similarity in known, f"similarity must be one of {', '.join(known)}, got {self.similarity!r}")
        require(
            self.prompt is None or self.prompt in self.prompts,
            f"prompt must be one of {', '.join(self.prompts) or 'none'}, got {self.prompt!r}",
        )

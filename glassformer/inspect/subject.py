"""What can be looked into: a model with its tokenizer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from glassformer.config import ModelConfig
from glassformer.nn.model import Decoder
from glassformer.text.tokenizer import Tokenizer


@runtime_checkable
class Subject(Protocol):
    """A `LanguageModel`, as far as views need one."""

    model: Decoder
    tokenizer: Tokenizer | None
    source: str

    @property
    def config(self) -> ModelConfig: ...

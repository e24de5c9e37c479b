"""Glassformer: a whole Transformer language model whose every number can be seen.

    import glassformer
    lm = glassformer.load("stories")
    print(lm.generate("Once", max_tokens=60).text)

Public names are imported when they are first used: importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassformer.config import ModelConfig
    from glassformer.embedder import Embedder, load_embedder
    from glassformer.families.shape import PRESETS, ShapeConfig
    from glassformer.lm import LanguageModel, load
    from glassformer.text.tokenizer import Tokenizer
    from glassformer.text.train import train_tokenizer
    from glassformer.training.loop import train
    from glassformer.training.settings import TrainConfig
    from glassformer.translator import Translator, load_translator

_HOME = {
    "Embedder": "embedder",
    "LanguageModel": "lm",
    "ModelConfig": "config",
    "PRESETS": "families.shape",
    "ShapeConfig": "families.shape",
    "Tokenizer": "text.tokenizer",
    "TrainConfig": "training.settings",
    "Translator": "translator",
    "load": "lm",
    "load_embedder": "embedder",
    "load_translator": "translator",
    "train": "training.loop",
    "train_tokenizer": "text.train",
}

__all__ = [
    "PRESETS",
    "Embedder",
    "LanguageModel",
    "ModelConfig",
    "ShapeConfig",
    "Tokenizer",
    "TrainConfig",
    "Translator",
    "load",
    "load_embedder",
    "load_translator",
    "train",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'glassformer' has no attribute {name!r}")
    return getattr(import_module(f"glassformer.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Glassformer: Transformer language models whose every activation can be inspected.

    import glassformer
    lm = glassformer.load("stories")
    print(lm.generate("Once", max_tokens=60).text)

Public names are imported at first use: importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassformer.config import ModelConfig
    from glassformer.families.common.shape import PRESETS, ShapeConfig
    from glassformer.models.embedder import Embedder
    from glassformer.models.language_model import LanguageModel
    from glassformer.models.load import load
    from glassformer.models.translator import Translator
    from glassformer.text.files.load import load_tokenizer
    from glassformer.text.tokenizer import Tokenizer
    from glassformer.text.train import train_tokenizer
    from glassformer.training.config import LanguageModelTaskConfig, Seq2SeqTaskConfig, TrainConfig
    from glassformer.training.data.read_options import ReadOptions
    from glassformer.training.run.train import train

_HOME = {
    "Embedder": "models.embedder",
    "LanguageModel": "models.language_model",
    "LanguageModelTaskConfig": "training.config",
    "ModelConfig": "config",
    "PRESETS": "families.common.shape",
    "ReadOptions": "training.data.read_options",
    "Seq2SeqTaskConfig": "training.config",
    "ShapeConfig": "families.common.shape",
    "Tokenizer": "text.tokenizer",
    "TrainConfig": "training.config",
    "Translator": "models.translator",
    "load": "models.load",
    "load_tokenizer": "text.files.load",
    "train": "training.run.train",
    "train_tokenizer": "text.train",
}

__all__ = [
    "PRESETS",
    "Embedder",
    "LanguageModel",
    "LanguageModelTaskConfig",
    "ModelConfig",
    "ReadOptions",
    "Seq2SeqTaskConfig",
    "ShapeConfig",
    "Tokenizer",
    "TrainConfig",
    "Translator",
    "load",
    "load_tokenizer",
    "train",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'glassformer' has no attribute {name!r}")
    return getattr(import_module(f"glassformer.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

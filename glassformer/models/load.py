"""Load a model of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glassformer.formats import find_model, open_checkpoint
from glassformer.kernels.placement import Quantize
from glassformer.models.embedder import Embedder
from glassformer.models.language_model import LanguageModel
from glassformer.models.translator import Translator

AnyTextModel = LanguageModel | Translator | Embedder


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize | None = None,
    ignore_keys: Sequence[str] = (),
    offline: bool = False,
) -> AnyTextModel:
    """Load a model as a `LanguageModel`, `Translator` or `Embedder`, depending on its configuration.

    If the class is known, use `LanguageModel.load`, `Translator.load` or `Embedder.load`, which check it and have a
    precise return type. Arguments and errors: see `TextModel.load`.
    """
    checkpoint = open_checkpoint(find_model(path, offline=offline), tuple(ignore_keys))
    (model_class,) = (one for one in (LanguageModel, Translator, Embedder) if checkpoint.kind in one.kinds)
    return model_class.from_checkpoint(checkpoint, device=device, dtype=dtype, quantize=quantize)

"""What the page reads first with a model that continues no story: a text of the kind that it was made for."""

from __future__ import annotations

from pathlib import Path

from glassformer.errors import GlassformerError
from glassformer.models.embedder import Embedder
from glassformer.models.language_model import LanguageModel
from glassformer.models.translator import Translator

SENTENCE = "The cat sat on the mat because it was tired."


def opening(lm: LanguageModel | Translator | Embedder) -> str | None:
    """What a translator's own run translated as it trained; elsewhere a plain sentence.

    None for a language model: any text is of its kind.
    """
    if isinstance(lm, LanguageModel):
        return None
    return (isinstance(lm, Translator) and _sampled(lm.source)) or SENTENCE


def _sampled(source: str) -> str | None:
    """The prompt that the run of this checkpoint sampled from, if it lies in one and did."""
    from glassformer.training.run.run_file import RUN_FILE, RunFile

    for folder in Path(source).parents[:2] if source else ():
        if (folder / RUN_FILE).is_file():
            try:
                return RunFile.read(folder).config.sample_prompt or None
            except GlassformerError:  # a damaged run is no reason not to serve its model
                return None
    return None

"""Choose the text on which the page opens for models that do not continue stories."""

from __future__ import annotations

from pathlib import Path

from glassformer.errors import GlassformerError
from glassformer.models.embedder import Embedder
from glassformer.models.language_model import LanguageModel
from glassformer.models.translator import Translator

SENTENCE = "The cat sat on the mat because it was tired."


def example_text(lm: LanguageModel | Translator | Embedder) -> str | None:
    """Return the sample prompt of a translator's training run, or else a plain sentence.

    None for a language model: the page has a default for it.
    """
    if isinstance(lm, LanguageModel):
        return None
    return (isinstance(lm, Translator) and _sample_prompt(lm.path)) or SENTENCE


def _sample_prompt(source: str) -> str | None:
    """Return the sample prompt of the run that contains this checkpoint, or None."""
    from glassformer.training.run.run_file import RUN_FILE, RunFile

    for folder in Path(source).parents[:2] if source else ():
        if (folder / RUN_FILE).is_file():
            try:
                return RunFile.read(folder).config.sample_prompt or None
            except GlassformerError:  # a damaged run.json must not prevent serving the model
                return None
    return None

"""What the page reads first with a model that continues no story: a text of the kind that it was made for."""

from __future__ import annotations

from pathlib import Path

from glassformer.embedder import Embedder
from glassformer.errors import GlassformerError
from glassformer.lm import LanguageModel
from glassformer.translator import Translator

SENTENCE = "The cat sat on the mat because it was tired."


def opening(lm: LanguageModel | Translator | Embedder) -> str | None:
    """What the model's own run translated as it trained; elsewhere a plain sentence, with a gap where it fills gaps.

    None for a language model: any text is of its kind.
    """
    if isinstance(lm, LanguageModel):
        return None
    if isinstance(lm, Translator):
        return _sampled(lm.source) or SENTENCE
    mask = None if lm.tokenizer is None else lm.tokenizer.mask_id
    if mask is None or lm.tokenizer is None:
        return SENTENCE
    return SENTENCE.replace("mat", lm.tokenizer.token_bytes(mask).decode("utf-8", "replace"))


def _sampled(source: str) -> str | None:
    """The prompt that the run of this checkpoint sampled from, if it lies in one and did."""
    from glassformer.training.runfile import RUN_FILE, RunFile

    for folder in Path(source).parents[:2] if source else ():
        if (folder / RUN_FILE).is_file():
            try:
                return RunFile.read(folder).settings.get("sample_prompt") or None
            except GlassformerError:  # a damaged run is no reason not to serve its model
                return None
    return None

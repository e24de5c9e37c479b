"""The traces that models return: a trace, its views as methods, and ways to save and present it."""

from __future__ import annotations

from glassformer.inspect.present.notebook import show
from glassformer.inspect.present.report import export_html
from glassformer.inspect.record.store import save
from glassformer.inspect.trace.blocks import BlockTrace
from glassformer.inspect.trace.recurrent import RecurrentTrace
from glassformer.inspect.trace.seq2seq import EncoderTrace, Seq2seqTrace
from glassformer.inspect.views.methods import TraceViews


class Presented(TraceViews):
    """The views of a trace as methods, and methods to save and present it."""

    save = save
    show = show
    export_html = export_html


class LanguageModelTrace(Presented, BlockTrace):
    """The trace that `LanguageModel.trace` returns."""


class EmbedderTrace(Presented, EncoderTrace):
    """The trace that `Embedder.trace` returns; also the `source` of a `TranslatorTrace`."""


class TranslatorTrace(Presented, Seq2seqTrace):
    """The trace that `Translator.trace` returns for a Transformer."""

    source: EmbedderTrace  # pyright: ignore[reportIncompatibleVariableOverride]: never set on a base class
    source_type = EmbedderTrace


class RecurrentTranslatorTrace(Presented, RecurrentTrace):
    """The trace that `Translator.trace` returns for a recurrent model."""

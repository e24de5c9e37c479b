"""A model that writes one text from another, as a person uses it: load, translate, align, save."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.atomic import write_text
from glassformer.config import ModelConfig, RecurrentConfig
from glassformer.errors import CapacityError, CheckpointError, ConfigError, RequestError, TokenizerError
from glassformer.families import family_of
from glassformer.formats import load_seq2seq, save_model
from glassformer.formats.checkpoint import open_checkpoint
from glassformer.formats.find import find_model, tokenizer_of
from glassformer.formats.generation_config import (
    CONFIG_TOKEN_KEYS,
    GENERATION_CONFIG,
    banned_token_ids,
    non_negative_int,
    read_generation_config,
    token_id,
)
from glassformer.formats.save import SHARD, GgufKind
from glassformer.generate.beam_search import BeamSearch, Hypothesis, search
from glassformer.generate.request import FinishReason, TokenConstraints, check_ids
from glassformer.generate.session import Seq2SeqModel, max_source_tokens, max_target_tokens, vocab_sizes
from glassformer.inspect.capture.points import match
from glassformer.inspect.drawing.alignment_svg import labels
from glassformer.inspect.edits.apply import EditObserver, Edits
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.present.traces import RecurrentTranslatorTrace, TranslatorTrace
from glassformer.inspect.record.seq2seq import record_recurrent, record_seq2seq
from glassformer.inspect.record.store import load as load_trace
from glassformer.inspect.sweep.sweep import Sweep, sweep
from glassformer.inspect.trace.trace import ModelKind, Trace
from glassformer.inspect.views.alignment import NONE as NO_ATTENTION
from glassformer.inspect.views.methods import ModelViews
from glassformer.kernels.describe import describe
from glassformer.kernels.placement import Choice, choose_placement
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.text.files.load import load_tokenizer
from glassformer.text.tokenizer import Tokenizer

ROWS = 128  # texts that are written at a time, of one source or of several: bounds memory


@dataclass(frozen=True)
class Target:
    """One text that a source became.

    logprob: log P(target | source), the sum over its tokens and the one that ends it (nats). score: what several are
    compared by, see `generate/beam.py`. finish: "stop" where the model ended it, "length" where it was cut off.
    """

    text: str
    ids: tuple[int, ...]
    logprob: float
    score: float
    finish: FinishReason


@dataclass(frozen=True)
class Translation:
    """What `translate` returns for one source: the `n` best targets, the best first."""

    source: str
    targets: tuple[Target, ...]

    @property
    def text(self) -> str:
        """The best target's text."""
        return self.targets[0].text


@dataclass(frozen=True, eq=False)
class TranslationAlignment:
    """Where a model looked in the source while it wrote the target.

    probs [L, H, T, S]: of each layer and head (both 1 in a recurrent model), how much of source token s was taken when
    target token t was to be written; each row sums to 1. The last target token is the one that ends the text, unless
    it goes on. error: how far what these probabilities take is from what the pass itself computed, max |P V - z|.
    end: the token that ends a text.
    """

    source_tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    probs: Float[Tensor, "L H T S"]
    error: float
    end: str

    @property
    def mean(self) -> Float[Tensor, "T S"]:
        """The mean over layers and heads."""
        return self.probs.mean((0, 1))

    @property
    def labels(self) -> tuple[list[str], list[str]]:
        """Source and target tokens such that each can be seen."""
        return labels(self.source_tokens, self.end), labels(self.target_tokens, self.end)


class Translator(ModelViews):
    """An encoder-decoder, Transformer or recurrent, and the tokenizer of both its sides.

    Sources are read as they are, or, of a family of models that read them so, with what the tokenizer puts around a
    text. A target begins after the tokenizer's bos_id (eos_id where it has none), and eos_id ends it; `special` are the
    keys of a generation_config.json that say otherwise: see `weights/special.py`. Its others are kept for whoever reads
    it next: how wide to search, and how long to write at most, `translate` is told. CheckpointError where model and
    tokenizer do not fit together, TokenizerError where no token ends a text.
    """

    choices: tuple[Choice, ...] = ()

    def __init__(
        self, model: Seq2SeqModel, tokenizer: Tokenizer, *, source: str = "", special: Mapping[str, Any] | None = None
    ):
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.writer = tokenizer.target_tokenizer()
        self.apart = self.writer.backend.vocab != tokenizer.backend.vocab
        self.kind: ModelKind = "recurrent" if isinstance(model, RecurrentEncoderDecoder) else "encoder-decoder"
        self.special = dict(special or {})
        self.bare = not family_of(model.config).adds_special_tokens
        end = token_id(self.special, "eos_token_id", source)
        end = self.writer.eos_id if end is None else end
        if end is None:
            raise TokenizerError("a translator needs a tokenizer with a token that ends a text (eos_token)")
        both = (("source", tokenizer), ("target", self.writer))
        for (side, one), size in zip(both, vocab_sizes(model), strict=True):
            if one.vocab_size > size:
                raise CheckpointError(
                    f"{source or 'translator'}: the tokenizer has {one.vocab_size} tokens, and the model's "
                    f"{side} vocabulary {size}"
                )
        begin = token_id(self.special, "decoder_start_token_id", source)
        self.end = end
        self.begin = begin if begin is not None else end if tokenizer.bos_id is None else tokenizer.bos_id
        first, last = (token_id(self.special, f"forced_{name}_token_id", source) for name in ("bos", "eos"))
        shortest, rows = (
            non_negative_int(self.special, name, source) for name in ("min_length", "no_repeat_ngram_size")
        )
        self.constraints = TokenConstraints(
            first, last, banned_token_ids(self.special, source), shortest, rows, self.writer.vocab_size
        )
        self.frame = [] if self.bare else tokenizer.encode("")

    @property
    def config(self) -> ModelConfig | RecurrentConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """A source as token ids; `special`: text such as "<extra_id_0>" becomes the token of that name.

        RequestError where it is empty, CapacityError where it is longer than the context.
        """
        ids, limit = self.tokenizer.encode(text, bare=self.bare, parse_special=special), max_source_tokens(self.model)
        if ids == self.frame:
            raise RequestError("there is nothing to translate: the text is empty", param="text")
        if limit is not None and len(ids) > limit:
            raise CapacityError(f"the text has {len(ids)} tokens, and the model reads at most {limit}: give less of it")
        return ids

    def translate(
        self,
        texts: str | Sequence[str],
        *,
        beam: int = 1,
        n: int = 1,
        max_tokens: int | None = None,
        length_penalty: float = 0.6,
        special: bool = False,
        edit: Sequence[Edit] = (),
    ) -> list[Translation]:
        """What the model writes from each text: one `Translation` for each, in their order (a list for one text too).

        beam: how many texts to follow at a time; 1 takes the likeliest token, always. n: how many of the best to give,
        different in their tokens. max_tokens: of a target, with the one that ends it. length_penalty: alpha of Wu et
        al. 2016, equation 14. special: control tokens are read out of the texts ("<mask>", "<extra_id_0>"), and seen in
        what is written. edit: changes to what flows through the model meanwhile, of every text, see `inspect/edit.py`.
        RequestError for an option out of range or an empty text, CapacityError where a text or
        `max_tokens` is longer than the context.
        """
        how = BeamSearch(beam, n, max_tokens, length_penalty)
        texts = [texts] if isinstance(texts, str) else list(texts)
        sources = [self._numbered(i, text, len(texts), special, edit, max_tokens) for i, text in enumerate(texts)]
        order = sorted(range(len(texts)), key=lambda i: len(sources[i]))  # of like length together: little padding
        found: dict[int, Translation] = {}
        width = max(1, ROWS // beam)
        for at in range(0, len(order), width):
            some = order[at : at + width]
            rows = [sources[i] for i in some]
            editor = self._editor(edit, len(rows[-1]), max_tokens)
            best = search(
                self.model, rows, how, begin=self.begin, end=self.end, constraints=self.constraints,
                observer=None if editor is None else EditObserver(editor),
            )  # fmt: skip
            for i, ones in zip(some, best, strict=True):
                found[i] = Translation(texts[i], tuple(self._target(one, special) for one in ones))
        return [found[i] for i in range(len(texts))]

    def _editor(
        self, edits: Sequence[Edit], n_source: int, max_tokens: int | None = None, given: int | None = None
    ) -> Edits | None:
        """The edits of a source and of what is written from it, or of a `given` target of so many tokens, checked."""
        length = given or max_tokens or max_target_tokens(self.model)
        return Edits(self.config, edits, [given or 1], length, n_source) if edits else None

    def _numbered(
        self, i: int, text: str, n_texts: int, special: bool, edits: Sequence[Edit], max_tokens: int | None
    ) -> list[int]:
        try:
            ids = self.encode(text, special=special)
            self._editor(edits, len(ids), max_tokens)
            return ids
        except (CapacityError, RequestError) as error:
            raise type(error)(f"text {i + 1} of {n_texts}: {error}" if n_texts > 1 else str(error)) from None

    def _target(self, one: Hypothesis, special: bool) -> Target:
        assert one.finish is not None
        text = (self.writer if self.apart else self.tokenizer).decode(one.ids, skip_special=not special)
        return Target(text, one.ids, one.logprob, one.score, one.finish)

    def align(
        self, source: str, target: str | Sequence[int], *, ended: bool = True, special: bool = False
    ) -> TranslationAlignment:
        """Where the model looks while it writes `target` (a text, or token ids) from `source`.

        ended: whether the target is whole, so that the token which ends it is written too. special: as of `translate`.
        RequestError where the model has no attention to the source; CapacityError where a side is longer than the
        context.
        """
        read, written = self.encode(source, special=special), self._target_ids(target, ended, special)
        t = self._record(read, [self.begin, *written[:-1]], written, n_prompt=len(written))
        names = [name for name in t.names() if name.endswith(("cross.probs", "rnn.probs"))]
        if not names:
            raise RequestError(NO_ATTENTION)
        values = [t[name] for name in names]  # [H, T, S] of each layer, or [T, S]
        probs = torch.stack([value.tensor.float().view(-1, *value.shape[-2:]) for value in values])
        error = max(value.error or 0.0 for value in values)
        after = self._spelled([*written, self.end], self.writer)
        return TranslationAlignment(self._spelled(read, self.tokenizer), after[:-1], probs, error, after[-1])

    def _record(
        self, source: list[int], ids: list[int], target: list[int], **how: Any
    ) -> TranslatorTrace | RecurrentTranslatorTrace:
        if isinstance(self.model, RecurrentEncoderDecoder):
            return record_recurrent(RecurrentTranslatorTrace, self, source, ids, target, **how)
        return record_seq2seq(TranslatorTrace, self, source, ids, target, **how)

    def _target_ids(self, target: str | Sequence[int], ended: bool, special: bool) -> list[int]:
        """What is to be written, with the token that ends it where it is whole."""
        if isinstance(target, str):
            ids = self.writer.encode(target, bare=True, parse_special=special)
            ids = ids if self.constraints.first is None else [self.constraints.first, *ids]
        else:
            ids = [index(token) for token in target]
        written = [*ids, self.end] if ended else ids
        check_ids("target", written, self.writer.vocab_size)
        if isinstance(self.model, EncoderDecoder) and len(written) > self.model.config.context_length:
            raise CapacityError(
                f"the target has {len(written)} tokens with the one that ends it, and the model writes at most "
                f"{self.model.config.context_length}"
            )
        return written

    def trace(
        self,
        source: str | Sequence[int],
        target: str | Sequence[int] | None = None,
        *,
        ended: bool = True,
        capture: Sequence[str] = (),
        edit: Sequence[Edit] = (),
        budget: int | None = None,
        max_tokens: int | None = None,
        special: bool = False,
        before_forward: Callable[[], None] | None = None,
    ) -> TranslatorTrace | RecurrentTranslatorTrace:
        """Every number of a source and a target inside the model: see `inspect/sourced.py`.

        target: None is what the model writes itself, the likeliest token each time, of at most `max_tokens`; `ended` as
        of `align`, `capture`, `edit` and `budget` as of `LanguageModel.trace`, `special` as of `translate`.
        before_forward: called before each pass of the writing. RequestError for a point that the model has not or an
        option without effect; CapacityError where a side is longer than the context, or what is read than the budget.
        """
        if self.apart:
            raise RequestError("a model whose two sides have vocabularies of their own is not traced: `align` shows it")
        given = isinstance(source, str)
        ids = self.encode(source, special=special) if given else [index(token) for token in source]
        check_ids("source", ids, vocab_sizes(self.model)[0])
        patterns, finish = (capture,) if isinstance(capture, str) else tuple(capture), None
        match(self.config, patterns)
        if target is None:
            how = BeamSearch(max_tokens=max_tokens)
            editor = self._editor(edit, len(ids), max_tokens)
            ((best,),) = search(
                self.model, [ids], how, begin=self.begin, end=self.end, constraints=self.constraints,
                before_forward=before_forward, observer=None if editor is None else EditObserver(editor),
            )  # fmt: skip
            finish = best.finish
            written = [*best.ids, self.end] if finish == "stop" else list(best.ids)
        elif max_tokens is not None:
            raise RequestError("max_tokens has no effect where the target is given", param="max_tokens")
        else:
            written = self._target_ids(target, ended, special)
            editor = self._editor(edit, len(ids), given=len(written))
        rows = [self.begin, *written[:-1]]
        n_prompt = 1 if target is None else len(rows)
        return self._record(
            ids, rows, written, n_prompt=n_prompt, finish=finish, capture=patterns, budget=budget, editor=editor
        )

    def sweep(self, text: str | Trace, **how: Any) -> Sweep:
        """One edit after another, of the source, what was written or what is between: iterate over it. `how`: see
        `inspect/sweep.py`. Of a text, what the model writes from it.
        """
        return sweep(self.trace(text) if isinstance(text, str) else text, **how)

    def load_trace(self, folder: str | Path) -> TranslatorTrace | RecurrentTranslatorTrace:
        """A trace that was saved, of this very model. CheckpointError where it is of another, or not whole."""
        recurrent = isinstance(self.model, RecurrentEncoderDecoder)
        return load_trace(RecurrentTranslatorTrace if recurrent else TranslatorTrace, self, folder)

    def _spelled(self, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, ...]:
        return tuple(tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids)

    def save(self, folder: str | Path) -> None:
        """Write a model folder: config, weights, tokenizer, each file whole or not at all."""
        begin = "bos_token_id" if self.bare else "decoder_start_token_id"
        special = self.special or {begin: self.begin, "eos_token_id": self.end}
        save_translator(self.model, self.tokenizer, special, folder)

    def save_gguf(self, path: str | Path, kind: GgufKind = "F16") -> None:
        """Write one GGUF file, tokenizer inside. ConfigError and TokenizerError where the format cannot say what the
        model, its tokenizer or its tokens are; it has no words for how wide to search and how long to write."""
        from glassformer.formats.gguf.metadata import write_metadata
        from glassformer.formats.gguf.save import save_gguf
        from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf

        if isinstance(self.model, RecurrentEncoderDecoder):
            raise ConfigError("a recurrent model has no GGUF form: the format has none of its tensors")
        if self.constraints != TokenConstraints(vocab_size=self.writer.vocab_size) or self.end != self.tokenizer.eos_id:
            raise ConfigError("GGUF has no words for tokens that are forced or banned, nor for another end of a text")
        said = write_metadata(self.model.config).architecture
        words = tokenizer_to_gguf(self.tokenizer, self.model.config.vocab_size)
        save_gguf(self.model, path, kind, extra=words | {f"{said}.decoder_start_token_id": self.begin})

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        return f"Translator({self.source or type(self.model).__name__}, {n / 1e6:.2f}M parameters, {self.tokenizer})"


def load_translator(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    ignore_keys: Sequence[str] = (),
    offline: bool = False,
) -> Translator:
    """A translator's model folder, a run folder (its `best` checkpoint), a GGUF file, or `owner/name[@revision]` on the
    hub.

    Beside `load`, not within it: what comes back reads a source and has other methods, and a program that loads either
    knows beforehand which it wants. Either says so where it is given the other's folder.
    CheckpointError names what is missing or does not fit; ConfigError a device or dtype that cannot be used.
    """
    found = find_model(path, offline=offline)
    folder = found.parent if found.is_file() else found
    checkpoint = open_checkpoint(found, tuple(ignore_keys))
    placement = choose_placement(device, dtype, stored=checkpoint.dtype, n_parameters=checkpoint.n_parameters)
    model = load_seq2seq(checkpoint, device=placement.device, dtype=placement.dtype)
    special = {} if checkpoint.family.rules is None else read_generation_config(found, checkpoint.metadata)
    tokenizer = tokenizer_of(found, checkpoint.metadata) if checkpoint.metadata else load_tokenizer(folder)
    if tokenizer is None:
        raise CheckpointError(f"{found} has no tokenizer, and a translator reads texts")
    translator = Translator(model, tokenizer, source=str(found), special=special)
    translator.choices = describe(model.config, placement)
    return translator


def save_translator(
    model: Seq2SeqModel,
    tokenizer: Tokenizer | None,
    special: Mapping[str, Any],
    folder: str | Path,
    *,
    shard: int = SHARD,
) -> None:
    """Write a model folder; one that other tools open has `special` as its generation_config.json.

    `shard` as of `save_model`.
    """
    save_model(model, folder, extra={name: special[name] for name in special if name in CONFIG_TOKEN_KEYS}, shard=shard)
    if tokenizer is not None:
        tokenizer.save(folder)
    if family_of(model.config).rules is not None:
        write_text(Path(folder) / GENERATION_CONFIG, json.dumps(dict(special), indent=2) + "\n")

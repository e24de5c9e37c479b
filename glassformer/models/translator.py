"""A model that generates one text from another: translate, align, trace, save."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.atomic import write_text
from glassformer.config import ModelConfig, RecurrentConfig
from glassformer.errors import CapacityError, CheckpointError, ConfigError, RequestError, TokenizerError
from glassformer.families import family_of
from glassformer.formats import Checkpoint, ModelKind, load_seq2seq, save_model
from glassformer.formats.generation_config import (
    CONFIG_TOKEN_KEYS,
    GENERATION_CONFIG,
    banned_token_ids,
    non_negative_int,
    token_id,
)
from glassformer.formats.save import SHARD, GgufKind, replacing_model
from glassformer.generate.beam_search import BeamSearch, Hypothesis, search
from glassformer.generate.request import FinishReason, TokenConstraints, check_ids
from glassformer.generate.session import Seq2SeqModel, max_source_tokens, max_target_tokens, vocab_sizes
from glassformer.inspect.capture.points import match
from glassformer.inspect.drawing.alignment_svg import svg_labels
from glassformer.inspect.edits.apply import EditObserver, Edits
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.present.traces import RecurrentTranslatorTrace, TranslatorTrace
from glassformer.inspect.record.many import Progress
from glassformer.inspect.record.seq2seq import record_recurrent, record_seq2seq
from glassformer.inspect.views.alignment import NO_ATTENTION
from glassformer.kernels.placement import Placement
from glassformer.models.base import TextModel, TextOrIds, patterns, token_ids
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.text.tokenizer import Tokenizer

BATCH = 128  # sequences per batch, beams included: bounds memory


@dataclass(frozen=True)
class Target:
    """One text generated from a source.

    logprob: log P(target | source), the sum over its tokens and the end token (nats). score: ranks targets, see
    `generate/beam_search.py`. finish: "stop" if the model ended it, "length" if it was truncated.
    """

    text: str
    ids: tuple[int, ...]
    logprob: float
    score: float
    finish: FinishReason


@dataclass(frozen=True)
class Translation:
    """The result of `Translator.translate` for one source: the `n` best targets, best first."""

    source: str
    targets: tuple[Target, ...]

    @property
    def text(self) -> str:
        """The best target's text."""
        return self.targets[0].text


@dataclass(frozen=True, eq=False)
class TranslationAlignment:
    """The attention of each target token to the source, the result of `Translator.align`.

    probs [L, H, T, S]: per layer and head (both 1 in a recurrent model) the attention of target token t to source token
    s; each row sums to 1. The last target token is the end token, unless the target is incomplete. error: the largest
    difference between the head outputs from these probabilities and those of the forward pass, max |P V - z|. end: the
    text of the end token.
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
        """Source and target tokens with whitespace made visible."""
        return svg_labels(self.source_tokens, self.end), svg_labels(self.target_tokens, self.end)


class Translator(TextModel):
    """An encoder-decoder, Transformer or recurrent, and the tokenizer of its source and target.

    The model family decides whether a source gets the tokenizer's special tokens. A target begins after the tokenizer's
    bos_id (eos_id if it has none) and ends with eos_id, unless `generation_config` (the keys of a
    generation_config.json) says otherwise. Its search options (beam, length) are preserved for saving and not used:
    `translate` takes them as arguments.

    Raises:
        CheckpointError: the tokenizer has more tokens than the model.
        TokenizerError: the tokenizer has no end token.
    """

    kinds = ("encoder-decoder", "recurrent")
    model: Seq2SeqModel
    tokenizer: Tokenizer

    def __init__(
        self,
        model: Seq2SeqModel,
        tokenizer: Tokenizer,
        *,
        path: str = "",
        generation_config: Mapping[str, Any] | None = None,
    ):
        self.model, self.tokenizer, self.path = model, tokenizer, path
        recurrent = isinstance(model, RecurrentEncoderDecoder)
        self.kind: ModelKind = "recurrent" if recurrent else "encoder-decoder"
        self.trace_type = RecurrentTranslatorTrace if recurrent else TranslatorTrace
        self.target_tokenizer = tokenizer.target_tokenizer()
        self.separate_vocabularies = self.target_tokenizer.backend.vocab != tokenizer.backend.vocab
        self.generation_config = dict(generation_config or {})
        self.bare = not family_of(model.config).adds_special_tokens
        end = token_id(self.generation_config, "eos_token_id", path)
        end = self.target_tokenizer.eos_id if end is None else end
        if end is None:
            raise TokenizerError("a translator needs a tokenizer with a token that ends a text (eos_token)")
        sides = (("source", tokenizer), ("target", self.target_tokenizer))
        for (side, side_tokenizer), size in zip(sides, vocab_sizes(model), strict=True):
            if side_tokenizer.vocab_size > size:
                raise CheckpointError(
                    f"{path or 'translator'}: the tokenizer has {side_tokenizer.vocab_size} tokens, and the model's "
                    f"{side} vocabulary {size}"
                )
        begin = token_id(self.generation_config, "decoder_start_token_id", path)
        self.end_id = end
        self.begin_id = begin if begin is not None else end if tokenizer.bos_id is None else tokenizer.bos_id
        first, last = (token_id(self.generation_config, f"forced_{name}_token_id", path) for name in ("bos", "eos"))
        self.constraints = TokenConstraints(
            first,
            last,
            banned=banned_token_ids(self.generation_config, path),
            min_length=non_negative_int(self.generation_config, "min_length", path),
            no_repeat_ngram=non_negative_int(self.generation_config, "no_repeat_ngram_size", path),
            vocab_size=self.target_tokenizer.vocab_size,
        )
        self._empty = [] if self.bare else tokenizer.encode("")

    @classmethod
    def _load(cls, checkpoint: Checkpoint, placement: Placement) -> Translator:
        model = load_seq2seq(checkpoint, device=placement.device, dtype=placement.stored_dtype, packed=placement.packed)
        tokenizer = checkpoint.tokenizer()
        if tokenizer is None:
            raise CheckpointError(f"{checkpoint.path} has no tokenizer, which a translator needs")
        return cls(model, tokenizer, path=str(checkpoint.path), generation_config=checkpoint.generation_config())

    @property
    def config(self) -> ModelConfig | RecurrentConfig:
        return self.model.config

    def encode(self, text: TextOrIds, *, special: bool = False) -> list[int]:
        """Return the token ids of a source.

        special: parse control tokens in the text, such as "<extra_id_0>".

        Raises:
            RequestError: the text is empty.
            CapacityError: the text does not fit the encoder's context.
        """
        if not isinstance(text, str):
            return token_ids(text, "source")
        ids, limit = self.tokenizer.encode(text, bare=self.bare, parse_special=special), max_source_tokens(self.model)
        if ids == self._empty:
            raise RequestError("the text is empty", param="text")
        if limit is not None and len(ids) > limit:
            raise CapacityError(f"the text has {len(ids)} tokens, and the encoder's context holds {limit}: shorten it")
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
        edit: Edit | Sequence[Edit] = (),
    ) -> list[Translation]:
        """Generate targets from each text; return one `Translation` per text, in order, also for a single text.

        Args:
            beam: the beam width; 1 is greedy decoding.
            n: the number of best targets to return; no two have the same tokens.
            max_tokens: the maximal number of tokens of a target, including the end token.
            length_penalty: alpha of Wu et al. 2016, equation 14.
            special: parse control tokens in the texts ("<mask>", "<extra_id_0>"), and show generated ones.
            edit: changes to activations during generation, of every text: see `inspect/edits/edit.py`.

        Raises:
            RequestError: an option is out of range, or a text is empty.
            CapacityError: a text or `max_tokens` does not fit the context.
        """
        options = BeamSearch(beam, n, max_tokens, length_penalty)
        texts = [texts] if isinstance(texts, str) else list(texts)
        sources = []
        for i, text in enumerate(texts):
            try:
                sources.append(self.encode(text, special=special))
                self._editor(edit, len(sources[-1]), max_tokens)
            except (CapacityError, RequestError) as error:
                where = f"text {i + 1} of {len(texts)}: " if len(texts) > 1 else ""
                raise type(error)(f"{where}{error}") from None
        order = sorted(range(len(texts)), key=lambda i: len(sources[i]))  # similar lengths together: little padding
        translations: dict[int, Translation] = {}
        size = max(1, BATCH // beam)
        for begin in range(0, len(order), size):
            batch = order[begin : begin + size]
            editor = self._editor(edit, len(sources[batch[-1]]), max_tokens)
            for i, best in zip(batch, self._search([sources[i] for i in batch], options, editor), strict=True):
                translations[i] = Translation(texts[i], tuple(self._target(one, special) for one in best))
        return [translations[i] for i in range(len(texts))]

    def _search(
        self,
        sources: list[list[int]],
        options: BeamSearch,
        editor: Edits | None,
        before_forward: Callable[[], None] | None = None,
    ) -> list[list[Hypothesis]]:
        return search(
            self.model, sources, options, begin=self.begin_id, end=self.end_id, constraints=self.constraints,
            observer=None if editor is None else EditObserver(editor), before_forward=before_forward,
        )  # fmt: skip

    def _editor(
        self, edits: Edit | Sequence[Edit], n_source: int, max_tokens: int | None = None, n_target: int | None = None
    ) -> Edits | None:
        """Check the edits of a source and its target, generated or of `n_target` tokens; None if there are none."""
        length = n_target or max_tokens or max_target_tokens(self.model)
        return Edits(self.config, edits, [n_target or 1], length, n_source) if edits else None

    def _target(self, one: Hypothesis, special: bool) -> Target:
        assert one.finish is not None
        tokenizer = self.target_tokenizer if self.separate_vocabularies else self.tokenizer
        text = tokenizer.decode(one.ids, skip_special=not special)
        return Target(text, one.ids, one.logprob, one.score, one.finish)

    def align(
        self, source: str, target: TextOrIds, *, ended: bool = True, special: bool = False
    ) -> TranslationAlignment:
        """Compute the attention of each target token to the source.

        Args:
            target: a text or token ids.
            ended: whether the target is complete, so that the end token follows it.
            special: as in `translate`.

        Raises:
            RequestError: the model has no attention to the source.
            CapacityError: the source or the target does not fit the context.
        """
        ids, target_ids = self.encode(source, special=special), self._target_ids(target, ended, special)
        t = self._record(ids, [self.begin_id, *target_ids[:-1]], target_ids, n_prompt=len(target_ids))
        names = [name for name in t.names() if name.endswith(("cross.probs", "rnn.probs"))]
        if not names:
            raise RequestError(NO_ATTENTION)
        values = [t[name] for name in names]  # per layer [H, T, S], or [T, S]
        probs = torch.stack([value.tensor.float().view(-1, *value.shape[-2:]) for value in values])
        error = max(value.error or 0.0 for value in values)
        targets = _token_texts([*target_ids, self.end_id], self.target_tokenizer)
        return TranslationAlignment(_token_texts(ids, self.tokenizer), targets[:-1], probs, error, targets[-1])

    def _record(
        self, source: list[int], ids: list[int], target: list[int], **options: Any
    ) -> TranslatorTrace | RecurrentTranslatorTrace:
        if isinstance(self.model, RecurrentEncoderDecoder):
            return record_recurrent(RecurrentTranslatorTrace, self, source, ids, target, **options)
        return record_seq2seq(TranslatorTrace, self, source, ids, target, **options)

    def _target_ids(self, target: TextOrIds, ended: bool, special: bool) -> list[int]:
        """Return the ids of a target, with the end token if it is complete."""
        if isinstance(target, str):
            ids = self.target_tokenizer.encode(target, bare=True, parse_special=special)
            ids = ids if self.constraints.first is None else [self.constraints.first, *ids]
        else:
            ids = token_ids(target, "target")
        ids = [*ids, self.end_id] if ended else ids
        check_ids("target", ids, self.target_tokenizer.vocab_size)
        if isinstance(self.model, EncoderDecoder) and len(ids) > self.model.config.context_length:
            raise CapacityError(
                f"the target has {len(ids)} tokens with its end token, and the decoder's context holds "
                f"{self.model.config.context_length}: shorten it"
            )
        return ids

    def trace(
        self,
        text: TextOrIds,
        target: TextOrIds | None = None,
        *,
        capture: str | Sequence[str] = (),
        edit: Edit | Sequence[Edit] = (),
        budget: int | None = None,
        max_tokens: int | None = None,
        before_forward: Callable[[], None] | None = None,
        ended: bool = True,
        special: bool = False,
    ) -> TranslatorTrace | RecurrentTranslatorTrace:
        """Record the activations of a source and a target: see `TextModel.trace`.

        target: None generates it greedily, with at most `max_tokens` tokens. ended: as in `align`.
        special: as in `translate`.
        """
        if self.separate_vocabularies:
            raise RequestError("a model with separate vocabularies cannot be traced: use `align`")
        ids = self.encode(text, special=special) if isinstance(text, str) else self.encode(text)
        check_ids("source", ids, vocab_sizes(self.model)[0])
        match(self.config, patterns(capture))
        finish = None
        if target is None:
            editor = self._editor(edit, len(ids), max_tokens)
            ((best,),) = self._search([ids], BeamSearch(max_tokens=max_tokens), editor, before_forward)
            finish = best.finish
            target_ids = [*best.ids, self.end_id] if finish == "stop" else list(best.ids)
        elif max_tokens is not None:
            raise RequestError("max_tokens has no effect with a target: leave it out", param="max_tokens")
        else:
            target_ids = self._target_ids(target, ended, special)
            editor = self._editor(edit, len(ids), n_target=len(target_ids))
        inputs = [self.begin_id, *target_ids[:-1]]
        return self._record(
            ids, inputs, target_ids, n_prompt=1 if target is None else len(inputs), finish=finish,
            capture=patterns(capture), budget=budget, editor=editor, before_forward=before_forward,
        )  # fmt: skip

    def save(self, folder: str | Path, **options: Any) -> None:
        """Save a model folder: configuration, weights, tokenizer. Options as in `save_model`."""
        begin = "bos_token_id" if self.bare else "decoder_start_token_id"
        generation_config = self.generation_config or {begin: self.begin_id, "eos_token_id": self.end_id}
        save_translator(self.model, self.tokenizer, generation_config, folder, **options)

    def save_gguf(self, path: str | Path, kind: GgufKind = "F16", *, progress: Progress | None = None) -> None:
        """Save one GGUF file: see `TextModel.save_gguf`. GGUF has no fields for the search options."""
        from glassformer.formats.gguf.metadata import write_metadata
        from glassformer.formats.gguf.save import save_gguf
        from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf, warn_of_losses

        if isinstance(self.model, RecurrentEncoderDecoder):
            raise ConfigError("GGUF does not support recurrent models: save a model folder")
        plain = TokenConstraints(vocab_size=self.target_tokenizer.vocab_size)
        if self.constraints != plain or self.end_id != self.tokenizer.eos_id:
            raise ConfigError("GGUF has no fields for forced or banned tokens, nor for another end token")
        architecture = write_metadata(self.model.config).architecture
        metadata = tokenizer_to_gguf(self.tokenizer, self.model.config.vocab_size)
        metadata[f"{architecture}.decoder_start_token_id"] = self.begin_id
        warn_of_losses(self.tokenizer)
        save_gguf(self.model, path, kind, extra=metadata, progress=progress)


def save_translator(
    model: Seq2SeqModel,
    tokenizer: Tokenizer | None,
    generation_config: Mapping[str, Any],
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard: int = SHARD,
) -> None:
    """Save a model folder; formats of other tools get `generation_config` as generation_config.json too.

    dtype, shard: as in `save_model`.
    """
    special = {name: generation_config[name] for name in generation_config if name in CONFIG_TOKEN_KEYS}
    with replacing_model(folder) as new:
        save_model(model, new, dtype=dtype, extra=special, shard=shard)
        if tokenizer is not None:
            tokenizer.save(new)
        if family_of(model.config).rules is not None:
            write_text(new / GENERATION_CONFIG, json.dumps(dict(generation_config), indent=2) + "\n")


def _token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, ...]:
    return tuple(map(tokenizer.token_text, ids))

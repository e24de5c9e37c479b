"""A decoder-only language model: generate, stream, score, trace, save."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from glassformer.atomic import write_text
from glassformer.config import ModelConfig
from glassformer.errors import CapacityError, RequestError, TokenizerError
from glassformer.formats import Checkpoint, ModelKind, load_decoder, save_model
from glassformer.formats.save import SHARD, GgufKind, replacing_model
from glassformer.generate.decode import decode_with_pauses, token_logprobs
from glassformer.generate.prefill import chunk_size, run_chunks
from glassformer.generate.request import (
    NO_CONSTRAINTS,
    FinishReason,
    GenerationRequest,
    TokenConstraints,
    TokenEvent,
    TopTokens,
    check_ids,
)
from glassformer.generate.sampling import Sampling, check_number
from glassformer.generate.session import Pausing, check_logits, run, with_value
from glassformer.inspect.capture.capture import CapturingTap
from glassformer.inspect.edits.apply import EditObserver, Edits
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.present.traces import LanguageModelTrace
from glassformer.inspect.record.decoder import record_generation, record_text
from glassformer.inspect.record.many import Progress
from glassformer.kernels.placement import Choice, Placement
from glassformer.models.base import TextModel, TextOrIds, patterns, token_ids
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step
from glassformer.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenScore:
    """A token with its log-probability given the tokens before it (nats; None for a text's first token)."""

    id: int
    logprob: float | None
    top: TopTokens = ()


@dataclass(frozen=True)
class Score:
    """The log-probabilities of a text. `logprob` is the sum (nats) over all tokens except the first."""

    tokens: tuple[TokenScore, ...]
    logprob: float
    n_bytes: int | None

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability per predicted token."""
        loss = -self.logprob / (len(self.tokens) - 1)
        return math.inf if loss >= 700 else math.exp(loss)


@dataclass(frozen=True)
class Continuation:
    """One continuation of a prompt.

    ids, tokens: without an end token. end: the end token that ended the text; None if something else did. finish:
    "stop" at an end token or stop string, "length" at a token limit.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[TokenScore, ...]
    finish: FinishReason
    end: TokenScore | None = None


@dataclass(frozen=True)
class Generation:
    """The result of `LanguageModel.generate`.

    seed: reproduces the continuations; None at temperature 0. choices: implementations that an edit selected.
    """

    prompt_ids: tuple[int, ...]
    continuations: tuple[Continuation, ...]
    seed: int | None
    choices: tuple[Choice, ...] = ()

    @property
    def text(self) -> str:
        """The first continuation's text."""
        return self.continuations[0].text


class LanguageModel(TextModel):
    """A decoder-only model, its tokenizer, and the ids of the tokens that end a text."""

    kinds = ("decoder",)
    kind: ModelKind = "decoder"
    model: Decoder
    trace_type = LanguageModelTrace

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer | None = None, *, end_ids: Sequence[int] = (), path: str = ""
    ):
        self.model, self.tokenizer, self.path = model, tokenizer, path
        eos = [tokenizer.eos_id] if tokenizer is not None and tokenizer.eos_id is not None else []
        self.end_ids = frozenset(end_ids) | frozenset(eos)

    @classmethod
    def _load(cls, checkpoint: Checkpoint, placement: Placement) -> LanguageModel:
        tokenizer, config = checkpoint.tokenizer(), checkpoint.config
        if tokenizer is not None and isinstance(config, ModelConfig) and tokenizer.vocab_size > config.vocab_size:
            sizes = f"the tokenizer has {tokenizer.vocab_size} tokens, and the model {config.vocab_size}"
            raise TokenizerError(f"{checkpoint.path}: {sizes}")
        model = load_decoder(checkpoint, device=placement.device, dtype=placement.stored_dtype, packed=placement.packed)
        return cls(model, tokenizer, end_ids=checkpoint.end_token_ids(), path=str(checkpoint.path))

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def encode(self, text: TextOrIds) -> list[int]:
        """Return the token ids of a prompt. An empty text begins a document; control tokens are not parsed."""
        if not isinstance(text, str):
            return token_ids(text, "prompt")
        if self.tokenizer is None:
            raise RequestError("this model has no tokenizer: pass the prompt as token ids", param="prompt")
        ids = self.tokenizer.encode(text)
        start = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
        return ids or ([start] if start is not None else [])

    def generate(
        self,
        prompt: TextOrIds,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        logprobs: int | None = None,
        edit: Edit | Sequence[Edit] = (),
        min_tokens: int = 0,
        ignore_eos: bool = False,
        **sampling: Any,
    ) -> Generation:
        """Continue a prompt.

        Args:
            prompt: a text or token ids.
            max_tokens: the token limit of a continuation; None generates until an end token or the end of the context.
            stop: strings that end a continuation and are not included in it.
            n: how many continuations to generate.
            logprobs: report each token's log-probability, and this many of the most likely tokens.
            edit: changes to activations during generation: see `inspect/edits/edit.py`.
            min_tokens: no end token is generated, and no stop string has an effect, before this many tokens.
            ignore_eos: continue after end tokens, which then are part of the text.
            sampling: fields of `Sampling`: temperature, top_k, top_p, min_p, seed, ...

        Raises:
            RequestError: an option is unknown, out of range, or has no effect with another.
            CapacityError: the prompt and `max_tokens` do not fit the context.
        """
        request = self._request([prompt], max_tokens, stop, n, logprobs, sampling, min_tokens, ignore_eos)
        editor = self._editor(edit, request)
        events: list[list[TokenEvent]] = [[] for _ in range(n)]
        for event in self._decode(request, editor):
            if event is not None:
                events[event.sequence].append(event)
        choices = () if editor is None else editor.choices
        return Generation(tuple(request.prompts[0]), tuple(map(_continuation, events)), request.sampling.seed, choices)

    def stream(self, prompt: TextOrIds, **options: Any) -> Iterator[TokenEvent]:
        """Generate token by token: `generate` as an iterator of token events.

        options: those of `generate`, and `before_forward`: called before each forward pass; an exception from it stops
            generation. An invalid request raises an exception at the call, before the first event.
        """
        return self.stream_batch([prompt], **options)

    def stream_batch(self, prompts: Sequence[TextOrIds], **options: Any) -> Iterator[TokenEvent]:
        """Continue several prompts in one batch, as `stream`. The sequences p*n to p*n + n-1 continue prompt p.

        Sequence i draws with the seed plus i. The row of an edit is the index of a sequence.
        """
        return (event for event in self.stream_with_pauses(prompts, **options) if event is not None)

    def stream_with_pauses(
        self,
        prompts: Sequence[TextOrIds],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        logprobs: int | None = None,
        edit: Edit | Sequence[Edit] = (),
        before_forward: Callable[[], None] | None = None,
        min_tokens: int = 0,
        ignore_eos: bool = False,
        **sampling: Any,
    ) -> Iterator[TokenEvent | None]:
        """`stream_batch` that yields None between the forward passes of a long prompt, for other work."""
        request = self._request(prompts, max_tokens, stop, n, logprobs, sampling, min_tokens, ignore_eos)
        return self._decode(request, self._editor(edit, request), before_forward)

    def _request(
        self,
        prompts: Sequence[TextOrIds],
        max_tokens: int | None,
        stop: str | Sequence[str],
        n: int,
        logprobs: int | None,
        sampling: dict[str, Any],
        min_tokens: int = 0,
        ignore_eos: bool = False,
    ) -> GenerationRequest:
        known = {field.name for field in fields(Sampling)}
        for name in sampling.keys() - known:
            raise RequestError(f"unknown option {name!r}; known: {', '.join(sorted(known))}", param=name)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        seeded = Sampling(**sampling).seeded()
        check_number("max_tokens", max_tokens, 1, 1 << 31, optional=True)  # before it bounds min_tokens
        check_number("min_tokens", min_tokens, 0, 1 << 31 if max_tokens is None else max_tokens)
        return GenerationRequest(
            [self.encode(prompt) for prompt in prompts], max_tokens, seeded, stops, n, logprobs,
            () if ignore_eos else self.end_ids,
            constraints=TokenConstraints(min_length=min_tokens + 1) if min_tokens else NO_CONSTRAINTS,
        )  # fmt: skip

    def _decode(
        self, request: GenerationRequest, editor: Edits | None, before_forward: Callable[[], None] | None = None
    ) -> Iterator[TokenEvent | None]:
        observer = None if editor is None else EditObserver(editor)
        return decode_with_pauses(
            self.model, request, tokenizer=self.tokenizer, observer=observer, before_forward=before_forward
        )

    def _editor(self, edits: Edit | Sequence[Edit], request: GenerationRequest) -> Edits | None:
        """Check the edits of prompts and their continuations; return None if there are none."""
        if not edits:
            return None
        lengths = [len(prompt) for prompt in request.prompts for _ in range(request.n)]
        context = self.config.context_length
        length = context if request.max_tokens is None else min(context, max(lengths) + request.max_tokens)
        return Edits(self.config, edits, lengths, length)

    def _text_editor(self, edits: Edit | Sequence[Edit], ids: Sequence[int]) -> Edits | None:
        """Check the edits of a text that is not continued; return None if there are none."""
        return Edits(self.config, edits, [len(ids)], len(ids)) if edits else None

    def score(
        self,
        text: TextOrIds,
        *,
        top: int = 0,
        edit: Edit | Sequence[Edit] = (),
        before_forward: Callable[[], None] | None = None,
    ) -> Score:
        """Compute the log-probability of each token of a text, given the tokens before it.

        Args:
            text: a text or token ids.
            top: how many of the most likely tokens to report at each position.
            edit: changes to activations: see `inspect/edits/edit.py`.
            before_forward: called before the forward pass over each part of the text; an exception from it stops.

        Raises:
            CapacityError: the text does not fit the context.
            RequestError: the text has fewer than two tokens.
        """
        return run(self.score_with_pauses(text, top=top, edit=edit, before_forward=before_forward))

    @torch.inference_mode()
    def score_with_pauses(
        self,
        text: TextOrIds,
        *,
        top: int = 0,
        edit: Edit | Sequence[Edit] = (),
        before_forward: Callable[[], None] | None = None,
    ) -> Pausing[Score]:
        """`score` that yields None between the forward passes over a long text, for other work."""
        check_number("top", top, 0, 1024)
        ids, context = self.encode(text), self.config.context_length
        if len(ids) > context:
            raise CapacityError(f"the text has {len(ids)} tokens, and the model's context holds {context}")
        if len(ids) < 2:
            raise RequestError(f"scoring needs at least two tokens, and the text has {len(ids)}", param="text")
        check_ids("text", ids, self.config.vocab_size)
        batch, editor = torch.tensor([ids], device=self.device), self._text_editor(edit, ids)

        def tap(step: Step) -> CapturingTap | None:
            return None if editor is None else CapturingTap(step, (0,), editor, None)

        tokens = [TokenScore(ids[0], None)]
        size = chunk_size(self.config, len(ids), edits_scores=editor is not None and editor.edits_scores)
        for step, hidden in run_chunks(self.model, batch, tap=tap, before_forward=before_forward, size=size):
            begin = len(tokens)
            chosen = batch[0, begin : begin + hidden.shape[1]]
            if not len(chosen):  # the last token predicts none
                break
            step = step.at(step.positions[0, : len(chosen)])
            step.tap = tap(step)
            logits = check_logits(self.model.logits(hidden[0, : len(chosen)], step), editor is not None)
            scores = token_logprobs(logits, chosen, top)
            tokens += [TokenScore(id, *score) for id, score in zip(chosen.tolist(), scores, strict=True)]
            yield
        total = math.fsum(token.logprob for token in tokens if token.logprob is not None)
        return Score(tuple(tokens), total, len(text.encode()) if isinstance(text, str) else None)

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
        **options: Any,
    ) -> LanguageModelTrace:
        """Record the activations of a text, and of a continuation if `max_tokens` is given: see `TextModel.trace`.

        options: `stop` and the fields of `Sampling`, for the continuation.
        """
        if target is not None:
            raise RequestError("target has no effect on a language model: append it to the text", param="target")
        *_, last = self.trace_stream(
            text,
            capture=capture,
            edit=edit,
            budget=budget,
            max_tokens=max_tokens,
            before_forward=before_forward,
            **options,
        )
        assert isinstance(last, LanguageModelTrace)
        return last

    def trace_stream(self, text: TextOrIds, **options: Any) -> Iterator[TokenEvent | LanguageModelTrace]:
        """Yield the token events of the continuation, then the trace. An invalid request raises at the call.

        options: those of `trace`, and `logprobs` as in `generate`.
        """
        return (event for event in self.trace_with_pauses(text, **options) if event is not None)

    def trace_with_pauses(
        self,
        text: TextOrIds,
        *,
        capture: str | Sequence[str] = (),
        edit: Edit | Sequence[Edit] = (),
        budget: int | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        before_forward: Callable[[], None] | None = None,
        **sampling: Any,
    ) -> Iterator[TokenEvent | LanguageModelTrace | None]:
        """`trace_stream` that yields None between the forward passes over a long text, for other work."""
        check_number("max_tokens", max_tokens, 0, 1 << 31, optional=True)
        if not max_tokens:
            for name, value in {"stop": stop, "logprobs": logprobs, **sampling}.items():
                if value:
                    raise RequestError(f"{name} has no effect without max_tokens: no token is generated", param=name)
            ids = self.encode(text)
            editor = self._text_editor(edit, ids)
            return with_value(
                record_text(LanguageModelTrace, self, ids, patterns(capture), budget, editor, before_forward)
            )
        request = self._request([text], max_tokens, stop, 1, logprobs, sampling)
        editor = self._editor(edit, request)
        return record_generation(LanguageModelTrace, self, request, patterns(capture), budget, editor, before_forward)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, shard: int = SHARD) -> None:
        """Save a Hugging Face folder: configuration, weights, tokenizer. It replaces an older model in one step.

        Args:
            dtype: the dtype of the saved weights; None preserves the dtype of each tensor.
            shard: the maximal number of bytes of one weights file.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        special: dict[str, Any] = {}
        if self.end_ids:
            ends = sorted(self.end_ids)
            special["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        if self.tokenizer is not None and self.tokenizer.bos_id is not None:
            special["bos_token_id"] = self.tokenizer.bos_id
        with replacing_model(folder) as new:
            save_model(self.model, new, dtype=dtype, extra=special, shard=shard)
            if self.tokenizer is not None:
                self.tokenizer.save(new)
            write_text(new / "generation_config.json", json.dumps(special, indent=2) + "\n")

    def save_gguf(self, path: str | Path, kind: GgufKind = "F16", *, progress: Progress | None = None) -> None:
        """Save one GGUF file, for llama.cpp and other tools: see `TextModel.save_gguf`."""
        from glassformer.formats.gguf.save import save_gguf
        from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf, warn_of_losses

        metadata = {} if self.tokenizer is None else tokenizer_to_gguf(self.tokenizer, self.config.vocab_size)
        if self.end_ids and "tokenizer.ggml.eos_token_id" not in metadata:
            metadata["tokenizer.ggml.eos_token_id"] = min(self.end_ids)
        if self.tokenizer is not None:
            warn_of_losses(self.tokenizer)
        save_gguf(self.model, path, kind, extra=metadata, progress=progress)


def _continuation(events: list[TokenEvent]) -> Continuation:
    tokens = tuple(TokenScore(event.id, event.logprob, event.top) for event in events if event.id is not None)
    last = events[-1]
    assert last.finish is not None
    end = None if last.end_id is None else TokenScore(last.end_id, last.logprob, last.top)
    text = "".join(event.text for event in events)
    return Continuation(text, tuple(token.id for token in tokens), tokens, last.finish, end)

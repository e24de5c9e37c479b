"""A language model as a person uses it: load, generate, stream, score, save."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import index
from pathlib import Path
from typing import Any

import torch

from glassformer.atomic import write_text
from glassformer.config import ModelConfig
from glassformer.errors import CapacityError, RequestError, TokenizerError
from glassformer.formats import load_decoder, save_model
from glassformer.formats.checkpoint import open_checkpoint
from glassformer.formats.find import end_token_ids, find_model, tokenizer_of
from glassformer.formats.save import SHARD, GgufKind
from glassformer.generate.decode import decode, logprobs_of
from glassformer.generate.request import FinishReason, GenerationRequest, TokenEvent, TopTokens, check_ids
from glassformer.generate.sampling import Sampling, check_number
from glassformer.inspect.capture.capture import CapturingTap
from glassformer.inspect.edits.apply import EditObserver, Edits
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.present.traces import LanguageModelTrace
from glassformer.inspect.record.decoder import record_generation, record_text
from glassformer.inspect.record.store import load as load_trace
from glassformer.inspect.sweep.sweep import Sweep, sweep
from glassformer.inspect.trace.trace import ModelKind, Trace
from glassformer.inspect.views.methods import ModelViews
from glassformer.kernels.describe import describe
from glassformer.kernels.placement import Choice, choose_placement
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step
from glassformer.text.tokenizer import Tokenizer

SCORE_CHUNK = 512  # tokens whose logits, [512, V], are held at a time


@dataclass(frozen=True)
class TokenScore:
    """A token with its log-probability given those before it (nats; None for the first, which nothing predicts)."""

    id: int
    logprob: float | None
    top: TopTokens = ()


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text. `logprob` is the sum (nats) over the predicted tokens, all but the first."""

    tokens: tuple[TokenScore, ...]
    logprob: float
    n_bytes: int | None

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability per predicted token."""
        loss = -self.logprob / (len(self.tokens) - 1)
        return math.inf if loss >= 700 else math.exp(loss)


@dataclass(frozen=True)
class Continuation:
    """One continuation of a prompt. `finish`: "stop" at an end token or stop string, "length" where room ran out."""

    text: str
    ids: tuple[int, ...]
    tokens: tuple[TokenScore, ...]
    finish: FinishReason


@dataclass(frozen=True)
class Generation:
    """What `generate` returns: the continuations, and the seed that gives them again (None at temperature 0).

    choices: what an edit made the model do otherwise, beside what it changed.
    """

    prompt_ids: tuple[int, ...]
    continuations: tuple[Continuation, ...]
    seed: int | None
    choices: tuple[Choice, ...] = ()

    @property
    def text(self) -> str:
        """The first continuation's text."""
        return self.continuations[0].text


class LanguageModel(ModelViews):
    """A `Decoder`, its tokenizer (None: it takes token ids) and the tokens that end a text."""

    kind: ModelKind = "decoder"

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None = None,
        *,
        end_ids: Sequence[int] = (),
        source: str = "",
        choices: Sequence[Choice] = (),
    ):
        self.model, self.tokenizer, self.source, self.choices = model, tokenizer, source, tuple(choices)
        own = [tokenizer.eos_id] if tokenizer is not None and tokenizer.eos_id is not None else []
        self.end_ids = frozenset(end_ids) | frozenset(own)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """A prompt as token ids. Text never becomes a control token; an empty one begins a new document."""
        if not isinstance(prompt, str):
            try:
                return [index(token) for token in prompt]
            except TypeError:
                raise RequestError(f"a prompt is a text or token ids, got {prompt!r:.100}", param="prompt") from None
        if self.tokenizer is None:
            raise RequestError("this model has no tokenizer: give the prompt as token ids", param="prompt")
        ids = self.tokenizer.encode(prompt)
        start = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
        return ids or ([start] if start is not None else [])

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        logprobs: int | None = None,
        edit: Sequence[Edit] = (),
        **sampling: Any,
    ) -> Generation:
        """Continue a prompt. `sampling` are the fields of `Sampling`: temperature, top_k, top_p, min_p, seed, ...

        edit: changes to what flows through the model meanwhile, see `inspect/edit.py`. Raises RequestError for an
        option that is unknown, out of range or without effect beside another, and CapacityError when prompt and
        `max_tokens` do not fit the context.
        """
        request = self._request(prompt, max_tokens, stop, n, logprobs, sampling)
        editor = self._editor(edit, request)
        events: list[list[TokenEvent]] = [[] for _ in range(n)]
        for event in self._decode(request, editor):
            events[event.sequence].append(event)
        choices = () if editor is None else editor.choices
        return Generation(tuple(request.prompts[0]), tuple(map(_continuation, events)), request.sampling.seed, choices)

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        logprobs: int | None = None,
        edit: Sequence[Edit] = (),
        before_forward: Callable[[], None] | None = None,
        **sampling: Any,
    ) -> Iterator[TokenEvent]:
        """Generate token by token: `generate` as an iterator of token events.

        before_forward: called before each forward pass; what it raises stops generation there. An invalid request
        raises here, before the first event.
        """
        request = self._request(prompt, max_tokens, stop, n, logprobs, sampling)
        return self._decode(request, self._editor(edit, request), before_forward)

    def _request(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None,
        stop: str | Sequence[str],
        n: int,
        logprobs: int | None,
        sampling: dict[str, Any],
    ) -> GenerationRequest:
        known = {f.name for f in fields(Sampling)}
        for name in sampling.keys() - known:
            raise RequestError(f"unknown option {name!r}; known: {', '.join(sorted(known))}", param=name)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        seeded = Sampling(**sampling).seeded()
        return GenerationRequest([self.encode(prompt)], max_tokens, seeded, stops, n, logprobs, self.end_ids)

    def _decode(
        self, request: GenerationRequest, editor: Edits | None, before_forward: Callable[[], None] | None = None
    ) -> Iterator[TokenEvent]:
        observer = None if editor is None else EditObserver(editor)
        return decode(self.model, request, tokenizer=self.tokenizer, observer=observer, before_forward=before_forward)

    def _editor(self, edits: Sequence[Edit], request: GenerationRequest) -> Edits | None:
        """Check the edits of a prompt and its continuations; return None if there are none."""
        if not edits:
            return None
        (prompt,), context = request.prompts, self.config.context_length
        length = context if request.max_tokens is None else min(context, len(prompt) + request.max_tokens)
        return Edits(self.config, edits, [len(prompt)] * request.n, length)

    def _text_editor(self, edits: Sequence[Edit], ids: Sequence[int]) -> Edits | None:
        """Check the edits of a text that is not continued; return None if there are none."""
        return Edits(self.config, edits, [len(ids)], len(ids)) if edits else None

    @torch.inference_mode()
    def score(self, text: str | Sequence[int], *, top: int = 0, edit: Sequence[Edit] = ()) -> Score:
        """The log-probability of every token of a text, given those before it; `top` likeliest beside each.

        edit: changes to what flows through the model meanwhile, see `inspect/edit.py`.

        CapacityError when the text is longer than the context; RequestError when it has fewer than two tokens.
        """
        check_number("top", top, 0, 1024)
        ids, context = self.encode(text), self.config.context_length
        if len(ids) > context:
            raise CapacityError(f"the text has {len(ids)} tokens, and the model's context holds {context}")
        if len(ids) < 2:
            raise RequestError(f"scoring needs at least two tokens, and the text has {len(ids)}", param="text")
        check_ids("text", ids, self.config.vocab_size)
        row = torch.tensor([ids], device=self.device)
        step, editor = Step.of(row), self._text_editor(edit, ids)
        if editor is not None:
            step.tap = CapturingTap(step, (0,), editor, None)
        hidden = self.model.hidden(row, step)[0, :-1]  # [T-1, D]
        tokens = [TokenScore(ids[0], None)]
        chunks = (all.split(SCORE_CHUNK) for all in (hidden, row[0, 1:], step.positions[0, :-1]))
        for h, chosen, at in zip(*chunks, strict=True):
            step = step.at(at)
            if editor is not None:
                step.tap = CapturingTap(step, (0,), editor, None)
            reports = logprobs_of(self.model.logits(h, step), chosen, top)
            tokens += [TokenScore(id, *one) for id, one in zip(chosen.tolist(), reports, strict=True)]
        total = math.fsum(token.logprob for token in tokens if token.logprob is not None)
        return Score(tuple(tokens), total, len(text.encode()) if isinstance(text, str) else None)

    def trace(
        self,
        text: str | Sequence[int],
        *,
        capture: Sequence[str] = (),
        edit: Sequence[Edit] = (),
        budget: int | None = None,
        max_tokens: int = 0,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> LanguageModelTrace:
        """Every number of a text inside the model: see `inspect/trace.py`.

        capture: names or patterns of points ("blocks.5.attn.*") to capture, in addition to those that every trace
        captures; all others are recomputed on request. edit: changes on the way. budget: bytes that it may capture.
        max_tokens: first generate so many tokens, as `generate` does with `stop` and `sampling`.
        RequestError for a point or an option that does not exist; CapacityError where the text does not fit the
        context, or what is read the budget.
        """
        *_, last = self.trace_stream(
            text, capture=capture, edit=edit, budget=budget, max_tokens=max_tokens, stop=stop, **sampling
        )
        assert isinstance(last, LanguageModelTrace)
        return last

    def trace_stream(
        self,
        text: str | Sequence[int],
        *,
        capture: Sequence[str] = (),
        edit: Sequence[Edit] = (),
        budget: int | None = None,
        max_tokens: int = 0,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        before_forward: Callable[[], None] | None = None,
        **sampling: Any,
    ) -> Iterator[TokenEvent | LanguageModelTrace]:
        """`trace`, piece by piece as it is written; the trace comes last. A bad request raises here."""
        check_number("max_tokens", max_tokens, 0, 1 << 31)
        patterns = (capture,) if isinstance(capture, str) else tuple(capture)
        if not max_tokens:
            unused = [name for name, given in {"stop": stop, "logprobs": logprobs, **sampling}.items() if given]
            if unused:
                raise RequestError(
                    f"{unused[0]} has no effect where nothing is written: give max_tokens", param=unused[0]
                )
            ids = self.encode(text)
            return iter([record_text(LanguageModelTrace, self, ids, patterns, budget, self._text_editor(edit, ids))])
        request = self._request(text, max_tokens, stop, 1, logprobs, sampling)
        editor = self._editor(edit, request)
        return record_generation(LanguageModelTrace, self, request, patterns, budget, editor, before_forward)

    def sweep(self, text: str | Sequence[int] | Trace, **how: Any) -> Sweep:
        """One edit after another, at every head, layer or token: iterate over it. `how`: see `inspect/sweep.py`."""
        return sweep(text if isinstance(text, Trace) else self.trace(text), **how)

    def load_trace(self, folder: str | Path) -> LanguageModelTrace:
        """A trace that `Trace.save` wrote, of this very model. CheckpointError where it is of another, or not whole."""
        return load_trace(LanguageModelTrace, self, folder)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, shard: int = SHARD) -> None:
        """Write a Hugging Face folder: config, weights, tokenizer. CheckpointError where the disk is full.

        Weights as they are, or in `dtype`; in several files where they are more than `shard` bytes.
        """
        folder = Path(folder)
        special: dict[str, Any] = {}
        if self.end_ids:
            ends = sorted(self.end_ids)
            special["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        if self.tokenizer is not None and self.tokenizer.bos_id is not None:
            special["bos_token_id"] = self.tokenizer.bos_id
        save_model(self.model, folder, dtype=dtype, extra=special, shard=shard)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)
        write_text(folder / "generation_config.json", json.dumps(special, indent=2) + "\n")

    def save_gguf(self, path: str | Path, kind: GgufKind = "F16") -> None:
        """Write one GGUF file, tokenizer inside, which llama.cpp and its kin run; `kind` is how matrices are written.

        ConfigError and TokenizerError where the format cannot say what the model or its tokenizer does.
        """
        from glassformer.formats.gguf.save import save_gguf
        from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf

        words = {} if self.tokenizer is None else tokenizer_to_gguf(self.tokenizer, self.config.vocab_size)
        if self.end_ids and "tokenizer.ggml.eos_token_id" not in words:
            words["tokenizer.ggml.eos_token_id"] = min(self.end_ids)
        save_gguf(self.model, path, kind, extra=words)

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        return f"LanguageModel({self.source or self.config.family}, {n / 1e6:.2f}M parameters, {self.tokenizer})"


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    ignore_keys: Sequence[str] = (),
    offline: bool = False,
) -> LanguageModel:
    """A model folder, a GGUF or safetensors file, a run folder (its `best` checkpoint), the name of a model that ships
    with the package, or `owner/name[@revision]` on the hub (`offline`: what was downloaded before).

    CheckpointError names what is missing or does not fit; ConfigError a device or dtype that cannot be used.
    """
    found = find_model(path, offline=offline)
    checkpoint = open_checkpoint(found, tuple(ignore_keys))
    placement = choose_placement(device, dtype, stored=checkpoint.dtype, n_parameters=checkpoint.n_parameters)
    tokenizer = tokenizer_of(found, checkpoint.metadata)
    if tokenizer is not None and isinstance(checkpoint.config, ModelConfig):
        size = checkpoint.config.vocab_size
        if tokenizer.vocab_size > size:
            raise TokenizerError(f"{found}: the tokenizer has {tokenizer.vocab_size} tokens, and the model {size}")
    model = load_decoder(checkpoint, device=placement.device, dtype=placement.dtype)
    ends = end_token_ids(found, checkpoint.metadata)
    return LanguageModel(model, tokenizer, end_ids=ends, source=str(found), choices=describe(model.config, placement))


def _continuation(events: list[TokenEvent]) -> Continuation:
    tokens = tuple(TokenScore(e.id, e.logprob, e.top) for e in events if e.id is not None)
    finish = events[-1].finish
    assert finish is not None
    return Continuation("".join(e.text for e in events), tuple(t.id for t in tokens), tokens, finish)

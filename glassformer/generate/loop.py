"""The plain loop: read the prompt once, then one token at a time, through the cache.

prompts -> prefill in chunks -> logits of each row's last token -> choose -> one step -> choose -> ...
              (n continuations share one prefill)                     rows leave as they end

Where a model turns the positions of long texts by other angles (`ModelConfig.long_text`), rows are read anew as soon as
one of them becomes long.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.errors import CapacityError, CheckpointError, RequestError
from glassformer.generate.sampling import Sampling, adjust, check_number, choose
from glassformer.generate.stopping import StopStrings
from glassformer.nn.attend import Attend, attend_sdpa
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step, Tap
from glassformer.text.stream_decoder import StreamDecoder
from glassformer.text.tokenizer import Tokenizer

Top = tuple[tuple[int, float], ...]  # (token id, log-probability), the likeliest first
NO_NUMBERS = "under these edits the logits are not numbers (NaN): no token can be drawn from them"
PREFILL_CHUNK = 512  # tokens of a prompt per pass: bounds memory, and Ctrl-C is heard between passes


def go_on() -> None:
    """Before a pass that nothing stops."""


@dataclass(frozen=True)
class GenerationOptions:
    """One request beside its prompt. `max_tokens` None writes until an end or the end of the context.

    `n` continuations of each prompt, from one prefill. `logprobs`: how many of the likeliest tokens to report beside
    the chosen one's own log-probability (nats, of the model's own distribution, before any sampling stage).
    `before_pass` is called before each pass, of a prompt's chunks too: what it raises stops the work there.
    """

    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    before_pass: Callable[[], None] = field(default=go_on, compare=False)

    def __post_init__(self):
        check_number("max_tokens", self.max_tokens, 1, 1 << 31, optional=True)
        check_number("n", self.n, 1, 1024)
        check_number("logprobs", self.logprobs, 0, 1024, optional=True)
        StopStrings(self.stop)
        if self.n > 1 and self.sampling.greedy:
            raise RequestError(f"n = {self.n} continuations at temperature 0 would all be the same", param="n")


@dataclass(frozen=True)
class TokenEvent:
    """What one step adds to one continuation. `text` is certain to stay: never half a character, or half a stop string.

    `row` counts continuations: those of prompt p are p*n to p*n + n-1. `id` is None in a last piece without a token.
    """

    row: int
    id: int | None
    text: str
    logprob: float | None = None
    top: Top = ()
    finish: Literal["stop", "length"] | None = None


@runtime_checkable
class Observer(Protocol):
    """Who looks at a request's passes, or changes them: a tap for each pass."""

    whole: bool  # the last token written is read too, though nothing is predicted from it (one row)
    apart: bool  # continuations of one prompt differ before the first token is written: each reads the prompt itself
    edited: bool  # numbers may have become what no weights would make of them

    def tap(self, step: Step, rows: Sequence[int]) -> Tap | None:
        """`rows` are the numbers of the continuations that the pass's rows are of; in a shared prefill of the first."""
        ...


@dataclass
class GeneratedSequence:
    """One continuation as it grows."""

    row: int
    room: int
    generator: random.Random
    stops: StopStrings
    text: StreamDecoder | None
    ids: list[int]  # the prompt, and what was written


def write(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    tokenizer: Tokenizer | None = None,
    ends: Collection[int] = (),
    attend: Attend = attend_sdpa,
    watch: Observer | None = None,
) -> Iterator[TokenEvent]:
    """Continue each prompt; yields a `Piece` per continuation and step, in order of rows.

    A token of `ends` ends its continuation and is not part of it. Continuation r draws with the seed plus r.
    `watch` looks at each pass, or changes it; RequestError where such a change leaves no numbers to draw from.
    Raises at once, before anything is computed: CapacityError when prompt and `max_tokens` do not fit the context;
    RequestError for an empty prompt, token ids outside the vocabulary, or stop strings without a tokenizer.
    """
    if not prompts:
        raise RequestError("there is no prompt", param="prompt")
    for prompt in prompts:
        check_ids("prompt", prompt, model.config.vocab_size)
    if options.sampling.logit_bias:
        check_ids("logit_bias", options.sampling.logit_bias, model.config.vocab_size)
    if options.stop and tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this model has none", param="stop")
    rows = _rows(model, prompts, options, tokenizer)
    passes = DecodeSession(model, attend, watch, options.before_pass)
    return _write(passes, prompts, options, rows, tokenizer, ends)


def check_ids(name: str, ids: Collection[int], vocab_size: int) -> None:
    """RequestError unless there is a token id, and all are in the vocabulary."""
    if len(ids) == 0:
        raise RequestError(f"the {name} is empty: it must hold at least one token", param=name)
    bad = next((token for token in (min(ids), max(ids)) if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise RequestError(f"{name}: token id {bad} is out of range: allowed are 0 to {vocab_size - 1}", param=name)


def _write(  # not itself in inference mode: it would leak to the caller at each yield
    passes: DecodeSession,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    rows: list[GeneratedSequence],
    tokenizer: Tokenizer | None,
    ends: Collection[int],
) -> Iterator[TokenEvent]:
    logits = passes.begin(prompts, rows, options.n)
    counts = _Counts(passes.model, prompts, options) if options.sampling.counts_tokens else None
    spelled = tokenizer.vocab_size if tokenizer else None  # a padded vocabulary ends in rows that stand for no token
    while True:
        adjusted = adjust(logits, options.sampling, *(counts.of(rows) if counts else ()))[:, :spelled]
        chosen = choose(adjusted, options.sampling, [row.generator for row in rows])
        ids = chosen.tolist()
        reports = [(None, ())] * len(rows) if options.logprobs is None else report(logits, chosen, options.logprobs)
        pieces = [_piece(row, token, *rest, ends) for row, token, rest in zip(rows, ids, reports, strict=True)]
        yield from pieces
        going = [i for i, piece in enumerate(pieces) if piece.finish is None]
        if not going:
            if passes.watch is not None and passes.watch.whole and pieces[0].id is not None:
                passes.advance(rows, ids)
            return
        if len(going) < len(rows):
            passes.cache.select(going)
            rows, ids = [rows[i] for i in going], [ids[i] for i in going]
        if counts:
            counts.add(rows, ids)
        logits = passes.advance(rows, ids)


def _rows(
    model: Decoder, prompts: Sequence[Sequence[int]], options: GenerationOptions, tokenizer: Tokenizer | None
) -> list[GeneratedSequence]:
    """One for each continuation, `options.n` for each prompt."""
    context, seed = model.config.context_length, options.sampling.seeded().seed or 0
    rows: list[GeneratedSequence] = []
    for prompt in prompts:
        room = context - len(prompt)
        if room < (options.max_tokens or 1):
            asked = "" if options.max_tokens is None else f" and max_tokens {options.max_tokens}"
            raise CapacityError(
                f"a prompt of {len(prompt)} tokens{asked} does not fit: the model's context holds {context} tokens"
            )
        for _ in range(options.n):
            text, generator = _text_after(prompt, tokenizer), random.Random(seed + len(rows))
            stops = StopStrings(options.stop)
            rows.append(GeneratedSequence(len(rows), options.max_tokens or room, generator, stops, text, list(prompt)))
    return rows


def _text_after(prompt: Sequence[int], tokenizer: Tokenizer | None) -> StreamDecoder | None:
    """A decoder that goes on where the prompt ends: not at a text's first space, perhaps within a character."""
    if tokenizer is None:
        return None
    text, control = tokenizer.stream(), tokenizer.special_tokens.values()
    for token in prompt[-4:]:  # the bytes of a character are at most four
        if token not in control:
            text.push(token)
    return text


class DecodeSession:
    """The passes of one request, one after the other, through its cache."""

    cache: DenseCache

    def __init__(self, model: Decoder, attend: Attend, watch: Observer | None, before_pass: Callable[[], None]):
        self.model, self.attend, self.watch, self.before_pass = model, attend, watch, before_pass

    def begin(self, prompts: Sequence[Sequence[int]], rows: list[GeneratedSequence], n: int) -> Tensor:
        """Read the prompts; the logits [rows, V] of what comes next in each of the `n` continuations."""
        each = n if self.watch is None or not self.watch.apart else 1
        logits = self._prefill([row.ids for row in rows[::each]], rows[::each])
        if each > 1:
            spread = [p for p in range(len(prompts)) for _ in range(n)]
            self.cache.select(spread)
            logits = logits[spread]
        return self._checked(logits)

    def advance(self, rows: list[GeneratedSequence], ids: list[int]) -> Tensor:
        """Read the token that each row has just written; the logits of what comes next."""
        for row, token in zip(rows, ids, strict=True):
            row.ids.append(token)
        if self.model.config.long_text in {len(row.ids) for row in rows}:
            logits = self._prefill([row.ids for row in rows], rows)
        else:
            logits = self._pass([[token] for token in ids], rows)
        return self._checked(logits) if self.watch is not None and self.watch.edited else logits

    def _checked(self, logits: Tensor) -> Tensor:
        if logits.isnan().any():
            if self.watch is not None and self.watch.edited:
                raise RequestError(NO_NUMBERS, param="edit")
            raise CheckpointError(
                "the model's logits are not numbers (NaN): damaged weights, or too large for their dtype"
            )
        return logits

    @torch.inference_mode()
    def _prefill(self, prompts: Sequence[Sequence[int]], rows: list[GeneratedSequence]) -> Tensor:
        """Fill a new cache with all prompts; the logits [prompts, V] of each one's last token."""
        model, longest = self.model, max(map(len, prompts))
        capacity = min(model.config.context_length, longest + max(row.room for row in rows))
        reach = [len(prompt) for prompt in prompts]
        self.cache = DenseCache.of(model.config, len(prompts), capacity, model.embed.weight.device, reach=reach)
        logits = model.embed.weight.new_empty(len(prompts), model.config.vocab_size)
        for begin in range(0, longest, PREFILL_CHUNK):
            chunk = [list(prompt[begin : begin + PREFILL_CHUNK]) for prompt in prompts]
            ending = [p for p, tokens in enumerate(chunk) if tokens and begin + len(tokens) == len(prompts[p])]
            out = self._pass(chunk, rows)
            logits[ending] = out[ending]
        return logits

    @torch.inference_mode()
    def _pass(self, tokens: list[list[int]], rows: list[GeneratedSequence]) -> Tensor:
        """One pass over each row's new tokens; the logits [R, V] of each row's last one."""
        self.before_pass()
        width, cache = max(map(len, tokens)), self.cache
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=cache.device)
        step = Step(cache.extend([len(row) for row in tokens]), cache=cache, attend=self.attend)
        numbers = [row.row for row in rows]
        if self.watch is not None:
            step.tap = self.watch.tap(step, numbers)
        hidden = self.model.hidden(ids, step)  # [R, T, D]
        last = [max(len(row) - 1, 0) for row in tokens]
        if self.watch is not None:
            step = step.at(step.positions.expand(len(tokens), -1)[range(len(tokens)), last])
            step.tap = self.watch.tap(step, numbers)
        return self.model.logits(hidden[:, 0] if width == 1 else hidden[range(len(tokens)), last], step)


class _Counts:
    """How often each token stands in a row's prompt and output, [R, V] each."""

    def __init__(self, model: Decoder, prompts: Sequence[Sequence[int]], options: GenerationOptions):
        device, vocab_size = model.embed.weight.device, model.config.vocab_size
        count = [torch.bincount(torch.tensor(list(prompt)), minlength=vocab_size) for prompt in prompts]
        self.prompt = torch.stack(count).repeat_interleave(options.n, 0).to(device)
        self.output = torch.zeros_like(self.prompt)

    def add(self, rows: list[GeneratedSequence], ids: list[int]) -> None:
        self.output[[row.row for row in rows], ids] += 1

    def of(self, rows: list[GeneratedSequence]) -> tuple[Tensor, Tensor]:
        index = [row.row for row in rows]
        return self.prompt[index], self.output[index]


def report(logits: Tensor, chosen: Tensor, n_top: int) -> list[tuple[float, Top]]:
    """Per row of logits [R, V] the chosen token's log-probability, and the likeliest tokens with theirs."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, chosen[:, None]).squeeze(-1).tolist()
    top = logprobs.topk(min(n_top, logprobs.shape[-1]), -1)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [(one, tuple(zip(*pair, strict=True))) for one, pair in zip(own, pairs, strict=True)]


def _piece(row: GeneratedSequence, token: int, logprob: float | None, top: Top, ends: Collection[int]) -> TokenEvent:
    """Add a token to a row, and see whether the row ends with it."""
    if token in ends:
        return TokenEvent(row.row, None, _rest(row), logprob, top, "stop")
    row.room -= 1
    text = row.stops.push(row.text.push(token)) if row.text else ""
    if row.stops.found is not None:
        return TokenEvent(row.row, token, text, logprob, top, "stop")
    if row.room == 0:
        return TokenEvent(row.row, token, text + _rest(row), logprob, top, "length")
    return TokenEvent(row.row, token, text, logprob, top)


def _rest(row: GeneratedSequence) -> str:
    """What was held back when a row ends: half a character, or what might have become a stop string."""
    return row.stops.push(row.text.finish()) + row.stops.finish() if row.text else ""

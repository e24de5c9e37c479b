"""The plain loop: read the prompt once, then one token at a time, through the cache.

prompts -> prefill in chunks -> logits of each row's last token -> choose -> one step -> choose -> ...
              (n continuations share one prefill)                     rows leave as they end
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.errors import CapacityError, RequestError
from glassformer.generate.sampling import Sampling, adjust, check_number, choose
from glassformer.generate.stopping import StopStrings
from glassformer.nn.attend import Attend, attend_sdpa
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step
from glassformer.text.pieces import StreamDecoder
from glassformer.text.tokenizer import Tokenizer

Top = tuple[tuple[int, float], ...]  # (token id, log-probability), the likeliest first
PREFILL_CHUNK = 512  # tokens of a prompt per pass: bounds memory, and Ctrl-C is heard between passes


@dataclass(frozen=True)
class Options:
    """One request beside its prompt. `max_tokens` None writes until an end or the end of the context.

    `n` continuations of each prompt, from one prefill. `logprobs`: how many of the likeliest tokens to report beside
    the chosen one's own log-probability (nats, of the model's own distribution, before any sampling stage).
    """

    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self):
        check_number("max_tokens", self.max_tokens, 1, 1 << 31)
        check_number("n", self.n, 1, 1024)
        check_number("logprobs", self.logprobs, 0, 1024)
        StopStrings(self.stop)
        if self.n > 1 and self.sampling.greedy:
            raise RequestError(f"n = {self.n} continuations at temperature 0 would all be the same", param="n")


@dataclass(frozen=True)
class Piece:
    """What one step adds to one continuation. `text` is certain to stay: never half a character, or half a stop string.

    `row` counts continuations: those of prompt p are p*n to p*n + n-1. `id` is None in a last piece without a token.
    """

    row: int
    id: int | None
    text: str
    logprob: float | None = None
    top: Top = ()
    finish: Literal["stop", "length"] | None = None


@dataclass
class Row:
    """One continuation as it grows."""

    row: int
    room: int
    generator: torch.Generator
    stops: StopStrings
    text: StreamDecoder | None


@torch.inference_mode()  # as a decorator it leaves the mode at each yield
def write(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    tokenizer: Tokenizer | None = None,
    ends: Collection[int] = (),
    seed: int | None = None,
    attend: Attend = attend_sdpa,
) -> Iterator[Piece]:
    """Continue each prompt; yields a `Piece` per continuation and step, in order of rows.

    A token of `ends` ends its continuation and is not part of it. Continuation r draws with `seed` + r.
    CapacityError when prompt and `max_tokens` do not fit the context; RequestError for an empty prompt, token ids
    outside the vocabulary, or stop strings without a tokenizer.
    """
    rows = _rows(model, prompts, options, tokenizer, secrets.randbits(32) if seed is None else seed)
    cache, logits = _prefill(model, prompts, max(row.room for row in rows), attend)
    if options.n > 1:
        spread = [p for p in range(len(prompts)) for _ in range(options.n)]
        cache.select(spread)
        logits = logits[spread]
    counts = _Counts(model, prompts, options) if options.sampling.counts_tokens else None
    while True:
        adjusted = adjust(logits, options.sampling, *(counts.of(rows) if counts else ()))
        chosen = choose(adjusted, options.sampling, [row.generator for row in rows])
        ids = chosen.tolist()
        reports = _report(logits, chosen, options)
        pieces = [_piece(row, token, *report, ends) for row, token, report in zip(rows, ids, reports, strict=True)]
        yield from pieces
        going = [i for i, piece in enumerate(pieces) if piece.finish is None]
        if not going:
            return
        if len(going) < len(rows):
            cache.select(going)
            rows, ids = [rows[i] for i in going], [ids[i] for i in going]
        if counts:
            counts.add(rows, ids)
        logits = _pass(model, cache, [[token] for token in ids], attend)


def _rows(
    model: Decoder, prompts: Sequence[Sequence[int]], options: Options, tokenizer: Tokenizer | None, seed: int
) -> list[Row]:
    context, vocab_size = model.config.context_length, model.config.vocab_size
    if options.stop and tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this model has none", param="stop")
    if not prompts:
        raise RequestError("there is no prompt", param="prompt")
    rows = []
    for prompt in prompts:
        if len(prompt) == 0:
            raise RequestError("the prompt is empty: it must hold at least one token", param="prompt")
        bad = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if bad is not None:
            raise RequestError(f"token id {bad} is out of range: allowed are 0 to {vocab_size - 1}", param="prompt")
        room = context - len(prompt)
        if room < 1 or (options.max_tokens or 1) > room:
            asked = "" if options.max_tokens is None else f" and max_tokens {options.max_tokens}"
            raise CapacityError(
                f"a prompt of {len(prompt)} tokens{asked} does not fit: the model's context holds {context} tokens"
            )
        for _ in range(options.n):
            generator = torch.Generator().manual_seed((seed + len(rows)) % (1 << 63))
            text = tokenizer.stream() if tokenizer else None
            rows.append(
                Row(len(rows), min(room, options.max_tokens or room), generator, StopStrings(options.stop), text)
            )
    return rows


def _prefill(model: Decoder, prompts: Sequence[Sequence[int]], room: int, attend: Attend) -> tuple[DenseCache, Tensor]:
    """The cache after all prompts, and the logits [prompts, V] of each one's last token."""
    longest = max(map(len, prompts))
    capacity = min(model.config.context_length, longest + room)
    cache = DenseCache.of(model.config, len(prompts), capacity, model.embed.weight.device)
    logits = model.embed.weight.new_empty(len(prompts), model.config.vocab_size)
    for begin in range(0, longest, PREFILL_CHUNK):
        chunk = [list(prompt[begin : begin + PREFILL_CHUNK]) for prompt in prompts]
        ending = [p for p, tokens in enumerate(chunk) if tokens and begin + len(tokens) == len(prompts[p])]
        out = _pass(model, cache, chunk, attend)
        logits[ending] = out[ending]
    return cache, logits


def _pass(model: Decoder, cache: DenseCache, tokens: list[list[int]], attend: Attend) -> Tensor:
    """One pass over each row's new tokens; the logits [R, V] of each row's last one."""
    width = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=cache.device)
    step = Step(cache.extend([len(row) for row in tokens]), cache=cache, attend=attend)
    hidden = model.hidden(ids, step)  # [R, T, D]
    last = [max(len(row) - 1, 0) for row in tokens]
    return model.logits(hidden[:, 0] if width == 1 else hidden[range(len(tokens)), last], step)


class _Counts:
    """How often each token stands in a row's prompt and output, [R, V] each."""

    def __init__(self, model: Decoder, prompts: Sequence[Sequence[int]], options: Options):
        device, vocab_size = model.embed.weight.device, model.config.vocab_size
        count = [torch.bincount(torch.tensor(list(prompt)), minlength=vocab_size) for prompt in prompts]
        self.prompt = torch.stack(count).repeat_interleave(options.n, 0).to(device)
        self.output = torch.zeros_like(self.prompt)

    def add(self, rows: list[Row], ids: list[int]) -> None:
        self.output[[row.row for row in rows], ids] += 1

    def of(self, rows: list[Row]) -> tuple[Tensor, Tensor]:
        index = [row.row for row in rows]
        return self.prompt[index], self.output[index]


def _report(logits: Tensor, chosen: Tensor, options: Options) -> list[tuple[float | None, Top]]:
    """Per row the chosen token's log-probability and the likeliest tokens with theirs."""
    if options.logprobs is None:
        return [(None, ())] * len(logits)
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, chosen[:, None]).squeeze(-1).tolist()
    top = logprobs.topk(min(options.logprobs, logprobs.shape[-1]), -1)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [(one, tuple(zip(*pair, strict=True))) for one, pair in zip(own, pairs, strict=True)]


def _piece(
    row: Row, token: int, logprob: float | None, top: tuple[tuple[int, float], ...], ends: Collection[int]
) -> Piece:
    """Add a token to a row, and see whether the row ends with it."""
    if token in ends:
        return Piece(row.row, None, _rest(row), logprob, top, "stop")
    row.room -= 1
    text = row.stops.push(row.text.push(token)) if row.text else ""
    if row.stops.found is not None:
        return Piece(row.row, token, text, logprob, top, "stop")
    if row.room == 0:
        return Piece(row.row, token, text + _rest(row), logprob, top, "length")
    return Piece(row.row, token, text, logprob, top)


def _rest(row: Row) -> str:
    """What was held back when a row ends: half a character, or what might have become a stop string."""
    return row.stops.push(row.text.finish()) + row.stops.finish() if row.text else ""

"""The forward passes of one request: prefill, then one token per sequence and step.

    prompts (and sources) -> run(session.start()) ----------> logits [R, V] of the token after each prompt
                             session.advance(ids [R]) ------> logits [R, V], after one more token in every sequence
                             session.select(sequences) -----> only these sequences, in this order; repeats are allowed

A prefill of several chunks pauses between them: `start` is a generator, which other work can be interleaved with.
The session owns the state between forward passes: a Transformer's key/value cache, or a recurrent model's state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.errors import CheckpointError, RequestError
from glassformer.generate import prefill
from glassformer.kernels.linear import prepack
from glassformer.kernels.native.attention import attend_native
from glassformer.nn.attend import Attend
from glassformer.nn.linear import device_of, dtype_of
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.protocols import EncodedSource, Tap
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.nn.step import Step

Seq2SeqModel = EncoderDecoder | RecurrentEncoderDecoder
GenerativeModel = Decoder | RecurrentEncoderDecoder
DEFAULT_MAX_TOKENS = 512  # for recurrent models, which have no context limit


T = TypeVar("T")
Pausing = Generator[None, None, T]  # yields None between forward passes, and returns T


def run(work: Generator[Any, None, T]) -> T:
    """Run a generator to its end; return its value."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def with_value(work: Pausing[T]) -> Iterator[T | None]:
    """Yield the pauses of a generator, then its value."""
    yield (yield from work)


@runtime_checkable
class Observer(Protocol):
    """Inspects or edits the forward passes of one request: creates a tap for each.

    sees_last_token: process the last generated token too, although no token is predicted from it (one sequence only).
    separate_prefill: the continuations of a prompt differ before their first token, so each needs its own prefill.
    has_edits: values may be changed, so that NaN logits do not prove damaged weights.
    """

    sees_last_token: bool
    separate_prefill: bool
    has_edits: bool

    def tap(self, step: Step, sequences: Sequence[int]) -> Tap | None:
        """Return the tap of one forward pass over the continuations with these indices."""
        ...


@runtime_checkable
class DecodeSession(Protocol):
    """A batch of sequences that grow by one token per step."""

    def start(self) -> Pausing[Float[Tensor, "R V"]]:
        """Prefill the prompts; return the logits of each continuation's first token."""
        ...

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        """Process each sequence's newest token; return the logits of the next."""
        ...

    def select(self, sequences: Sequence[int]) -> None:
        """Replace the batch by these sequences, in this order; repeats are allowed."""
        ...


class TransformerSession:
    """A session of a decoder or an encoder-decoder, through a dense key/value cache.

    If the model changes its rotary angles for long texts (`ModelConfig.long_text`), all sequences are prefilled again
    when one of them becomes long. capacity: the maximal number of tokens of a sequence.
    """

    cache: DenseCache | None = None

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        capacity: int,
        *,
        n: int = 1,
        sources: Sequence[Sequence[int]] | None = None,
        attend: Attend = attend_native,
        observer: Observer | None = None,
        before_forward: Callable[[], None] | None = None,
    ):
        self.model = model if sources is None else prepack(model, rows=len(sources))
        self.capacity, self.n, self.sources = min(capacity, model.config.context_length), n, sources
        self.attend, self.observer, self.before_forward = attend, observer, before_forward
        self.device = device_of(model)
        self.ids = [list(prompt) for prompt in prompts for _ in range(n)]
        self.numbers = list(range(len(self.ids))) if sources is None else [0] * len(self.ids)

    @torch.inference_mode()
    def start(self) -> Pausing[Float[Tensor, "R V"]]:
        shared = self.n if self.observer is None or not self.observer.separate_prefill else 1
        logits = yield from self._prefill(self.ids[::shared], self.numbers[::shared])
        if shared > 1:
            index = [i for i in range(len(self.ids) // shared) for _ in range(shared)]
            assert self.cache is not None
            self.cache.select(index)
            logits = logits[index]
        return check_logits(logits, self.observer is not None and self.observer.has_edits)

    @torch.inference_mode()
    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        for sequence, token in zip(self.ids, ids, strict=True):
            sequence.append(token)
        if self.model.config.long_text in {len(sequence) for sequence in self.ids}:
            logits = run(self._prefill(self.ids, self.numbers))
        else:
            logits = self._forward([[token] for token in ids], self.numbers)
        return check_logits(logits, self.observer is not None and self.observer.has_edits)

    def select(self, sequences: Sequence[int]) -> None:
        assert self.cache is not None
        self.cache.select(sequences)
        self.ids = [list(self.ids[i]) for i in sequences]
        self.numbers = [self.numbers[i] for i in sequences]

    def _prefill(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> Pausing[Float[Tensor, "P V"]]:
        """Fill a new cache with the prompts; return the logits of each prompt's last token."""
        model, lengths = self.model, [len(prompt) for prompt in prompts]
        source = self._encode() if self.cache is None else self.cache.source
        self.cache = DenseCache.of(model.config, len(prompts), self.capacity, self.device, source, lengths)
        logits = torch.empty(len(prompts), model.config.vocab_size, dtype=dtype_of(model), device=self.device)
        edits_scores = self.observer is not None and self.observer.has_edits
        size = prefill.chunk_size(model.config, max(lengths), len(prompts), edits_scores)
        size = min(size, max(prefill.PREFILL_CHUNK // len(prompts), 1))
        for begin in range(0, max(lengths), size):
            if begin:
                yield
            chunk = [list(prompt[begin : begin + size]) for prompt in prompts]
            ends = [p for p, tokens in enumerate(chunk) if tokens and begin + len(tokens) == lengths[p]]
            out = self._forward(chunk, numbers)
            logits[ends] = out[ends]
        return logits

    def _encode(self) -> EncodedSource | None:
        """Run the encoder over the sources, if the request has sources."""
        if self.sources is None:
            return None
        assert isinstance(self.model, EncoderDecoder)
        ids, lengths = pad(self.sources, self.device)
        step = Step.of(ids, lengths, attend=self.attend)
        return self.model.encode(ids, observed(self.observer, step, [0] * len(ids)))

    def _forward(self, tokens: list[list[int]], numbers: Sequence[int]) -> Float[Tensor, "R V"]:
        """Run one forward pass over each sequence's new tokens; return the logits of the last one."""
        if self.before_forward is not None:
            self.before_forward()
        assert self.cache is not None
        ids, lengths = pad(tokens, self.device)
        step = Step(self.cache.extend(lengths), cache=self.cache, attend=self.attend)
        hidden = self.model.hidden(ids, observed(self.observer, step, numbers))  # [R, T, D]
        rows, last = range(len(tokens)), [max(length - 1, 0) for length in lengths]
        if self.observer is not None:
            step = step.at(step.positions.expand(len(tokens), -1)[rows, last])
            step = observed(self.observer, step, numbers)
        return self.model.logits(hidden[:, 0] if ids.shape[1] == 1 else hidden[rows, last], step)


class RecurrentSession:
    """A session of a recurrent encoder-decoder, whose state represents all earlier tokens. Prompts have one length."""

    def __init__(
        self,
        model: RecurrentEncoderDecoder,
        prompts: Sequence[Sequence[int]],
        *,
        n: int = 1,
        sources: Sequence[Sequence[int]],
        observer: Observer | None = None,
        before_forward: Callable[[], None] | None = None,
    ):
        self.model, self.prompts, self.sources, self.n = model, prompts, sources, n
        self.observer, self.before_forward = observer, before_forward
        self.device, self.position = device_of(model), 0

    @torch.inference_mode()
    def start(self) -> Pausing[Float[Tensor, "R V"]]:
        ids, lengths = pad(self.sources, self.device)
        self.source_positions = Step.of(ids, lengths).positions.expand_as(ids)  # -1 is padding
        self.state = self.model.encode(ids, torch.tensor(lengths), self._step(len(ids)).tap)
        self.select([i for i in range(len(self.sources)) for _ in range(self.n)])
        tokens = [prompt for prompt in self.prompts for _ in range(self.n)]
        for ids in list(zip(*tokens, strict=True))[:-1]:
            self.advance(ids)
            yield
        return self.advance([prompt[-1] for prompt in tokens])

    @torch.inference_mode()
    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        if self.before_forward is not None:
            self.before_forward()
        step = self._step(len(ids))
        hidden, self.state = self.model.decode(torch.tensor(ids, device=self.device)[:, None], self.state, step.tap)
        self.position += 1
        step = observed(self.observer, step.at(step.positions[:, 0]), [0] * len(ids))
        logits = self.model.logits(hidden[:, 0], step.tap)
        return check_logits(logits, self.observer is not None and self.observer.has_edits)

    def select(self, sequences: Sequence[int]) -> None:
        self.state = self.state.select(sequences)
        self.source_positions = self.source_positions[list(sequences)]

    def _step(self, size: int) -> Step:
        positions = torch.tensor([[self.position]], device=self.device)
        step = Step(positions, source=source_of_positions(self.source_positions))
        return observed(self.observer, step, [0] * size)


def observed(observer: Observer | None, step: Step, sequences: Sequence[int]) -> Step:
    """Set the observer's tap on a step, if there is an observer."""
    if observer is not None:
        step.tap = observer.tap(step, sequences)
    return step


def check_logits(logits: Float[Tensor, "R V"], has_edits: bool) -> Float[Tensor, "R V"]:
    """Return the logits. Raise RequestError if edits made them NaN, CheckpointError if the weights did."""
    if not logits.isnan().any():
        return logits
    if has_edits:
        raise RequestError("the edits make the logits NaN, so no token can be chosen: change the edits", param="edit")
    raise CheckpointError("the logits are NaN: the weights are damaged, or too large for their dtype")


def source_of_positions(positions: Int[Tensor, "#B S"]) -> EncodedSource:
    """Return a source with positions only, for the tap of a recurrent model."""
    return EncodedSource(positions[..., None].float(), positions, True)


def max_target_tokens(model: Seq2SeqModel) -> int:
    """Return the default limit of generated tokens, including the end token."""
    return DEFAULT_MAX_TOKENS if isinstance(model, RecurrentEncoderDecoder) else model.config.context_length


def max_source_tokens(model: GenerativeModel) -> int | None:
    """Return the maximal number of source tokens; None if there is no limit."""
    return model.encoder.config.context_length if isinstance(model, EncoderDecoder) else None


def vocab_sizes(model: GenerativeModel) -> tuple[int, int]:
    """Return the vocabulary sizes of the source (0 if the model has none) and of the generated text."""
    if isinstance(model, RecurrentEncoderDecoder):
        return model.config.source_vocab_size, model.config.target_vocab_size
    return model.encoder.config.vocab_size if isinstance(model, EncoderDecoder) else 0, model.config.vocab_size


def pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "B T"], list[int]]:
    """Stack sequences of token ids, padded with 0 on the right; return the tensor and the lengths."""
    lengths = [len(ids) for ids in sequences]
    width = max(lengths)
    return torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in sequences], device=device), lengths

"""Measure prefill and decoding of one model in several implementations, interleaved.

The speed of a shared machine varies over minutes. So each round runs every implementation once, in an order that
rotates from round to round, and a ratio compares two runs of the same round:

    round 1   ours | other        ratio = seconds of the other / ours of the same round,
    round 2   other | ours        then the median, minimum and maximum over rounds
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from glassformer.cache.size import cached_numbers
from glassformer.config import ModelConfig
from glassformer.formats import Checkpoint
from glassformer.formats.load import account, meta_parameters
from glassformer.generate.decode import decode
from glassformer.generate.limits import CLOCKS, Limits
from glassformer.generate.request import GenerationRequest
from glassformer.generate.sampling import Sampling
from glassformer.kernels.native.ops import Counters, counters
from glassformer.nn.model import Decoder

OURS = "glassformer"
CACHE_BYTES = 2  # of a cached number, where a share of the memory rate is computed


@dataclass(frozen=True)
class Workload:
    """Work whose time is measured: the prefill of random prompts, or the greedy decoding after it.

    batch: sequences per forward pass. new_tokens: tokens to decode per sequence after the first one; 0 measures the
    prefill, which ends with the first token.
    """

    name: str
    prompt_tokens: int
    new_tokens: int = 0
    batch: int = 1

    @property
    def tokens(self) -> int:
        """The number of tokens that are processed in the measured time."""
        return self.batch * (self.new_tokens or self.prompt_tokens)

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Return the same random token ids at every call: [batch, prompt_tokens]."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocab_size, (self.batch, self.prompt_tokens), generator=generator).tolist()


@dataclass(frozen=True)
class Timing:
    """One run of a workload.

    prefill: the seconds until every sequence has its first token. decode: the seconds of all later tokens. ids: the
    generated ids of each sequence. native: what the native kernels ran per forward pass of decoding, or in the prefill
    if nothing was decoded; None for other implementations.
    """

    prefill: float
    decode: float
    ids: list[list[int]]
    native: Counters | None = None


Run = Callable[[list[list[int]], int], Timing]  # (prompts, tokens to decode after the first)


@dataclass(frozen=True)
class Measurement:
    """The seconds of each implementation in each round.

    equal_tokens: for each other implementation, how many tokens equal ours before the first that differs, over all
    sequences. native: that of our last `Timing`.
    """

    workload: Workload
    seconds: Mapping[str, list[float]]
    equal_tokens: Mapping[str, int]
    native: Counters | None = None

    def tokens_per_second(self, side: str = OURS) -> float:
        """Return the median rate of an implementation."""
        return self.workload.tokens / statistics.median(self.seconds[side])

    def ratio(self, side: str) -> tuple[float, float, float]:
        """Return the speed of ours divided by that of another: median, minimum and maximum over the rounds."""
        each = [other / ours for ours, other in zip(self.seconds[OURS], self.seconds[side], strict=True)]
        return statistics.median(each), min(each), max(each)


def workloads(
    context: int, *, prefill: Sequence[int], batch: Sequence[int], prompt_tokens: int, new_tokens: int
) -> list[Workload]:
    """Return the workloads that fit a context: decoding at each batch size, then the prefill of each length.

    If no prefill fits, it is replaced by the longest that does.
    """
    decoding = [
        Workload("decode" if n == 1 else f"decode, batch {n}", prompt_tokens, new_tokens, n)
        for n in batch
        if prompt_tokens + new_tokens < context
    ]
    lengths = [n for n in prefill if n < context] or [context - 1] * bool(prefill)
    return decoding + [Workload(f"prefill {n:,}", n) for n in lengths if n > 0]


def measure(
    workload: Workload,
    sides: Mapping[str, Run],
    vocab_size: int,
    *,
    rounds: int = 3,
    tick: Callable[[int, int | None, str], None] = lambda done, total, label: None,
) -> Measurement:
    """Run a workload `rounds` times with every implementation, after one warm-up round.

    Args:
        sides: the implementations by name; ours is "glassformer".
        vocab_size: of the random prompts.

    Raises:
        CapacityError: the prompt and the new tokens do not fit the context.
    """
    prompts, names = workload.prompts(vocab_size), list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, Timing] = {}
    for i in range(rounds + 1):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            timing = sides[name](prompts, workload.new_tokens)
            last[name] = timing
            if i:
                seconds[name].append(timing.decode if workload.new_tokens else timing.prefill)
        tick(i + 1, rounds + 1, workload.name)
    ours = last[OURS]
    equal = {name: _equal_tokens(ours.ids, last[name].ids) for name in names if name != OURS}
    return Measurement(workload, seconds, equal, ours.native)


def _equal_tokens(ours: list[list[int]], theirs: list[list[int]]) -> int:
    """Return how many tokens of all sequences are equal before the first that differs."""
    total = 0
    for a, b in zip(ours, theirs, strict=True):
        total += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
    return total


def our_run(model: Decoder, clock: str = "wall") -> Run:
    """Return a function that runs a model in `decode`, as `generate` does: at temperature 0, without a tokenizer."""
    now = CLOCKS[clock]

    def run(prompts: list[list[int]], new_tokens: int) -> Timing:
        request = GenerationRequest(prompts, max_tokens=new_tokens + 1, sampling=Sampling(temperature=0.0))
        ids: list[list[int]] = [[] for _ in prompts]
        begin = now()
        first, at_begin, at_first = begin, counters(), counters()
        for event in decode(model, request):
            if not ids[-1]:  # until the last sequence has its first token
                first, at_first = now(), counters()
            assert event.id is not None
            ids[event.sequence].append(event.id)
        end = now()
        native = counters().since(at_first, new_tokens) if new_tokens else at_first.since(at_begin)
        return Timing(first - begin, end - first, ids, native)

    return run


@dataclass(frozen=True)
class ModelSize:
    """The weights that a forward pass reads and multiplies, as the checkpoint stores them.

    weight_bytes: of all parameters that each decode step reads; embedding and position tables, of which it reads a few
    rows, are not counted. block_parameters: of the matrices of the blocks, which multiply every token of a prompt.
    """

    config: ModelConfig
    weight_bytes: int
    block_parameters: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelSize | None:
        """Return the size of a decoder; None for a mixture of experts, whose reads depend on the tokens."""
        config = checkpoint.config
        if not isinstance(config, ModelConfig) or any(layer.experts is not None for layer in config.layers):
            return None
        parameters, weight_bytes = meta_parameters(config), 0
        for mapping, stored in account(checkpoint, parameters):
            tables = ("positions.weight",) if config.tied_head else ("positions.weight", "embed.weight")
            if stored is not None and not set(mapping.parameter_names) & set(tables):
                weight_bytes += _stored_bytes(checkpoint, stored)
        blocks = sum(p.numel() for name, p in parameters.items() if name.startswith("blocks.") and p.ndim > 1)
        return cls(config, weight_bytes, blocks)

    def memory_share(self, workload: Workload, tokens_per_second: float, memory_rate: float) -> float:
        """Return the rate at which decoding needs bytes, as a share of `memory_rate`: weights, and a 16-bit cache."""
        cached = cached_numbers(self.config, workload.prompt_tokens + workload.new_tokens // 2) * CACHE_BYTES
        per_step = self.weight_bytes + workload.batch * cached
        return per_step * tokens_per_second / workload.batch / memory_rate

    def matrix_share(self, tokens_per_second: float, matrix_rate: float) -> float:
        """Return the rate of the operations of prefill's weight matrices, as a share of `matrix_rate`."""
        return 2.0 * self.block_parameters * tokens_per_second / matrix_rate


def _stored_bytes(checkpoint: Checkpoint, name: str) -> int:
    """Return the bytes of a tensor in its file."""
    reader = checkpoint.reader
    quantized = reader.quantized_bytes(name)
    dtype = reader.dtype(name) or torch.float32
    return torch.Size(reader.shape(name)).numel() * dtype.itemsize if quantized is None else quantized


def report(measurement: Measurement, limits: Limits, size: ModelSize | None) -> dict[str, Any]:
    """Return a measurement as plain data, for JSON and tables.

    Each implementation has its rate, its share of the limit that bounds the workload (None if `size` is None), and the
    seconds of each round; all but ours have the ratio to ours and the number of equal tokens.
    """
    work = measurement.workload

    def share(rate: float) -> float | None:
        if size is None:
            return None
        if work.new_tokens:
            return size.memory_share(work, rate, limits.memory_rate)
        return size.matrix_share(rate, limits.matrix_rate)

    def side(name: str) -> dict[str, Any]:
        rate = measurement.tokens_per_second(name)
        found = {"tokens_per_second": rate, "share": share(rate), "seconds": measurement.seconds[name]}
        if name == OURS:
            return found if measurement.native is None else found | {"native": asdict(measurement.native)}
        ratio = dict(zip(("ratio", "ratio_min", "ratio_max"), measurement.ratio(name), strict=True))
        return found | ratio | {"equal_tokens": measurement.equal_tokens[name]}

    bound = "memory" if work.new_tokens else "matrix"
    return asdict(work) | {"bound": bound, "sides": {name: side(name) for name in measurement.seconds}}

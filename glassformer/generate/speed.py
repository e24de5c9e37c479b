"""Measure prefill and decoding speed, and the limits of this machine.

Prefill is bound by the rate of matrix products, decoding by memory bandwidth: each step reads every weight once. Both
limits are measured on this machine, in the model's dtype, with its own matrix shapes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from glassformer.cache.dense import DenseCache
from glassformer.kernels.attention import attend_fused
from glassformer.kernels.packed_linear import PackedLinear, weight_bytes, weight_shape
from glassformer.nn.linear import device_of, dtype_of
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step


@dataclass(frozen=True)
class Speed:
    """Medians over several rounds. Rates are in tokens, bytes or floating-point operations per second.

    decode_bytes: the size of the weights, keys and values that one step reads. memory_rate: measured by reading one
    large tensor. matrix_rate: measured by multiplying the model's weight matrices and a prompt.
    """

    prompt_tokens: int
    new_tokens: int
    batch: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prefill_flops: float
    matrix_rate: float
    decode_bytes: int
    memory_rate: float

    @property
    def prefill_share(self) -> float:
        """Prefill's rate of matrix products, as a share of `matrix_rate`."""
        return self.prefill_flops * self.prefill_tokens_per_second / self.prompt_tokens / self.batch / self.matrix_rate

    @property
    def decode_share(self) -> float:
        """Decoding's rate of reading memory, as a share of `memory_rate`."""
        return self.decode_bytes * self.decode_tokens_per_second / self.batch / self.memory_rate


@torch.inference_mode()
def measure_speed(
    model: Decoder,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
    rounds: int = 5,
    tick: Callable[[int, int | None, str], None] = lambda done, total, label: None,
) -> Speed:
    """Time `rounds` greedy runs over random tokens, after one warm-up round.

    Raises:
        CapacityError: the prompt and the new tokens do not fit the context.
    """
    device, config = device_of(model), model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (batch, prompt_tokens), generator=generator).to(device)
    prefill, decode, cache = [], [], None
    for round_ in range(rounds + 1):
        cache = DenseCache.of(config, batch, prompt_tokens + new_tokens, device)
        begin = _now(device)
        token = _next(model, cache, ids)
        middle = _now(device)
        for _ in range(new_tokens):
            token = _next(model, cache, token)
        if round_:
            prefill.append(middle - begin)
            decode.append(_now(device) - middle)
        tick(round_ + 1, rounds + 1, "measuring")
    assert cache is not None
    matrices = [m for m in model.blocks.modules() if isinstance(m, nn.Linear | PackedLinear)]
    cached = cache.bytes * (prompt_tokens + new_tokens / 2) / cache.room  # at the average number of cached tokens
    weights = sum(map(weight_bytes, matrices)) + weight_bytes(model.head)
    return Speed(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        prefill_tokens_per_second=batch * prompt_tokens / statistics.median(prefill),
        decode_tokens_per_second=batch * new_tokens / statistics.median(decode),
        prefill_flops=2.0 * batch * prompt_tokens * sum(prod(weight_shape(m)) for m in matrices),
        matrix_rate=matrix_rate(matrices, batch * prompt_tokens),
        decode_bytes=int(weights + cached),
        memory_rate=memory_rate(device),
    )


def _next(model: Decoder, cache: DenseCache, ids: Tensor) -> Tensor:
    """Return the most likely next token of each sequence, [B, 1]."""
    step = Step(cache.extend([ids.shape[1]] * len(ids)), cache=cache, attend=attend_fused)
    return model.logits(model.hidden(ids, step)[:, -1], step).argmax(-1, keepdim=True)


def memory_rate(device: torch.device, size: int = 1 << 28, rounds: int = 7) -> float:
    """Return the bytes per second of reading one tensor far larger than the CPU caches; the best of `rounds`."""
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    return size / min(_seconds(data.sum, device) for _ in range(rounds))


def matrix_rate(layers: list[nn.Linear | PackedLinear], tokens: int, rounds: int = 5) -> float:
    """Return the floating-point operations per second of x W^T, x [tokens, in]; the best of `rounds`.

    A packed matrix is multiplied by its layer, which quantizes x.
    """
    device, shapes = device_of(layers[0]), [weight_shape(layer) for layer in layers]
    dtype = dtype_of(layers[0])
    inputs = {n_in: torch.randn(tokens, n_in, device=device).to(dtype) for _, n_in in shapes}

    def multiply() -> None:
        for layer, (_, n_in) in zip(layers, shapes, strict=True):
            if isinstance(layer, PackedLinear):
                layer(inputs[n_in])
            else:
                torch.mm(inputs[n_in], layer.weight.T)

    flops = 2.0 * tokens * sum(map(prod, shapes))
    return flops / min(_seconds(multiply, device) for _ in range(rounds))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    begin = _now(device)
    work()
    return _now(device) - begin


def _now(device: torch.device) -> float:
    """Return the time, after the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

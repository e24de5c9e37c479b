"""Search the scale, and the minimum, of a group of weights that integers will stand for.

    symmetric   x ~ scale q             low <= q <= high
    affine      x ~ scale q - minimum   0 <= q <= high

A scale that just represents the largest weight rarely has the least squared error. Both searches start at several
scales, and alternate two steps that cannot increase the error: round x to the nearest integers with this scale, and
solve the least-squares problem for the scale with these integers ("Least Squares Quantization in PCM", Lloyd 1982).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

STARTS = (-0.6, 0.0, 0.6, 1.2)  # the first scale makes the largest weight (or the range) the largest integer plus this
ROUNDS = 2  # pairs of steps from each start
LARGEST = 65_504.0  # the largest float16
TINY = 2.0**-24  # the smallest float16 above 0


def search_scale(
    x: Float[Tensor, "G n"], low: int, high: int, *, starts: Sequence[float] = STARTS, rounds: int = ROUNDS
) -> Float[Tensor, "G"]:
    """Return the scale of each group with the least sum of (x - scale q)^2; 0 for a group of zeros.

    The scale is negative where the largest weight is positive and `low` has the larger magnitude.
    """
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))  # [G, 1], the largest weight with its sign
    ends = (low, high) if -low != high else (high,)
    best, gain = torch.zeros_like(extreme), torch.zeros_like(extreme)
    for end in ends:
        for start in starts:
            scale = extreme / (end + math.copysign(start, end))
            for _ in range(rounds):
                q = rounded(x, scale, low, high)
                along, square = (x * q).sum(-1, keepdim=True), q.square().sum(-1, keepdim=True)
                scale = along * inverse(square)
                found = along * scale  # the squared error is sum x^2 minus this
                better = found > gain
                best, gain = torch.where(better, scale, best), torch.where(better, found, gain)
    return best[:, 0]


def search_scale_and_minimum(
    x: Float[Tensor, "G n"], high: int, *, starts: Sequence[float] = STARTS, rounds: int = ROUNDS
) -> tuple[Float[Tensor, "G"], Float[Tensor, "G"]]:
    """Return the scale and the minimum of each group with the least sum of (scale q - minimum - x)^2, both at least 0.

    The minimum is 0 where all weights are positive.
    """
    n = x.shape[-1]
    bottom = x.amin(-1, keepdim=True).clamp(max=0)
    span = x.amax(-1, keepdim=True).clamp(min=0) - bottom  # [G, 1]
    total = x.sum(-1, keepdim=True)
    best, shift = torch.zeros_like(span), torch.zeros_like(span)
    least = torch.full_like(span, torch.inf)
    for start in starts:
        scale = span / (high + start)
        minimum = (-bottom - scale * (start / 2)).clamp(min=0)
        for _ in range(rounds):
            q = rounded(x + minimum, scale, 0, high)
            sum_q, square, along = q.sum(-1, keepdim=True), q.square().sum(-1, keepdim=True), (x * q).sum(-1, True)
            spread = n * square - sum_q.square()
            scale = torch.where(spread > 0, (n * along - sum_q * total) * inverse(spread), scale * (sum_q > 0))
            minimum = (scale * sum_q - total) / n
            positive = minimum < 0
            scale = torch.where(positive, along * inverse(square), scale).clamp(min=0)
            minimum = torch.where(positive, 0, minimum)
            error = (scale * q - minimum - x).square().sum(-1, keepdim=True)
            better = error < least
            best, shift = torch.where(better, scale, best), torch.where(better, minimum, shift)
            least = torch.where(better, error, least)
    return best[:, 0], shift[:, 0]


def rounded(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Return the integers nearest to x / scale, as floats; zeros where the scale is 0."""
    return (x * inverse(scale)).round_().clamp_(low, high)


def as_half(scale: Tensor) -> Tensor:
    """Return the nearest float16 number as float32, and not 0 for a number that is not 0."""
    half = scale.clamp(-LARGEST, LARGEST).half().float()
    return torch.where((half == 0) & (scale != 0), torch.full_like(half, TINY).copysign(scale), half)


def inverse(scale: Tensor) -> Tensor:
    """Return 1 / scale, or 0 where that is not finite: a scale of 0, or one too small to divide by."""
    return scale.reciprocal().nan_to_num_(0.0, 0.0, 0.0)

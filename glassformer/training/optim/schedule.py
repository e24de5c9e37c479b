"""Learning-rate schedules: pure functions from a step to a factor of the peak learning rate.

    factor 1 |    /-----------\\              /‾‾--..
             |   /             \\            /       ''-.
    min      |  /               \\ ...      /            '-- ...
             +--warmup----decay----> step   +--warmup---------> step
              "wsd": warm-up, stable, decay  "cosine"; "inverse_sqrt" decays the same way, without end

Steps count from 0; a run of `total` steps uses steps 0 to total - 1.
"""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["cosine", "wsd", "inverse_sqrt"]


def warmup_factor(step: int, warmup: int) -> float:
    """Return the factor of linear warm-up: 1/warmup at step 0, 1 from step warmup - 1 on."""
    return min(1.0, (step + 1) / max(1, warmup))


def cosine_factor(step: int, total: int, warmup: int, min_ratio: float) -> float:
    """Return warm-up, then half a cosine from 1 to `min_ratio` at step `total` (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup:
        return warmup_factor(step, warmup)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd_factor(step: int, total: int, warmup: int, min_ratio: float, decay: float) -> float:
    """Return warm-up, then 1, then linear decay to `min_ratio` over the last `decay` (a fraction) of all steps.

    Source: MiniCPM (Hu et al. 2024), section 4.
    """
    if step < warmup:
        return warmup_factor(step, warmup)
    length = min(max(1, round(decay * total)), max(1, total - warmup))
    progress = min(1.0, max(0.0, (step - (total - length)) / length))
    return 1 - (1 - min_ratio) * progress


def inverse_sqrt_factor(step: int, warmup: int) -> float:
    """Return warm-up, then decay as 1 / sqrt(step), as in "Attention Is All You Need" (Vaswani et al. 2017, eq. 3).

    The rate of the paper at update n = 1, 2, ... is d_model^-0.5 min(n^-0.5, n warmup^-1.5), with its maximum
    (d_model warmup)^-0.5 at n = warmup. This factor is the rate divided by that maximum, with n = step + 1: the peak of
    the paper's base model (d_model 512, warmup 4000) is 7.0e-4.
    """
    n, warmup = step + 1, max(1, warmup)
    return min(n / warmup, math.sqrt(warmup / n))


def lr_factor(
    kind: ScheduleKind, step: int, *, total: int | None, warmup: int, min_ratio: float = 0.0, decay: float = 0.3
) -> float:
    """Return the factor of the peak learning rate at `step`.

    Args:
        total: steps of the run; None while it is not known, which gives warm-up and then 1 (except inverse_sqrt).
    """
    if kind == "inverse_sqrt":
        return inverse_sqrt_factor(step, warmup)
    if total is None:
        return warmup_factor(step, warmup)
    if kind == "cosine":
        return cosine_factor(step, total, warmup, min_ratio)
    return wsd_factor(step, total, warmup, min_ratio, decay)

"""Learning-rate schedules: pure functions from a step to a factor of the peak rate.

    factor 1 |    /-----------\\              /‾‾--..
             |   /             \\            /       ''-.
    min      |  /               \\ ...      /            '-- ...
             +--warmup----decay----> step   +--warmup---------> step
              "wsd": warm-up, stable, decay  "cosine"

Steps count from 0; a run of `total` steps uses steps 0 to total - 1.
"""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["cosine", "wsd"]


def warmup_factor(step: int, warmup: int) -> float:
    """Linear warm-up: 1/warmup at step 0, 1 from step warmup - 1 on."""
    return min(1.0, (step + 1) / max(1, warmup))


def cosine_factor(step: int, total: int, warmup: int, min_ratio: float) -> float:
    """Warm-up, then half a cosine from 1 down to `min_ratio` at step `total` (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup:
        return warmup_factor(step, warmup)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd_factor(step: int, total: int, warmup: int, min_ratio: float, decay: float) -> float:
    """Warm-up, a stable stretch at 1, then a line down to `min_ratio` over the last `decay` of all steps.

    Source: MiniCPM (Hu et al. 2024), section 4. `decay` is a share of `total`, 0 to 1.
    """
    if step < warmup:
        return warmup_factor(step, warmup)
    length = min(max(1, round(decay * total)), max(1, total - warmup))
    progress = min(1.0, max(0.0, (step - (total - length)) / length))
    return 1 - (1 - min_ratio) * progress


def lr_factor(
    kind: ScheduleKind, step: int, *, total: int | None, warmup: int, min_ratio: float = 0.0, decay: float = 0.3
) -> float:
    """The factor of the peak rate at `step`. `total` None (not known yet) is still warming up, or stable."""
    if total is None:
        return warmup_factor(step, warmup)
    if kind == "cosine":
        return cosine_factor(step, total, warmup, min_ratio)
    return wsd_factor(step, total, warmup, min_ratio, decay)

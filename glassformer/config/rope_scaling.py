"""Scaling of rotary frequencies for contexts longer than those of pretraining.

Each scaling replaces f_i = theta^(-2i/R), the angle of pair i of R/2 from one position to the next:

    LinearScaling   f_i / factor                                    for all pairs
    BandScaling     f_i, or f_i / factor, or between the two        by the wavelength of pair i
    YarnScaling     the same, a ramp over i                        and cos and sin times `attention_factor`
    LongScaling     f_i / short_i, in a longer text f_i / long_i    and cos and sin times `attention_factor`
"""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.errors import ConfigError


def _check(scaling: Scaling, *names: str) -> None:
    for name in names:
        value = getattr(scaling, name)
        if not value > 0:
            raise ConfigError(f"{type(scaling).__name__}: {name} must be above 0, got {value!r}")


@dataclass(frozen=True)
class LinearScaling:
    """Positions are divided by `factor` ("Extending Context Window of Large Language Models", Chen et al. 2023)."""

    factor: float

    def __post_init__(self):
        _check(self, "factor")


@dataclass(frozen=True)
class BandScaling:
    """Frequencies are scaled by their wavelength in tokens (Llama 3.1).

    Above original_context / low they are divided by `factor`; below original_context / high they are unchanged;
    between, the two are interpolated linearly in original_context / wavelength.
    """

    factor: float
    low: float
    high: float
    original_context: int

    def __post_init__(self):
        _check(self, "factor", "low", "high", "original_context")
        if self.low >= self.high:
            raise ConfigError(f"BandScaling: low must be below high, got {self.low} and {self.high}")


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, section 3.2).

    Pairs with more than beta_fast turns in the original context are unchanged, those with fewer than beta_slow are
    divided by `factor`. `truncate`: the ends of the ramp between them are rounded to pairs.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self):
        _check(self, "factor", "original_context", "beta_fast", "beta_slow", "attention_factor")


@dataclass(frozen=True)
class LongScaling:
    """LongRoPE (Ding et al. 2024): a divisor per pair; `long` for texts of more than original_context tokens."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    attention_factor: float = 1.0

    def __post_init__(self):
        _check(self, "original_context", "attention_factor")
        if len(self.short) != len(self.long) or not all(factor > 0 for factor in self.short + self.long):
            raise ConfigError(
                "LongScaling: short and long must have the same number of factors, all above 0, "
                f"got {list(self.short)} and {list(self.long)}"
            )


Scaling = LinearScaling | BandScaling | YarnScaling | LongScaling

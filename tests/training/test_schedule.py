"""Test the values of learning-rate schedules at their boundaries, and their invariants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import ConfigError
from glassformer.training.config import ScheduleConfig
from glassformer.training.optim.schedule import cosine_factor, inverse_sqrt_factor, lr_factor, warmup_factor, wsd_factor


def test_warmup_is_linear_up_to_one():
    assert [warmup_factor(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


def test_cosine_values():
    factors = [cosine_factor(step, total=12, warmup=2, min_ratio=0.1) for step in range(13)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.55)  # half way: the mean of 1 and 0.1
    assert factors[12] == pytest.approx(0.1)
    assert factors[4] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + 0.8090169943749475))  # cos(pi / 5)


def test_wsd_is_constant_then_linear():
    factors = [wsd_factor(step, total=20, warmup=4, min_ratio=0.2, decay=0.25) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:16] == [1.0] * 12
    assert factors[15:] == pytest.approx([1.0, 0.84, 0.68, 0.52, 0.36, 0.2])


def test_unknown_total_warms_up_and_stays_at_one():
    assert [lr_factor("cosine", step, total=None, warmup=2) for step in (0, 1, 500)] == [0.5, 1.0, 1.0]


def test_inverse_sqrt_equals_the_paper():
    d_model, warmup = 512, 4000
    for n in (1, 2, 1000, 3999, 4000, 4001, 100_000):  # updates, from 1
        theirs = d_model**-0.5 * min(n**-0.5, n * warmup**-1.5)
        peak = (d_model * warmup) ** -0.5
        assert inverse_sqrt_factor(n - 1, warmup) * peak == pytest.approx(theirs, rel=1e-12)
    assert [inverse_sqrt_factor(step, 2) for step in (0, 1, 7)] == [0.5, 1.0, 0.5]
    assert [inverse_sqrt_factor(step, 0) for step in (0, 3)] == [1.0, 0.5]


def test_inverse_sqrt_decays_without_end():
    for total in (None, 3, 900):
        assert lr_factor("inverse_sqrt", 399, total=total, warmup=100) == 0.5
    with pytest.raises(ConfigError, match="min_ratio has no effect on inverse_sqrt"):
        ScheduleConfig("inverse_sqrt", min_ratio=0.1)


@given(
    kind=st.sampled_from(["cosine", "wsd"]),
    total=st.integers(1, 400),
    warmup=st.integers(0, 100),
    min_ratio=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_factors_increase_then_decrease_within_bounds(kind, total, warmup, min_ratio, decay):
    factors = [
        lr_factor(kind, s, total=total, warmup=warmup, min_ratio=min_ratio, decay=decay) for s in range(total + 2)
    ]
    assert all(0 <= f <= 1 for f in factors)
    rising, falling = factors[: warmup + 1], factors[warmup:]
    assert rising == sorted(rising) or warmup >= total
    assert falling == sorted(falling, reverse=True)
    assert all(f >= min_ratio - 1e-12 for f in falling)

"""`make soak`: 200 kill-and-resume cycles. Runs only with `-m soak`; the normal tests run a few cycles."""

import pytest
from kill_cycles import run_cycles


@pytest.mark.soak
def test_200_killed_runs_end_bit_equal(request):
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("long test: run make soak")
    assert run_cycles(200, seed=0) == []

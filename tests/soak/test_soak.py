"""`make soak`: 200 killed runs. Only when asked for (`-m soak`); a handful runs with the other tests."""

import pytest
from kill_cycles import run_cycles


@pytest.mark.soak
def test_two_hundred_killed_runs_end_bit_equal(request):
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("a long run: make soak")
    assert run_cycles(200, seed=0) == []

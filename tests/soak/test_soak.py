"""`make soak`: 200 kill-and-resume cycles, 20,000 random HTTP requests. Runs only with `-m soak`."""

import pytest
from kill_cycles import run_cycles
from server.http_fuzz import run_fuzzer


@pytest.mark.soak
def test_200_killed_runs_end_bit_equal(request):
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("long test: run make soak")
    assert run_cycles(200, seed=0) == []


@pytest.mark.soak
def test_20000_random_requests_neither_break_nor_stall_the_server(request, tmp_path):
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("long test: run make soak")
    assert run_fuzzer(20_000, 0, tmp_path) == []

"""A few hundred random requests; `make soak` sends 20,000."""

from server.http_fuzz import run_fuzzer


def test_random_requests_neither_break_nor_stall_the_server(tmp_path):
    assert run_fuzzer(200, 0, tmp_path) == []

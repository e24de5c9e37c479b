"""The keys and values of requests: bounded in bytes, as large as what is generated, and freed at the end."""

import gc

import httpx2
import pytest
from server.conftest import assert_error, serving, tiny_lm
from server.test_queue import SlowModel, completion_body, open_request, wait_until

from glassformer.cache.size import cached_numbers
from glassformer.server.app import Settings

CONTEXT = 256


def bytes_of(lm, n_tokens):
    return cached_numbers(lm.config, n_tokens) * 4


def test_requests_beyond_the_memory_are_rejected_with_both_numbers():
    lm = tiny_lm(chat=True, context_length=CONTEXT)
    limit = 4 * bytes_of(lm, 100)
    settings = Settings(cache_bytes=2 * limit)
    with serving([("m", lm)], settings) as (url, _), httpx2.Client(base_url=url, timeout=60) as http:
        body = {"model": "m", "prompt": [5] * 10, "n": 4, "seed": 1, "ignore_eos": True}
        assert http.get("/health").json()["cache"] == {"bytes": 0, "limit": 2 * limit}
        fits = http.post("/v1/completions", json=body | {"max_tokens": 90}).json()
        assert fits["usage"]["completion_tokens"] == 4 * 90
        for more in ({"max_tokens": 91}, {"max_tokens": 90, "n": 5}, {"n": 128}, {"prompt": [5] * 100}):
            answer = http.post("/v1/completions", json=body | more)
            error = assert_error(answer, 400, "--cache-memory", code="too_much_memory")
            rows, prompt = more.get("n", 4), len(more.get("prompt", [5] * 10))
            asked = prompt + more.get("max_tokens", 1)
            assert (
                f"{rows} sequences of {asked} tokens take {bytes_of(lm, asked) * rows / 1e6:.1f} MB" in error["message"]
            )
            assert f"a request may use {limit / 1e6:.1f} MB" in error["message"]
        prompts = {"prompt": [[5] * 10] * 40, "max_tokens": 90, "n": 1}
        assert http.post("/v1/completions", json=body | prompts).status_code == 200  # in batches that fit
        chat = {"model": "m", "messages": [{"role": "user", "content": "a"}], "n": 128}
        assert_error(http.post("/v1/chat/completions", json=chat), 400, code="too_much_memory")


def test_without_a_token_limit_texts_end_where_the_memory_ends():
    lm = tiny_lm(context_length=CONTEXT)
    with serving([("m", lm)], Settings(cache_bytes=2 * 4 * bytes_of(lm, 100))) as (url, _):
        body = {"model": "m", "prompt": [5] * 10, "seed": 1, "ignore_eos": True}
        few = httpx2.post(f"{url}/v1/completions", json=body | {"n": 4}, timeout=60).json()
        assert few["usage"]["completion_tokens"] == 4 * 90
        assert [choice["finish_reason"] for choice in few["choices"]] == ["length"] * 4
        one = httpx2.post(f"{url}/v1/completions", json=body, timeout=60).json()
        assert one["usage"]["completion_tokens"] == CONTEXT - 10


@pytest.mark.parametrize("stream", [True, False])
def test_the_cache_follows_the_tokens_and_is_freed_when_the_client_leaves(caches, stream):
    slow = SlowModel()
    with serving([("one", slow.lm)]) as (url, app):
        gc.collect()
        gc.disable()
        try:
            sock = open_request(
                url, "/v1/completions", completion_body("one", max_tokens=None, n=16, stream=stream, ignore_eos=True)
            )
            wait_until(lambda: slow.passes > 3)
            (cache,) = caches
            assert cache().bytes <= 16 * bytes_of(slow.lm, 32), "not the context of 256 tokens"
            assert httpx2.get(f"{url}/health").json()["cache"]["bytes"] == 16 * bytes_of(slow.lm, CONTEXT)
            sock.close()
            wait_until(lambda: app.state.queue.state["running"] == 0)
            wait_until(lambda: cache() is None)
            assert httpx2.get(f"{url}/health").json()["cache"]["bytes"] == 0
        finally:
            gc.enable()


def test_running_requests_share_the_memory():
    """Two requests that together need more than the memory run one after the other; a small one joins when it fits."""
    slow = SlowModel()
    half = 4 * bytes_of(slow.lm, 100)
    with serving([("one", slow.lm)], Settings(cache_bytes=2 * half)) as (url, app):
        big = completion_body("one", prompt=[5] * 20, max_tokens=80, n=4, stream=True, ignore_eos=True)
        socks = [open_request(url, "/v1/completions", big) for _ in range(3)]
        wait_until(lambda: app.state.queue.reserved == 2 * half)
        wait_until(lambda: app.state.queue.state == {"running": 2, "waiting": 1})
        socks[0].close()
        wait_until(lambda: app.state.queue.state == {"running": 2, "waiting": 0})
        assert app.state.queue.reserved == 2 * half
        for sock in socks:
            sock.close()

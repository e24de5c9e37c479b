"""Requests alternate, a client disconnect cancels its request, and the server stays responsive."""

import asyncio
import gc
import itertools
import json
import socket
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import torch
from server.conftest import serving, tiny_lm
from tiny import tiny

from glassformer.generate import prefill
from glassformer.generate.prefill import PREFILL_CHUNK
from glassformer.generate.session import with_value
from glassformer.inspect.views import roles
from glassformer.models.language_model import LanguageModel
from glassformer.server.errors import ApiError
from glassformer.server.queue import MAX_UNREAD, MAX_WAITING, QUICK_STEPS, ClientDisconnected, WorkQueue

LONG = 200  # tokens, many options than are generated before a test ends


class SlowModel:
    """A real model with slow forward passes, which are counted."""

    def __init__(self, seconds=0.02, **options):
        self.lm, self.passes, self.seconds = tiny_lm(context_length=256, **options), 0, seconds
        hidden = self.lm.model.hidden

        def slowly(ids, step):
            self.passes += 1
            time.sleep(self.seconds)
            return hidden(ids, step)

        self.lm.model.hidden = slowly


@pytest.fixture
def slow():
    """Serve two slow models; yield (URL, app, models by name)."""
    models = {"one": SlowModel(), "two": SlowModel(seed=1)}
    with serving([(name, model.lm) for name, model in models.items()]) as (url, app):
        yield url, app, models


def wait_until(condition):
    """Wait until the condition holds; fail after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.005)


def open_request(url, path, body, method="POST"):
    """Send a request and return its open socket."""
    host, port = url.removeprefix("http://").split(":")
    data = b"" if body is None else json.dumps(body).encode()
    sock = socket.create_connection((host, int(port)))
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return sock


def completion_body(model, **options):
    return {"model": model, "prompt": "the", "max_tokens": LONG, "seed": 1} | options


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/completions", {"stream": True}),
        ("/v1/completions", {}),
        ("/v1/traces", {"stream": True}),
        ("/v1/traces", {}),
    ],
)
def test_client_disconnect_cancels_its_request(slow, path, options):
    url, app, models = slow
    sock = open_request(url, path, completion_body("one", **options))
    if options:
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: models["one"].passes > 3)
    assert app.state.queue.state == {"running": 1, "waiting": 0}
    sock.close()
    wait_until(lambda: app.state.queue.state["running"] == 0)
    assert models["one"].passes < LONG / 2
    assert httpx2.post(f"{url}/v1/completions", json=completion_body("one", max_tokens=1)).status_code == 200
    assert httpx2.get(f"{url}/v1/traces").json()["data"] == [], "a partial trace must not be stored"


def test_client_disconnect_during_prefill_cancels(slow, monkeypatch):
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 1)
    url, app, models = slow
    sock = open_request(url, "/v1/completions", completion_body("one", prompt=[5] * LONG, max_tokens=1, stream=True))
    wait_until(lambda: models["one"].passes > 3)
    sock.close()
    wait_until(lambda: app.state.queue.state["running"] == 0)
    assert models["one"].passes < LONG / 2


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/completions", {"echo": True, "logprobs": 1, "max_tokens": 1}),
        ("/v1/completions", {"echo": True, "logprobs": 1, "max_tokens": 0, "stream": True}),
        ("/v1/traces", {"max_tokens": 0}),
    ],
    ids=["echo", "score", "trace"],
)
def test_client_disconnect_cancels_the_scoring_of_a_text(slow, monkeypatch, path, options):
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 1)
    url, app, models = slow
    body = {"model": "one", "prompt": [5] * LONG, **options}
    sock = open_request(url, path, body)
    wait_until(lambda: models["one"].passes > 3)
    sock.close()
    wait_until(lambda: app.state.queue.state["running"] == 0)
    assert models["one"].passes < LONG / 2


@pytest.mark.parametrize("options", [{"stream": True}, {}])
def test_client_disconnect_removes_a_waiting_request(slow, options):
    url, app, models = slow
    app.state.queue.max_running = 1
    first = open_request(url, "/v1/completions", completion_body("one", stream=True))
    wait_until(lambda: models["one"].passes > 1)
    second = open_request(url, "/v1/completions", completion_body("two", **options))
    wait_until(lambda: app.state.queue.state["waiting"] == 1)
    second.close()
    wait_until(lambda: app.state.queue.state["waiting"] == 0)
    assert app.state.queue.state["running"] == 1, "the first request continues"
    first.close()
    wait_until(lambda: app.state.queue.state["running"] == 0)
    assert models["two"].passes == 0


def test_client_disconnect_cancels_a_sweep(slow):
    url, app, models = slow
    run_blocks, count = models["one"].lm.model.run_blocks, 0

    def slowly(*args):
        nonlocal count
        count += 1
        time.sleep(0.05)
        return run_blocks(*args)

    models["one"].lm.model.run_blocks = slowly
    trace = httpx2.post(f"{url}/v1/traces", json={"model": "one", "prompt": [5] * 240}).json()
    sock = open_request(url, "/v1/sweeps", {"trace": trace["id"], "over": "cells"})
    assert sock.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: count > 3)
    sock.close()
    wait_until(lambda: app.state.queue.state["running"] == 0)
    assert count < 20, "240 positions of 3 layers, 17 at a time, are 43 forward passes"


def test_client_disconnect_cancels_a_streamed_view(slow, monkeypatch):
    url, app, _ = slow
    trace = httpx2.post(f"{url}/v1/traces", json={"model": "one", "prompt": "the cat sat"}).json()
    layers, layer_roles, go = [], roles.layer_roles, threading.Event()

    def slowly(t, i):
        layers.append(i)
        if i:
            go.wait()
        return layer_roles(t, i)

    monkeypatch.setattr(roles, "layer_roles", slowly)
    sock = open_request(url, f"/v1/traces/{trace['id']}/views/roles?stream=true", None, "GET")
    assert sock.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: len(layers) == 2)
    sock.close()
    wait_until(lambda: all(job.cancelled for job in app.state.queue._running))
    go.set()
    wait_until(lambda: app.state.queue.state["running"] == 0)
    assert layers == [0, 1], "the third layer must not be computed"


def test_views_are_answered_during_generation(slow):
    """A view does not wait for the end of a generation, and changes none of its tokens."""
    url, _, models = slow
    text = models["one"].lm.generate("the", max_tokens=LONG, seed=2).text
    trace = httpx2.post(f"{url}/v1/traces", json={"model": "one", "prompt": "the cat sat", "max_tokens": 0}).json()
    models["one"].passes = 0
    body = completion_body("one", max_tokens=LONG, seed=2, stream=True)
    with httpx2.stream("POST", f"{url}/v1/completions", json=body) as response:
        lines = (line for line in response.iter_lines() if line)
        events = [next(lines)]
        for _ in range(3):
            assert httpx2.get(f"{url}/health").json()["queue"]["running"] == 1
            view = httpx2.get(f"{url}/v1/traces/{trace['id']}/views/cell?layer=0&head=1&query=3&key=2")
            assert view.status_code == 200
            assert models["one"].passes < LONG, "the view must come before the end"
        events += lines
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in events]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


def test_requests_alternate(slow):
    """One forward pass runs at a time, with the same results as alone."""
    url, _, models = slow
    alone = {name: models[name].lm.generate("the", max_tokens=8, seed=1).text for name in models}
    running, max_running, lock = 0, 0, threading.Lock()
    for model in models.values():
        hidden = model.lm.model.hidden

        def counted(ids, step, hidden=hidden):
            nonlocal running, max_running
            with lock:
                running += 1
                max_running = max(max_running, running)
            try:
                return hidden(ids, step)
            finally:
                with lock:
                    running -= 1

        model.lm.model.hidden = counted
    texts: list[tuple[str, str]] = []

    def ask(name):
        response = httpx2.post(f"{url}/v1/completions", json=completion_body(name, max_tokens=8), timeout=60)
        texts.append((name, response.json()["choices"][0]["text"]))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("one", "two", "one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max_running == 1
    assert sorted(texts) == sorted([*alone.items()] * 2)


def test_error_during_a_stream_is_its_last_event(slow, caplog):
    url, _, models = slow
    hidden = models["one"].lm.model.hidden

    def fails(ids, step):
        if models["one"].passes > 5:
            raise RuntimeError("a tensor went missing")
        return hidden(ids, step)

    models["one"].lm.model.hidden = fails
    with httpx2.stream("POST", f"{url}/v1/completions", json=completion_body("one", stream=True)) as response:
        lines = [line for line in response.iter_lines() if line]
    last = json.loads(lines[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert "went missing" not in lines[-1], "unexpected errors are logged, not shown"
    assert "went missing" in caplog.text
    models["one"].passes = 0
    assert httpx2.post(f"{url}/v1/completions", json=completion_body("one", max_tokens=1)).status_code == 200
    models["one"].passes = 9
    for path in ("/v1/completions", "/v1/traces"):
        response = httpx2.post(f"{url}{path}", json=completion_body("one", max_tokens=4))
        assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        models["one"].passes = 0
        with pytest.raises(openai.APIError):
            list(client.completions.create(model="one", prompt="the", max_tokens=LONG, stream=True))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_is_reported(slow, error):
    url, _, models = slow

    def fails(ids, step):
        raise error

    models["one"].lm.model.hidden = fails
    response = httpx2.post(f"{url}/v1/completions", json=completion_body("one"))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "out_of_memory")


def test_responses_use_tcp_nodelay(slow):
    """Without TCP_NODELAY the body waits 40 ms for the acknowledgement of the headers."""
    url, app, _ = slow
    connections = app.state.server.server_state.connections
    with httpx2.Client(base_url=url) as http:
        http.get("/health")
        sockets = [connection.transport.get_extra_info("socket") for connection in connections]
        assert sockets
        assert all(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in sockets)


def test_large_requests_do_not_delay_small_ones_or_the_shutdown(monkeypatch):
    """While the tokenizer encodes a large text, other requests are answered, and clients and the server can stop."""
    lm, stuck, go = tiny_lm(context_length=1 << 17, chat=True), [], threading.Event()
    encode = lm.tokenizer.backend.encode

    def slowly(texts, **options):
        if sum(map(len, texts)) > 50_000:
            stuck.append(True)
            go.wait()
        return encode(texts, **options)

    lm.tokenizer.backend.encode = slowly
    message = {"role": "user", "content": "the " * 20_000}
    large = [
        ("/v1/completions", completion_body("m", prompt="the " * 20_000)),
        ("/v1/completions", completion_body("m", prompt="the " * 20_000, stream=True)),
        ("/v1/chat/completions", {"model": "m", "messages": [message]}),
        ("/v1/traces", {"model": "m", "prompt": "the " * 20_000}),
    ]
    with serving([("m", lm)], drain=0.1) as (url, app):
        sockets = [open_request(url, *request) for request in large]
        wait_until(lambda: stuck and app.state.preparation.queue_for(1 << 20).state["waiting"] == 3)
        small = ["/v1/completions", "/v1/traces", "/v1/chat/completions"]
        for path in small:
            body = {"model": "m", "max_tokens": 1} | (
                {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "the"}
            )
            assert httpx2.post(url + path, json=body, timeout=60).status_code in (200, 201)
        for sock in sockets[1:]:
            sock.close()
        wait_until(lambda: app.state.preparation.queue_for(1 << 20).state["waiting"] == 0)
    assert len(stuck) == 1, "requests whose client has disconnected are not prepared"
    go.set()


# ---- the queue without a server


def run(test, **options):
    """Run a queue test on its own event loop and thread."""

    async def main():
        queue = WorkQueue(**options)
        try:
            await test(queue)
        finally:
            queue.close()
            await asyncio.to_thread(queue.join, 30)
            assert not queue._thread.is_alive()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, main()).result()


def test_full_queue_rejects():
    async def test(queue):
        go = threading.Event()
        jobs = [queue.submit(lambda _: iter([go.wait()]))]
        while queue.state["running"] == 0:
            await asyncio.sleep(0.001)
        jobs += [queue.submit(lambda _: [1]) for _ in range(MAX_WAITING)]
        with pytest.raises(ApiError, match=r"the queue is full \(256 requests\)") as error:
            queue.submit(lambda _: [1])
        assert error.value.status == 429
        go.set()
        assert [[item async for item in job] for job in jobs] == [[True], *[[1]] * MAX_WAITING]

    run(test, max_running=1)


def test_steps_of_jobs_are_interleaved_and_quick_jobs_run_between_them():
    async def test(queue):
        order, begun, go = [], threading.Event(), threading.Event()

        def long(check):
            begun.set()
            go.wait()
            for i in range(3):
                check()
                order.append(f"long {i}")
                yield i

        def note(name):
            return lambda _: iter([order.append(name) or name])

        jobs = [queue.submit(long), queue.submit(note("next"))]
        begun.wait()
        jobs += [queue.submit(note(f"quick {i}"), quick=True) for i in range(2)]
        go.set()
        for job in jobs:
            assert [item async for item in job]
        assert order == ["long 0", "quick 0", "quick 1", "next", "long 1", "long 2"]

    run(test)


@pytest.mark.parametrize("kind", ["stream", "score", "trace", "trace of a continuation"])
def test_a_long_text_is_processed_in_turns_with_other_jobs(kind):
    """After each chunk of a prefill, a score or a trace, the next job has its turn."""
    lm = LanguageModel(tiny("llama", context_length=2048))
    ids, n_chunks = [7, 3, 9, 4] * 400, -(-1600 // PREFILL_CHUNK)
    assert n_chunks == 4

    async def test(queue):
        order, go, hidden = [], threading.Event(), lm.model.hidden
        lm.model.hidden = lambda *args: (order.append("chunk"), hidden(*args))[1]

        def long(check):
            go.wait()
            if kind == "stream":
                return lm.stream_with_pauses([ids], max_tokens=1, before_forward=check)
            if kind == "score":
                return with_value(lm.score_with_pauses(ids, before_forward=check))
            more = 1 if kind == "trace of a continuation" else None
            return lm.trace_with_pauses(ids, max_tokens=more, before_forward=check)

        def other(check):
            for _ in range(3):
                order.append("other")
                yield "other"

        jobs = [queue.submit(long), queue.submit(other)]
        go.set()
        found = [[item async for item in job] for job in jobs]
        assert order[:7] == ["chunk", "other"] * 3 + ["chunk"]
        assert found[0]
        assert None not in found[0]

    run(test)


def test_a_streamed_quick_job_does_not_delay_later_ones():
    async def test(queue):
        order, begun, go = [], threading.Event(), threading.Event()

        def stream_rows(check):
            begun.set()
            go.wait()
            for i in range(3):
                check()
                order.append(f"row {i}")
                yield i

        def note(name):
            return lambda _: iter([order.append(name) or name])

        jobs = [queue.submit(stream_rows, quick=True)]
        await asyncio.to_thread(begun.wait)
        jobs += [queue.submit(note("quick"), quick=True), queue.submit(note("next"))]
        go.set()
        for job in jobs:
            assert [item async for item in job]
        assert order == ["row 0", "quick", "row 1", "row 2", "next"]

    run(test)


def test_quick_and_long_jobs_share_the_thread():
    """With hundreds of streamed quick jobs, long ones still run, and the quick ones advance evenly, in order."""

    async def test(queue):
        order, n_quick, n_rows, n_tokens = [], MAX_WAITING, 4, 40

        def steps(name, n, begun=None, go=None):
            def work(check):
                for _ in range(n):
                    if begun is not None:
                        begun.set()
                        go.wait()
                    check()
                    order.append(name)
                    yield name

            return work

        begun, go = threading.Event(), threading.Event()
        jobs = [queue.submit(steps("first", n_tokens, begun, go))]
        await asyncio.to_thread(begun.wait)
        jobs.append(queue.submit(steps("second", n_tokens)))
        jobs += [queue.submit(steps(i, n_rows), quick=True) for i in range(n_quick)]
        with pytest.raises(ApiError, match="the queue is full"):
            queue.submit(steps("one too many", 1), quick=True)
        go.set()
        for job in jobs:
            assert len([item async for item in job]) in (n_rows, n_tokens)
        quick = [name for name in order if isinstance(name, int)]
        assert quick == [*range(n_quick)] * n_rows
        tokens = [i for i, name in enumerate(order) if isinstance(name, str)]
        assert [order[i] for i in tokens] == ["first", "second"] * n_tokens
        gaps = [later - earlier - 1 for earlier, later in itertools.pairwise(tokens)]
        assert gaps[:-1] == [QUICK_STEPS] * (2 * n_tokens - 2), (
            "between two tokens there are at most so many quick steps"
        )

    run(test)


def test_running_jobs_fit_the_memory_and_start_in_order():
    async def test(queue):
        order, max_memory = [], 0

        def work(name, memory):
            def steps(check):
                nonlocal max_memory
                for _ in range(3):
                    order.append(name)
                    max_memory = max(max_memory, sum(job.memory for job in queue._running))
                    yield name

            return queue.submit(steps, memory=memory)

        begun, go = threading.Event(), threading.Event()
        first = queue.submit(lambda _: iter([begun.set() or go.wait()]))
        await asyncio.to_thread(begun.wait)
        jobs = [first, work("a", 6), work("b", 4), work("c", 10), work("d", 1)]
        go.set()
        for job in jobs:
            assert [item async for item in job]
        assert order == ["a", "b"] * 3 + ["c"] * 3 + ["d"] * 3
        assert max_memory == 10

    run(test, memory=10)


def test_job_pauses_until_its_client_reads():
    async def test(queue):
        n_yielded = 0

        def endless(check):
            nonlocal n_yielded
            while True:
                check()
                n_yielded += 1
                yield n_yielded

        slow = queue.submit(endless)
        for n_read in (0, MAX_UNREAD // 2, MAX_UNREAD):
            while n_yielded < n_read + MAX_UNREAD:
                await asyncio.sleep(0.001)
            assert [item async for item in queue.submit(lambda _: [1, 2])] == [1, 2], "others continue"
            assert n_yielded == n_read + MAX_UNREAD
            received = [await slow._next() for _ in range(MAX_UNREAD // 2)]
            assert [value for _, value in received] == list(range(n_read + 1, n_read + MAX_UNREAD // 2 + 1))
        slow.cancel()
        while queue.state["running"]:
            await asyncio.sleep(0.001)

    run(test)


def test_cancelled_job_frees_its_memory():
    """Without garbage collection: the traceback of a cancelled job must not refer to its frames and cache."""

    async def test(queue):
        references = []

        def work(check):
            storage = torch.zeros(1000)
            references.append(weakref.ref(storage))

            def forward():
                inner = storage + 1
                references.append(weakref.ref(inner))
                yield 1
                while True:
                    check()

            yield from forward()

        job = queue.submit(work)
        await job.wait_started()
        assert all(ref() is not None for ref in references)
        job.cancel()
        while queue.state["running"]:
            await asyncio.sleep(0.001)
        assert [ref() for ref in references] == [None, None]

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


def test_close_cancels_quick_jobs_inside_a_running_job():
    async def test(queue):
        def endless(check):
            while True:
                check()
                time.sleep(0.001)
                yield 1

        jobs = [queue.submit(endless)]
        await jobs[0].wait_started()
        jobs.append(queue.submit(endless, quick=True))
        await jobs[1].wait_started()
        queue.close()
        for job in jobs:
            with pytest.raises(ClientDisconnected):
                async for _ in job:
                    pass

    run(test)


def test_close_cancels_running_and_waiting_jobs():
    async def test(queue):
        closed = []

        def endless(check):
            try:
                while True:
                    check()
                    yield 1
            finally:
                closed.append(True)

        jobs = [queue.submit(endless), queue.submit(endless)]
        await jobs[0].wait_started()
        queue.close()
        for job in jobs:
            with pytest.raises(ClientDisconnected):
                async for _ in job:
                    pass
        with pytest.raises(ApiError, match="shutting down"):
            queue.submit(endless)
        await asyncio.to_thread(queue.join, 30)
        assert closed == [True], "the generator must be closed"

    run(test, max_running=1)


def test_errors_belong_to_their_job():
    async def test(queue):
        def fails(_):
            yield 1
            raise KeyError("x")

        bad, good = queue.submit(fails), queue.submit(lambda _: [2])
        await bad.wait_started()
        with pytest.raises(KeyError):
            [item async for item in bad]
        assert [item async for item in good] == [2]

    run(test)

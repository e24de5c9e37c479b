"""A client that is slow, or sends half of a request, delays nobody: real sockets, and a real process with few files."""

import json
import resource
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
from server.conftest import serving, tiny_lm
from server.test_queue import SlowModel, completion_body, open_request, wait_until

from glassformer.server import connection

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"model": "m", "prompt": "the", "max_tokens": 1}).encode()


def connect(url, data=b""):
    host, port = url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=60)
    sock.sendall(data)
    return sock


def received(sock):
    """Return all that the server sends until it closes the connection."""
    found = b""
    try:
        while part := sock.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


@pytest.fixture
def served(monkeypatch):
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(connection, name, 0.2)
    with serving([("m", tiny_lm())]) as (url, app):
        yield url, app


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nHost: loc", b"HTTP/1.1 408"),
        (HEAD, b"HTTP/1.1 408"),
        (HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY), b"HTTP/1.1 408"),
        (HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:-1], b"HTTP/1.1 408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b"HTTP/1.1 408"),
    ],
    ids=["nothing", "half a line", "half a head", "no body", "half a body", "half a chunk"],
)
def test_half_a_request_times_out(served, caplog, data, answer):
    url, app = served
    with connect(url, data) as sock:
        found = received(sock)
    assert found.startswith(answer)
    assert bool(found) == bool(answer)
    wait_until(lambda: not app.state.server.server_state.connections)
    wait_until(lambda: not app.state.server.server_state.tasks)
    assert "Traceback" not in caplog.text


def test_slow_bytes_do_not_extend_the_time(served):
    """A byte now and then does not keep a connection open."""
    with connect(served[0], HEAD + b"X-Slow: ") as sock:
        sock.settimeout(0.02)
        for _ in range(3000):
            try:
                sock.sendall(b"a")
                found = sock.recv(1 << 16)
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
            assert not found or found.startswith(b"HTTP/1.1 408")
            break
        else:
            pytest.fail("the connection stays open")


def test_a_request_on_an_open_connection_has_the_same_time(served):
    """Half of a second request times out, too, and a complete one is answered."""
    with connect(served[0], HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY) as sock:
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert received(sock).count(b"HTTP/1.1 200") == 1
    with connect(served[0], HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY) as sock:
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
        sock.sendall(b"GET /health HTTP/1.1\r\n")
        assert b"HTTP/1.1 408" in received(sock)


def test_a_rejected_client_cannot_keep_its_connection(served):
    """The answer comes before the body, whose rest must arrive in time."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000\r\n\r\n{"
    with connect(served[0], head) as sock:
        assert received(sock).startswith(b"HTTP/1.1 403")


def test_a_long_computation_does_not_time_out(monkeypatch):
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(connection, name, 0.1)
    slow = SlowModel(seconds=0.05)
    with serving([("one", slow.lm)]) as (url, _):
        answer = httpx2.post(f"{url}/v1/completions", json=completion_body("one", max_tokens=20), timeout=60)
    assert answer.status_code == 200
    assert slow.passes > 5, "longer than all limits"


def test_a_client_that_does_not_read_is_disconnected(served):
    """It asks for more bytes than the buffers of both sockets hold, and stays connected."""
    url, app = served
    size = len(httpx2.get(f"{url}/openapi.json").content)
    n = 32 * 2**20 // size
    with connect(url, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * n) as sock:
        wait_until(lambda: not app.state.server.server_state.connections)
        assert len(received(sock)) < n * size


def test_too_many_connections_close_the_oldest_that_wait(monkeypatch):
    monkeypatch.setattr("glassformer.server.run.MAX_CONNECTIONS", 4)
    slow = SlowModel()
    with serving([("one", slow.lm)]) as (url, app):
        busy = [open_request(url, "/v1/completions", completion_body("one", stream=True)) for _ in range(2)]
        for sock in busy:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        half = [connect(url, b"GET /health HTTP/1.1\r\n") for _ in range(20)]
        assert httpx2.get(f"{url}/health").status_code == 200
        assert received(half[0]) == b""
        wait_until(lambda: len(app.state.server.server_state.connections) <= 4)
        for sock in busy:
            assert sock.recv(100), "requests that run are not closed"
        for sock in half:
            sock.close()
        more = [open_request(url, "/v1/completions", completion_body("one", stream=True)) for _ in range(2)]
        for sock in more:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        with connect(url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock:
            assert received(sock).startswith(b"HTTP/1.1 503"), "all connections are busy"
        for sock in (*busy, *more):
            sock.close()


def test_shutdown_closes_half_requests_at_once(caplog):
    """Without waiting for the time of a head or of a body, or for the time of running requests."""
    with serving([("m", tiny_lm())], drain=3600) as (url, app):
        half = [connect(url, data) for data in (b"GET", HEAD, HEAD + b"Content-Length: 9\r\n\r\n{")]
        wait_until(lambda: len(app.state.server.server_state.connections) == 3)
        app.state.server.should_exit = True
        for sock in half:
            assert received(sock) == b""
    assert "Traceback" not in caplog.text


def test_half_heads_lock_nobody_out(tmp_path):
    """1,100 half heads at a server that may open 256 files: others are answered, and SIGTERM ends it."""
    tiny_lm(context_length=64).save(tmp_path / "m")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip("this test needs 1,300 open files")
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "glassformer", "serve", str(tmp_path / "m"), "--port", "0", "--threads", "1"],
            stdout=subprocess.PIPE, stderr=log, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        )  # fmt: skip
        half = []
        try:
            url = process.stdout.readline().split()[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
            for i in range(1100):
                half.append(connect(url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n"))
                if i % 50 == 49:
                    answer = httpx2.post(f"{url}/v1/completions", json=json.loads(BODY), timeout=60)
                    assert answer.status_code == 200
            half.append(connect(url, HEAD + b"Content-Length: 9\r\n\r\n{"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            for sock in half:
                sock.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        log.seek(0)
        said = log.read()
        assert "Traceback" not in said
        assert "cancelling requests" not in said, "half requests must not wait for the time of running ones"

"""Seeded random HTTP requests to a real server process: bodies that are nearly valid, heads, half requests.

    python tests/server/http_fuzz.py 20000 [--seed 0]

The server must answer each complete request, never with a status of 5xx; answer /health throughout; use little memory;
and end at SIGTERM while half requests and a running one are open.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1]), str(HERE.parents[1] / "generate")]

import httpx2  # noqa: E402
from mutate import ODD_VALUES, mutate_bytes, mutate_json  # noqa: E402
from server.conftest import tiny_lm  # noqa: E402

SECONDS = 120  # without an answer: a hang
MAX_GROWTH = 400 << 20  # bytes of memory
MESSAGES = [{"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "the cat"}]}]
EDIT = {"op": "scale", "point": "blocks.0.attn.z", "head": [0, 1], "position": -1, "factor": 0.5}
SAMPLING = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stop": ["zz", "q"], "logit_bias": {"5": -2},
    "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2,
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "m", "prompt": ["the", "cat"], "max_tokens": 3, "n": 2, "logprobs": 2, "echo": True,
                        "stream": True, "stream_options": {"include_usage": True}, "edits": [EDIT], **SAMPLING},
    "/v1/chat/completions": {"model": "m", "messages": MESSAGES, "max_completion_tokens": 3, "logprobs": True,
                             "top_logprobs": 2, "stream": False, **SAMPLING},
    "/v1/traces": {"model": "m", "prompt": [5, 6, 7], "max_tokens": 2, "capture": ["blocks.0.attn.*"], "top": 2,
                   "edits": [EDIT], **SAMPLING},
    "/v1/sweeps": {"trace": "?", "over": "heads", "op": "scale", "factor": 0.5, "target": 5, "position": 1},
    "/v1/vectors": {"values": [0.5, -1.0]},
}  # fmt: skip
PATHS = (
    "/", "/health", "/openapi.json", "/v1/models", "/v1/models/m", "/v1/models/m/views/anatomy", "/v1/traces",
    "/v1/traces/{id}", "/v1/traces/{id}/names", "/v1/traces/{id}/focus", "/v1/traces/{id}/views/lens?stream=true",
    "/v1/traces/{id}/views/cell?layer=0&head=1&query=1&key=0", "/v1/traces/{id}/views/summary",
    "/v1/traces/{id}/tensors/blocks.0.attn.q?slice=0:2,1&dtype=f16", "/v1/traces/{id}/views/fork?other={id}",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "G\tT", "")
HEADERS = (
    "Host", "Origin", "Authorization", "Content-Type", "Content-Length", "Transfer-Encoding", "Expect", "Connection",
    "Sec-Fetch-Site", "If-None-Match", "Accept-Encoding", "Upgrade", "X-Forwarded-For", "Cookie", "Range",
)  # fmt: skip
VALUES = (
    "", "localhost", "evil.example", "http://[", "[::1", "null", "-1", "0", "5", "99999999999999999999", "chunked",
    "gzip", "100-continue", "close, upgrade", "websocket", "cross-site", "*", "bytes=0-1", "application/json",
    "text/plain; charset=\xff", "application/json; charset=utf-16", "a" * 20_000, "Bearer \xe9", "\x00", "\t", "é",
)  # fmt: skip


def random_request(rng: random.Random, trace: str) -> tuple[bytes, bool]:
    """Return the bytes of a request, and whether the server must answer it."""
    if rng.random() < 0.75:
        method, path = "POST", rng.choice(list(BODIES))
        value: Any = BODIES[path] | ({"trace": trace} if path == "/v1/sweeps" else {})
        value = {name: one for name, one in value.items() if rng.random() < 0.7 or name in ("model", "trace")}
        if rng.random() < 0.9:
            value = mutate_json(value, rng)
        body = json.dumps(value).encode()
        if rng.random() < 0.1:
            body = mutate_bytes(body, rng)
    else:
        method, path, body = rng.choice(("GET", "GET", *METHODS)), rng.choice(PATHS).replace("{id}", trace), b""
        if rng.random() < 0.5:
            path = "/" + mutate_bytes(path[1:].encode(), rng).decode("latin-1")
        if rng.random() < 0.2:
            body = json.dumps(rng.choice(ODD_VALUES)).encode()
    headers = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body))}
    damaged = rng.random() < 0.2
    if damaged:
        for _ in range(rng.randint(1, 3)):
            headers[rng.choice(HEADERS)] = rng.choice(VALUES)
    headers["Connection"] = "close"
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    data = head.encode("latin-1", "replace") + body
    if rng.random() < 0.05:
        return data[: rng.randrange(len(data) + 1)], False
    if rng.random() < 0.05:
        return mutate_bytes(data, rng), False
    return data, not damaged


class FuzzedServer:
    """A process that serves a tiny model with a chat template."""

    def __init__(self, folder: Path):
        tiny_lm(chat=True, context_length=64).save(folder / "m")
        self.log = open(folder / "log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glassformer", "serve", str(folder / "m"), "--port", "0", "--threads", "1"],
            stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=HERE.parents[2],
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[1]
        self.address = "127.0.0.1", int(self.url.rpartition(":")[2])
        trace = httpx2.post(f"{self.url}/v1/traces", json={"model": "m", "prompt": "the cat"}, timeout=SECONDS)
        self.trace = trace.json()["id"]

    @property
    def memory(self) -> int:
        """The resident memory in bytes."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def answer(self, data: bytes, wait: bool) -> bytes:
        """Send a request; return all that the server sends. Without `wait`, disconnect after a moment."""
        with socket.create_connection(self.address, timeout=SECONDS) as sock:
            found = b""
            try:
                sock.sendall(data)
                sock.settimeout(SECONDS if wait else 0.05)
                while part := sock.recv(1 << 16):
                    found += part
            except (ConnectionResetError, BrokenPipeError):
                pass
            except TimeoutError:
                if wait:
                    raise
        return found

    def stop(self) -> int | None:
        """Send SIGTERM; return the exit status, or None if the process does not end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return None


def run_fuzzer(n: int, seed: int, folder: Path) -> list[str]:
    """Send `n` random requests; return the failures."""
    server, failures, answered = FuzzedServer(folder), [], 0
    try:
        before = server.memory
        for i in range(n):
            rng = random.Random(f"{seed} {i}")
            data, complete = random_request(rng, server.trace)
            try:
                found = server.answer(data, complete)
            except TimeoutError:
                failures.append(f"request {i}: no answer after {SECONDS} s: {data[:300]!r}")
                continue
            status = found[9:12]
            answered += bool(found)
            if status.startswith(b"5") or (complete and not found) or b"internal error" in found:
                failures.append(f"request {i}: {found[:300]!r} to {data[:2000]!r}")
            if server.process.poll() is not None:
                failures.append(f"request {i}: the server ended with status {server.process.returncode}")
                return failures
            if i % 20 == 0 and httpx2.get(f"{server.url}/health", timeout=SECONDS).status_code != 200:
                failures.append(f"request {i}: /health fails")
            if i % 1000 == 999:
                print(f"{i + 1} requests, {len(failures)} failures, {server.memory >> 20} MB", flush=True)
        if answered < n // 2:
            failures.append(f"only {answered} of {n} requests were answered")
        if server.memory - before > MAX_GROWTH:
            failures.append(f"the memory grew by {server.memory - before:,} bytes")
        half = []
        for data in (b"", b"GET /health HT", b"POST /v1/vectors HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"):
            half.append(socket.create_connection(server.address))
            half[-1].sendall(data)
        if (status := server.stop()) != 0:
            failures.append(f"the exit status after SIGTERM is {status}")
        for sock in half:
            sock.close()
        server.log.seek(0)
        if "Traceback" in (said := server.log.read()):
            failures.append(f"the log has a traceback: {said[said.index('Traceback') :][:2000]}")
    finally:
        server.process.kill()
        server.process.wait()
        server.log.close()
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requests", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        failures = run_fuzzer(args.requests, args.seed, Path(folder))
    for line in failures:
        print("WRONG", line)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

"""`glassformer serve` as a process: what it says, what it refuses, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest
from generate.scripted import make_tokenizer
from server.conftest import tiny_lm

from glassformer.cli import main
from glassformer.cli.demo import wants_page
from glassformer.cli.serve import KEY
from glassformer.server.models import split_name
from glassformer.server.run import bind, server_url
from glassformer.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two model folders."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("alpha", "beta")):
        tiny_lm(seed=seed, context_length=256).save(folder / name)
    return folder


class Process:
    """A running server: its address, and all that it has said."""

    def __init__(self, *arguments, command=(), **environment):
        command = command or ["serve", *map(str, arguments), "--threads", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glassformer", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.ready = self.process.stdout.readline()
        assert self.ready, self.process.communicate()[1]
        found = re.search(r"http://\S+\d", self.ready)
        self.url = found[0] if found else ""

    def end(self, *signals):
        """(status, stderr) after these signals, some time between them."""
        for one in signals:
            self.process.send_signal(one)
            time.sleep(0.3)
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def test_serves_several_models_and_stops_on_ctrl_c(folders):
    with Process(folders / "alpha", f"b={folders / 'beta'}", "--port", 0) as server:
        assert server.ready.startswith("ready: http://127.0.0.1:")
        health = httpx2.get(f"{server.url}/health").json()
        assert health["models"] == ["alpha", "b"]
        chosen = {(one["model"], one["what"]): one for one in health["choices"]}
        assert chosen["alpha", "device"]["value"] == "cpu"
        assert all(one["because"] for one in health["choices"])
        assert {what for _, what in chosen} == {"device", "dtype", "kernels", "attention", "linear"}
        status, said = server.end(signal.SIGINT)
    assert status == 0, said
    assert "GET /health 200" in said
    assert "WARNING" not in said
    assert "Traceback" not in said


def test_key_from_the_environment_and_json_output(folders):
    with Process(folders / "alpha", "--port", 0, "--host", "0.0.0.0", "--json", **{KEY: "from-outside"}) as server:
        told = json.loads(server.ready)
        assert told["models"] == ["alpha"]
        assert httpx2.get(f"{told['url']}/health").status_code == 401
        assert httpx2.get(f"{told['url']}/health", headers={"authorization": "Bearer from-outside"}).status_code == 200
        status, said = server.end(signal.SIGTERM)
    assert status == 0
    assert "from-outside" not in said
    assert "WARNING" not in said


def test_open_address_without_key_warns(folders):
    with Process(folders / "alpha", "--port", 0, "--host", "0.0.0.0") as server:
        assert server.url.startswith("http://127.0.0.1:"), "an address that can be opened"
        _, said = server.end(signal.SIGINT)
    assert "WARNING: other machines can connect to 0.0.0.0 without an API key" in said


LONG = {"model": "alpha", "prompt": ["the"] * 3, "n": 8, "max_tokens": 250, "stream": True, "seed": 1, "logprobs": 20}


def test_ctrl_c_lets_running_requests_finish(folders):
    with Process(folders / "alpha", "--port", 0) as server:
        with httpx2.stream("POST", f"{server.url}/v1/completions", json=LONG, timeout=120) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            server.process.send_signal(signal.SIGINT)
            *_, last = lines
        assert last == "data: [DONE]"
        status, said = server.end()
    assert status == 0, said
    assert "shutting down: 1 requests have 20 s to finish; Ctrl-C again cancels them" in said
    assert "Traceback" not in said


def test_second_ctrl_c_cancels_requests(folders):
    with Process(folders / "alpha", "--port", 0) as server:
        with httpx2.stream("POST", f"{server.url}/v1/completions", json=LONG, timeout=120) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            status, said = server.end(signal.SIGINT, signal.SIGINT)
            *_, last = lines
        assert "shutting down" in last
    assert status == 130, said
    assert "cancelling requests: second signal" in said
    assert "Traceback" not in said


def test_requests_are_cancelled_after_the_drain_time(folders):
    """As the process does it, with less patience."""
    from server.conftest import serving

    with (
        serving([("alpha", tiny_lm(context_length=256))], drain=0.2) as (url, app),
        httpx2.stream("POST", f"{url}/v1/completions", json=LONG, timeout=120) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        app.state.server.should_exit = True
        *_, last = lines
    assert "shutting down" in last


def stderr_of(capfd, *arguments, status=1):
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["serve", *map(str, arguments)])
    assert stop.value.code == status
    return capfd.readouterr().err


def test_bad_arguments_are_rejected(capfd, folders, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    alpha = folders / "alpha"
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        said = stderr_of(capfd, alpha, "--port", port)
        assert f"port {port} of 127.0.0.1 is in use" in said
        assert "--port 0" in said
    assert "MODEL is missing" in stderr_of(capfd)
    assert "the same name: alpha, alpha" in stderr_of(capfd, alpha, f"alpha={folders / 'beta'}", "--port", 0)
    assert "0 (any free port) to 65535, got 70000" in stderr_of(capfd, alpha, "--port", 70000)
    assert "'no such host' is not an address" in stderr_of(capfd, alpha, "--host", "no such host")
    assert "cannot be used" in stderr_of(capfd, alpha, "--host", "192.0.2.1", "--port", 0)
    assert "the API key is empty" in stderr_of(capfd, alpha, "--api-key", "", "--port", 0)
    assert "nowhere" in stderr_of(capfd, folders / "nowhere", "--port", 0)
    assert "trace_bytes must be at least 1" in stderr_of(capfd, alpha, "--trace-memory", 0, "--port", 0)
    assert stderr_of(capfd, alpha, "--frob", status=2)


def test_help_imports_no_heavy_packages():
    code = "import sys, glassformer.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'fastapi', 'uvicorn', 'pydantic', 'openai'} & set(sys.modules), 'heavy imports'"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_split_name(tmp_path, monkeypatch):
    for name in ("run", "a=b"):
        (tmp_path / name).mkdir()
    (tmp_path / "m.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert split_name("run") == ("run", "run")
    assert split_name(f"{tmp_path}/run/") == ("run", f"{tmp_path}/run/")
    assert split_name("x=run") == ("x", "run")
    assert split_name("a=b") == ("a=b", "a=b"), "a folder of this name"
    assert split_name("m.gguf") == ("m", "m.gguf")
    assert split_name("stories") == ("stories", "stories")
    assert split_name("owner/name@1f") == ("owner/name@1f", "owner/name@1f")
    assert split_name(".") == (tmp_path.name, ".")


def test_model_name_with_a_slash():
    from server.conftest import serving

    with serving([("owner/name", tiny_lm())]) as (url, _):
        assert httpx2.get(f"{url}/v1/models/owner/name").json()["id"] == "owner/name"
        assert httpx2.get(f"{url}/v1/models/owner/name/views/tokens?text=the").status_code == 200
        assert httpx2.get(f"{url}/v1/models/owner").status_code == 404


def test_model_without_tokenizer_accepts_ids():
    from server.conftest import serving
    from tiny import tiny

    from glassformer.models.language_model import LanguageModel

    lm = LanguageModel(tiny("llama"))
    with serving([("m", lm)]) as (url, _):
        ids = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 4, "seed": 1}
        found = httpx2.post(f"{url}/v1/completions", json=ids | {"logprobs": 1, "echo": True}).json()["choices"][0]
        written = lm.generate([1, 2, 3], max_tokens=4, seed=1).continuations[0].ids
        assert found["logprobs"]["tokens"] == [str(id) for id in (1, 2, 3, *written)]
        told = httpx2.post(f"{url}/v1/traces", json=ids).json()
        assert [(t["text"], t["bytes"]) for t in told["tokens"]] == [(f"#{id}", None) for id in (1, 2, 3, *written)]
        answer = httpx2.post(f"{url}/v1/completions", json=ids | {"prompt": "text"})
        assert (answer.status_code, "no tokenizer" in answer.text) == (400, True)
        answer = httpx2.get(f"{url}/v1/models/m/views/tokens?text=a")
        assert answer.status_code == 400


def test_ipv6_address():
    try:
        sock = bind("::1", 0)
    except Exception:
        pytest.skip("this machine has no IPv6")
    with sock:
        assert server_url(sock) == f"http://[::1]:{sock.getsockname()[1]}"
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert server_url(other).startswith("http://127.0.0.1:")


def test_chat_template_survives_saving(tmp_path):
    """What `served` says of a folder's model is what the model can."""
    from server.conftest import TEMPLATE, serving

    from glassformer.models.load import load

    lm = tiny_lm()
    lm.tokenizer = Tokenizer(make_tokenizer().backend, make_tokenizer().config, chat_template=TEMPLATE)
    lm.save(tmp_path)
    with serving([("m", load(tmp_path))]) as (url, _):
        body = {"model": "m", "messages": [{"role": "user", "content": "the"}], "max_tokens": 2}
        assert httpx2.post(f"{url}/v1/chat/completions", json=body).status_code == 200


def test_demo_serves_its_model(tmp_path):
    """Trained, measured, served; and a script that does not ask for the page is not kept waiting."""
    assert not wants_page(None, terminal=False)
    assert wants_page(None, terminal=True)
    assert not wants_page(False, terminal=True)
    command = f"demo --seconds 1 --threads 1 --serve --json --out {tmp_path / 'tale'}"
    with Process(command=command.split()) as server:
        assert set(json.loads(server.ready)) >= {"folder", "scores", "stories"}
        told = json.loads(server.process.stdout.readline())
        assert told["models"] == ["tale"]
        body = {"model": "tale", "prompt": "One day", "max_tokens": 5}
        assert httpx2.post(f"{told['url']}/v1/traces", json=body).status_code == 201
        assert httpx2.get(told["url"]).status_code == 200
        assert server.end(signal.SIGINT)[0] == 0

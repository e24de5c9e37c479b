"""A real server on loopback over tiny models, stopped by its fixture."""

import asyncio
import threading
from contextlib import contextmanager

import httpx2
import openai
import pytest
from generate.scripted import make_tokenizer
from tiny import tiny

from glassformer.models.language_model import LanguageModel
from glassformer.server.app import Settings, make_app
from glassformer.server.run import Server, bind, server_url
from glassformer.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_lm(family="qwen3", seed=0, *, chat=False, **changes):
    """A tiny model with a byte-level tokenizer."""
    tokenizer = make_tokenizer()
    if chat:
        tokenizer = Tokenizer(tokenizer.backend, tokenizer.config, chat_template=TEMPLATE)
    return LanguageModel(tiny(family, seed, vocab_size=tokenizer.vocab_size, **changes), tokenizer)


@contextmanager
def serving(models, settings=Settings(), **options):  # noqa: B008
    """Run a server and yield its URL and its app."""
    app, sock = make_app(models, settings), bind("127.0.0.1", 0)
    sock.listen()
    begun = threading.Event()
    server = app.state.server = Server(app, begun.set, **({"drain": 5} | options))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    try:
        assert begun.wait(60), "the server did not start"
        yield server_url(sock), app
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def lms():
    """The served models by name: one with a chat template, one of another family."""
    return {"talker": tiny_lm(chat=True, context_length=256), "other": tiny_lm("llama", 1)}


@pytest.fixture(scope="session")
def served(lms):
    with serving(list(lms.items())) as (url, app):
        yield url, app


@pytest.fixture(scope="session")
def http(served):
    """A plain HTTP client."""
    with httpx2.Client(base_url=served[0], timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def client(served):
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="not needed", max_retries=0) as client:
        yield client


def assert_error(answer, status, *words, param=None, code=None):
    """Assert that a response is an error with this status whose message contains these words."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"], error["message"]
    if param is not None:
        assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code, error
    return error

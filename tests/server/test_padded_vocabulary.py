"""A model whose tables have more rows than its tokenizer has tokens: every route answers, with "#82" for such a row."""

import json

import httpx2
import pytest
from server.conftest import serving
from tiny import tiny

from glassformer.models.language_model import LanguageModel
from glassformer.text.train import train_tokenizer

ROWS = 97


@pytest.fixture(scope="module")
def client():
    tokenizer = train_tokenizer(["abc cab "], kind="char", vocab_size=18)
    lm = LanguageModel(tiny("qwen3", vocab_size=ROWS), tokenizer)
    with serving([("m", lm)]) as (url, _), httpx2.Client(base_url=url, timeout=60) as client:
        yield client


PROMPTS = ["abc", [1, 82, 3]]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("echo", [False, True])
def test_logprobs(client, prompt, echo):
    body = {"model": "m", "prompt": prompt, "max_tokens": 2, "seed": 1, "logprobs": 5, "echo": echo, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    logprobs = answer.json()["choices"][0]["logprobs"]
    assert ("#82" in logprobs["tokens"]) == (echo and prompt == PROMPTS[1])
    assert any(text.startswith("#") for top in logprobs["top_logprobs"] if top for text in top)
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["text"] for choice in choices) == answer.json()["choices"][0]["text"]
    assert [t for choice in choices if choice["logprobs"] for t in choice["logprobs"]["tokens"]] == logprobs["tokens"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_traces(client, prompt):
    body = {"model": "m", "prompt": prompt, "max_tokens": 2, "temperature": 0}
    with client.stream("POST", "/v1/traces", json=body | {"stream": True}) as stream:
        assert stream.status_code == 200
        text = "".join(stream.iter_text())
    assert "error" not in text
    trace = client.post("/v1/traces", json={"model": "m", "prompt": prompt})
    assert trace.status_code in (200, 201), trace.text
    tokens = trace.json()["tokens"]
    missing = [token for token in tokens if token["text"] == "#82"]
    assert [(token["id"], token["bytes"], token["end"] - token["start"]) for token in missing] == (
        [(82, None, 0)] if prompt == PROMPTS[1] else []
    )
    for view in ("lens?position=1", "sampling?position=1&top=12", "summary", "attribution?position=1", "focus"):
        answer = client.get(f"/v1/traces/{trace.json()['id']}/" + (view if view == "focus" else f"views/{view}"))
        assert answer.status_code == 200, answer.text

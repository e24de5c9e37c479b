"""OpenAI's routes with OpenAI's own client, against what the same model says without a server."""

import openai
import pytest
from server.conftest import assert_error

SEEDED = {"seed": 5, "max_tokens": 12}


def piece(lm, token):
    data = lm.tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in data)


def test_models(client, lms):
    found = {model.id: model for model in client.models.list()}
    assert found.keys() == lms.keys()
    assert client.models.retrieve("other").context_length == lms["other"].config.context_length
    assert (found["talker"].chat, found["other"].chat) == (True, False)
    with pytest.raises(openai.NotFoundError, match="available: talker, other"):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize("name", ["talker", "other"])
def test_completion_equals_generate(client, lms, name):
    found = client.completions.create(model=name, prompt="the cat", **SEEDED)
    expected = lms[name].generate("the cat", **SEEDED)
    assert found.choices[0].text == expected.text
    assert found.choices[0].finish_reason == expected.continuations[0].finish
    assert found.model == name
    assert found.usage.prompt_tokens == len(expected.prompt_ids)
    assert found.usage.completion_tokens == len(expected.continuations[0].ids)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.seed == 5
    assert found.id != client.completions.create(model=name, prompt="the cat", **SEEDED).id


def test_every_sampling_field_has_its_effect(client, lms):
    """Each moves the text, as it does without a server."""
    plain = lms["talker"].generate("the", seed=3, max_tokens=20).text
    cases = [
        {"temperature": 3.0}, {"top_p": 0.3}, {"presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"logit_bias": {"11": 8.0}}, {"extra_body": {"top_k": 2}}, {"extra_body": {"min_p": 0.5}},
        {"extra_body": {"repetition_penalty": 3.0}},
    ]  # fmt: skip
    for case in cases:
        given = dict(case)
        ours = given.pop("extra_body", {}) | given
        if "logit_bias" in ours:
            ours["logit_bias"] = {11: 8.0}
        expected = lms["talker"].generate("the", seed=3, max_tokens=20, **ours).text
        assert expected != plain, case
        found = client.completions.create(model="talker", prompt="the", seed=3, max_tokens=20, **case)
        assert found.choices[0].text == expected, case


def test_returned_seed_reproduces_the_text(client):
    one, other = (client.completions.create(model="talker", prompt="the", max_tokens=20) for _ in range(2))
    assert one.choices[0].text != other.choices[0].text
    again = client.completions.create(model="talker", prompt="the", max_tokens=20, seed=one.seed)
    assert again.choices[0].text == one.choices[0].text


def test_temperature_0_ignores_the_seed(client, lms):
    expected = lms["talker"].generate("the", temperature=0.0, max_tokens=9).text
    for rest in ({}, {"seed": 3}, {"top_p": 0.4}):
        found = client.completions.create(model="talker", prompt="the", temperature=0, max_tokens=9, **rest)
        assert (found.choices[0].text, found.seed) == (expected, None)


@pytest.mark.parametrize("name", ["talker", "other"])
def test_stream_equals_the_complete_response(client, name):
    whole = client.completions.create(model=name, prompt="the", n=2, logprobs=2, **SEEDED)
    texts, tokens, ends, usage = ["", ""], [[], []], {}, None
    stream = client.completions.create(
        model=name, prompt="the", n=2, logprobs=2, stream=True, stream_options={"include_usage": True}, **SEEDED
    )
    for chunk in stream:
        assert usage is None, "nothing comes after the usage"
        usage = chunk.usage
        assert len(chunk.choices) == (usage is None)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_logprobs_equal_those_of_generate(client, lms):
    lm = lms["talker"]
    prompt = "the cat é🙂"
    found = client.completions.create(model="talker", prompt=prompt, logprobs=3, **SEEDED).choices[0]
    tokens = lm.generate(prompt, logprobs=3, **SEEDED).continuations[0].tokens
    assert found.logprobs.tokens == [piece(lm, t.id) for t in tokens]
    assert found.logprobs.token_logprobs == pytest.approx([t.logprob for t in tokens], abs=1e-5)
    for ours, theirs in zip(found.logprobs.top_logprobs, tokens, strict=True):
        assert ours == {piece(lm, id): pytest.approx(p, abs=1e-5) for id, p in theirs.top}
    whole = prompt + found.text
    for token, offset in zip(found.logprobs.tokens, found.logprobs.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert whole[offset : offset + len(token)] == token
    assert found.logprobs.text_offset[0] == len(prompt)


def test_echo_scores_the_prompt(client, lms):
    """What an evaluation harness asks for: the prompt's own log-probabilities, and nothing written."""
    lm, prompt = lms["other"], "the cat sat. 吾輩"
    found = client.completions.create(model="other", prompt=prompt, echo=True, logprobs=2, max_tokens=0).choices[0]
    score = lm.score(prompt, top=2)
    assert (found.text, found.finish_reason) == (prompt, "length")
    assert found.logprobs.tokens == [piece(lm, t.id) for t in score.tokens]
    assert found.logprobs.token_logprobs[0] is None
    assert found.logprobs.top_logprobs[0] is None
    assert found.logprobs.token_logprobs[1:] == pytest.approx([t.logprob for t in score.tokens[1:]], abs=1e-5)
    more = client.completions.create(model="other", prompt=prompt, echo=True, logprobs=2, n=2, **SEEDED)
    assert more.usage.prompt_tokens == len(score.tokens)
    expected = lm.generate(prompt, n=2, **SEEDED)
    for choice, one in zip(more.choices, expected.continuations, strict=True):
        assert choice.text == prompt + one.text
        assert choice.logprobs.tokens[: len(score.tokens)] == found.logprobs.tokens
        assert choice.logprobs.tokens[len(score.tokens) :] == [piece(lm, id) for id in one.ids]
    single = client.completions.create(model="other", prompt=[7], echo=True, logprobs=0, max_tokens=0).choices[0]
    assert single.logprobs.token_logprobs == [None]


def test_lists_of_prompts_and_of_ids(client, lms):
    lm = lms["talker"]
    ids = lm.encode("the dog")
    found = client.completions.create(model="talker", prompt=["the cat", "the dog"], n=2, **SEEDED)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert [c.text for c in found.choices[:2]] == [c.text for c in lm.generate("the cat", n=2, **SEEDED).continuations]
    assert [c.text for c in found.choices[2:]] == [
        c.text for c in lm.generate("the dog", n=2, seed=7, max_tokens=12).continuations
    ], "each continuation has its own seed"
    one = client.completions.create(model="talker", prompt=ids, **SEEDED)
    both = client.completions.create(model="talker", prompt=[ids, ids], **SEEDED)
    assert one.choices[0].text == lm.generate("the dog", **SEEDED).text == both.choices[0].text


def test_stop_strings_end_the_text(client, lms):
    text = lms["talker"].generate("the", seed=3, max_tokens=20).text
    stop = text[8:10]
    found = client.completions.create(model="talker", prompt="the", seed=3, max_tokens=20, stop=[stop, "never"])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    stream = client.completions.create(model="talker", prompt="the", seed=3, max_tokens=20, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == found.choices[0].text


MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "the cat"}, {"type": "text", "text": " sat<|end|>"}]},
]


def test_chat_equals_template_and_generate(client, lms):
    lm = lms["talker"]
    whole = client.chat.completions.create(
        model="talker", messages=MESSAGES, seed=2, max_completion_tokens=9, logprobs=True, top_logprobs=2
    )
    plain = [MESSAGES[0], {"role": "user", "content": "the cat sat<|end|>"}]
    from glassformer.text.chat.chat_template import ChatTemplate

    ids = ChatTemplate(lm.tokenizer).encode(plain, add_generation_prompt=True)
    expected = lm.generate(ids, seed=2, max_tokens=9, logprobs=2).continuations[0]
    choice = whole.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == expected.finish
    assert whole.usage.prompt_tokens == len(ids)
    content = choice.logprobs.content
    assert [bytes(t.bytes) for t in content] == [lm.tokenizer.token_bytes(id) for id in expected.ids]
    assert [t.logprob for t in content] == pytest.approx([t.logprob for t in expected.tokens], abs=1e-5)
    assert [[o.token for o in t.top_logprobs] for t in content] == [
        [piece(lm, id) for id, _ in t.top] for t in expected.tokens
    ]
    stream = client.chat.completions.create(
        model="talker", messages=MESSAGES, seed=2, max_tokens=9, logprobs=True, top_logprobs=2, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected.text
    assert [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content] == content
    assert [c.choices[0].finish_reason for c in chunks][-1] == expected.finish
    assert {c.object for c in chunks} == {"chat.completion.chunk"}


def test_openai_stream_helper_works(client):
    asked = {"model": "talker", "messages": MESSAGES[:1], "seed": 2, "max_tokens": 9}
    text = client.chat.completions.create(**asked).choices[0].message.content
    with client.chat.completions.stream(**asked, stop=text[4:6]) as stream:
        final = stream.get_final_completion()  # raises unless the text came to its end
    assert final.choices[0].message.content == text[: text.index(text[4:6])]


def test_errors_raise_openai_exceptions(client):
    with pytest.raises(openai.NotFoundError) as found:
        client.completions.create(model="nobody", prompt="a")
    assert (found.value.code, found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature must be a number from 0 to 100, got -1") as found:
        client.completions.create(model="talker", prompt="a", temperature=-1)
    assert found.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="holds 256 tokens") as found:
        client.completions.create(model="talker", prompt="a", max_tokens=9999, stream=True)
    assert found.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="other", messages=MESSAGES)


def test_neutral_values_of_unsupported_fields_are_accepted(client):
    found = client.completions.create(model="talker", prompt="a", best_of=1, suffix=None, **SEEDED)
    assert found.choices[0].text
    found = client.chat.completions.create(
        model="talker", messages=MESSAGES, response_format={"type": "text"}, tools=[], store=False, max_tokens=2
    )
    assert found.choices


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"frob": 1}, "frob", ["unknown field 'frob'", "known: ", "temperature"]),
        ({"best_of": 3}, "best_of", ["not supported"]),
        ({"suffix": "x"}, "suffix", ["not supported"]),
        ({"user": "me"}, "user", ["not supported"]),
        ({"model": 3}, "model", ["valid string", "got 3"]),
        ({"model": None}, "model", ["valid string"]),
        ({"prompt": 7}, "prompt", ["a valid string, or a valid list"]),
        ({"prompt": [1, "a"]}, "prompt", ["must be"]),
        ({"prompt": []}, "prompt", ["is empty"]),
        ({"prompt": [[]]}, "prompt", ["is empty"]),
        ({"prompt": [-1]}, "prompt", ["token id -1 is out of range", "allowed are 0 to"]),
        ({"prompt": [10**6]}, "prompt", ["out of range"]),
        ({"prompt": ["a"] * 129}, "prompt", ["at most 128"]),
        ({"prompt": ""}, None, None),
        ({"max_tokens": 0}, "max_tokens", ["at least 1, or 0 with echo", "got 0"]),
        ({"max_tokens": -3}, "max_tokens", ["got -3"]),
        ({"max_tokens": 2.5}, "max_tokens", ["valid integer", "got 2.5"]),
        ({"max_tokens": "3"}, "max_tokens", ["valid integer", "got '3'"]),
        ({"max_tokens": True}, "max_tokens", ["valid integer"]),
        ({"temperature": "hot"}, "temperature", ["valid number", "got 'hot'"]),
        ({"temperature": 101}, "temperature", ["0 to 100", "got 101"]),
        ({"temperature": 1e-9}, "temperature", ["at least 1e-05"]),
        ({"top_p": 0}, "top_p", ["above 0 to 1"]),
        ({"top_p": 2, "temperature": 0}, "top_p", ["above 0 to 1"]),
        ({"top_k": 0}, "top_k", ["from 1"]),
        ({"min_p": -1}, "min_p", ["from 0 to 1"]),
        ({"seed": -1}, "seed", ["from 0"]),
        ({"seed": 1 << 70}, "seed", ["from 0"]),
        ({"n": 0}, "n", ["from 1"]),
        ({"n": 2, "temperature": 0}, "n", ["would all be the same"]),
        ({"n": 1025}, "prompt", ["at most 128"]),
        ({"logprobs": True}, "logprobs", ["valid integer"]),
        ({"logprobs": 5000}, "logprobs", ["to 1024"]),
        ({"logit_bias": {"a": 1}}, "logit_bias", ["token ids", "'a'"]),
        ({"logit_bias": {"99999": 1}}, "logit_bias", ["out of range"]),
        ({"logit_bias": {"1": 1e9}}, "logit_bias", ["-1000"]),
        ({"stop": ""}, "stop", ["must not be empty"]),
        ({"stop": [""]}, "stop", ["must not be empty"]),
        ({"stop": 5}, "stop", ["valid string, or a valid list"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["without stream"]),
        ({"stream_options": {"x": 1}, "stream": True}, "x", ["unknown field 'x'"]),
        ({"stream": "yes"}, "stream", ["valid boolean"]),
        ({"prompt": "\ud800"}, None, ["surrogate"]),
    ],
)
def test_bad_completion_fields_are_rejected(http, change, param, words):
    import json

    body = {"model": "talker", "prompt": "the", "max_tokens": 2} | change
    answer = http.post("/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    if words is None:
        assert answer.status_code == 200, answer.text
    else:
        assert_error(answer, 400, *words, param=param)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", ["at least 1 item"]),
        ({"messages": "hi"}, "messages", ["valid list", "got 'hi'"]),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", ["'system'", "got 'boss'"]),
        ({"messages": [{"role": "user"}]}, "messages[0].content", ["missing"]),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", ["valid string, or a valid list"]),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, ["text"]),
        ({"messages": [{"role": "user", "content": "x", "frob": 1}]}, "frob", ["unknown field 'frob'"]),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", ["not both"]),
        ({"max_completion_tokens": 0}, "max_completion_tokens", ["max_completion_tokens must be", "got 0"]),
        ({"top_logprobs": 2}, "top_logprobs", ["needs logprobs: true"]),
        ({"logprobs": True, "top_logprobs": 4000}, "top_logprobs", ["top_logprobs must be", "1024"]),
        ({"tools": [{"type": "function"}]}, "tools", ["not supported"]),
        ({"n": 0}, "n", ["from 1"]),
    ],
)
def test_bad_chat_fields_are_rejected(http, change, param, words):
    body = {"model": "talker", "messages": MESSAGES, "max_tokens": 2} | change
    if "max_completion_tokens" in change and "max_tokens" not in change:
        del body["max_tokens"]
    assert_error(http.post("/v1/chat/completions", json=body), 400, *words, param=param)

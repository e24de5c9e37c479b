"""OpenAI's routes with OpenAI's own client, against what the same model says without a server."""

import json

import openai
import pytest
from server.conftest import assert_error, serving

from glassformer.inspect.edits.edit import ablate

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
        pairs = [*theirs.top, (theirs.id, theirs.logprob)]
        assert ours == {piece(lm, id): pytest.approx(p, abs=1e-5) for id, p in pairs}
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


def test_a_list_of_prompts_is_one_batch(client, lms):
    """Prompts of several lengths, of which some end early: each has the text it has alone, with its own seed."""
    from glassformer.server.bodies import CompletionBody
    from glassformer.server.generation import BATCH, make_job
    from glassformer.server.models import ServedModel

    lm = lms["talker"]
    prompts = ["the cat sat on the mat " * (i % 4) + "the dog"[: 3 + i % 5] for i in range(BATCH + 3)]
    options = {"max_tokens": 12, "seed": 5, "temperature": 1.5, "stop": ["a", "é"], "logprobs": 1, "echo": True}
    found = client.completions.create(model="talker", prompt=prompts, **options)
    assert [choice.index for choice in found.choices] == list(range(len(prompts)))
    assert {choice.finish_reason for choice in found.choices} == {"stop", "length"}
    for p, (prompt, choice) in enumerate(zip(prompts, found.choices, strict=True)):
        (alone,) = client.completions.create(model="talker", prompt=prompt, **options | {"seed": 5 + p}).choices
        assert (choice.text, choice.finish_reason) == (alone.text, alone.finish_reason)
        assert choice.logprobs.tokens == alone.logprobs.tokens
        assert choice.logprobs.text_offset == alone.logprobs.text_offset
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(alone.logprobs.token_logprobs[1:], abs=1e-5)
    assert found.usage.prompt_tokens == sum(len(lm.encode(prompt)) for prompt in prompts)

    body = CompletionBody(model="talker", prompt=["a"] * BATCH, seed=5, ignore_eos=True)
    job = make_job(ServedModel("talker", lm), body, body.prompts(), max_tokens=("max_tokens", 12))
    passes = []
    chunks = list(job.chunks(lambda: passes.append(1)))
    assert len(chunks) == 12 * BATCH
    assert len(passes) == 12, "one forward pass for a step of all prompts"


def test_batches_fit_the_memory_of_a_request(lms):
    """Sequences of one batch have room for as many tokens as the longest of them."""
    from glassformer.cache.size import cached_numbers
    from glassformer.server import generation
    from glassformer.server.bodies import CompletionBody
    from glassformer.server.models import ServedModel

    config = lms["talker"].config

    def batches(fit, lengths, max_tokens, n=1, edits=()):
        body = CompletionBody(model="talker", prompt=[[5] * length for length in lengths], n=n)
        n_sequences, n_tokens = fit
        served = ServedModel("talker", lms["talker"], n_sequences * cached_numbers(config, n_tokens) * 4)
        limit = ("max_tokens", max_tokens)
        job = generation.make_job(served, body, body.prompts(), max_tokens=limit, n=n, edits=edits)
        return [list(batch) for batch in job._batches()]

    assert batches((5, 20), [10] * 6, 10) == [[0, 1, 2, 3, 4], [5]]
    assert batches((5, 20), [10, 10, 40, 10], 10) == [[0, 1], [2, 3]]
    assert batches((8, 20), [1, 1, 1], 19, n=4) == [[0, 1], [2]]
    assert batches((1, 256), [1, 1], None) == [[0], [1]], "without a limit, a sequence may fill the context"
    assert batches((2, 256), [1, 1], None) == [[0, 1]]
    assert batches((5, 20), [1, 1], 9, edits=[ablate("blocks.0.attn.z")]) == [[0], [1]]


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
    with pytest.raises(openai.BadRequestError, match="no default chat template"):
        client.chat.completions.create(model="other", messages=MESSAGES)


HARMLESS = [
    {"user": "u-1"}, {"metadata": {"k": "v"}}, {"store": True}, {"service_tier": "flex"}, {"prompt_cache_key": "k"},
    {"safety_identifier": "s"}, {"parallel_tool_calls": False}, {"cache_prompt": True}, {"prediction": {"a": 1}},
    {"verbosity": "medium"}, {"response_format": {"type": "text"}}, {"tools": []}, {"tool_choice": "auto"},
    {"suffix": ""}, {"reasoning_effort": "none"}, {"frob": None}, {"audio": None}, {"best_of": 1}, {"n": 1.0},
    {"stream_options": {"include_usage": False}}, {"stream_options": None}, {"stream": None}, {"top_k": 0},
    {"top_k": -1},
    {"max_tokens": 12.0}, {"max_tokens": 12, "max_completion_tokens": 12.0}, {"max_completion_tokens": 12},
    {"stop": ""}, {"stop": [""]}, {"stop": []}, {"min_tokens": 0}, {"ignore_eos": False}, {"seed": 5.0}, {"min_p": 0},
    {"top_p": 1}, {"logit_bias": {}}, {"presence_penalty": 0}, {"edits": []}, {"echo": False, "suffix": None},
]  # fmt: skip


@pytest.mark.parametrize("change", HARMLESS, ids=str)
def test_fields_without_effect_are_accepted(http, lms, change):
    """Each leaves the text as it is."""
    body = {"model": "talker", "prompt": "the cat", **SEEDED} | change
    if "max_completion_tokens" in change and "max_tokens" not in change:
        del body["max_tokens"]
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == lms["talker"].generate("the cat", **SEEDED).text
    if "echo" not in change:
        body = {"messages": MESSAGES} | {k: v for k, v in body.items() if k != "prompt"}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        plain = http.post("/v1/chat/completions", json={"model": "talker", "messages": MESSAGES, **SEEDED})
        assert answer.json()["choices"] == plain.json()["choices"]


def test_limits_of_sampling_fields(client, lms):
    """Values at which other servers switch an option off, or always take the most probable token."""
    greedy = lms["talker"].generate("the cat", temperature=0, max_tokens=12).text

    def text(**fields):
        return client.completions.create(model="talker", prompt="the cat", max_tokens=12, **fields).choices[0].text

    assert text(top_p=0, seed=1) == text(temperature=1e-6) == text(temperature=1e-9, seed=2) == greedy
    found = client.completions.create(model="talker", prompt="the cat", max_tokens=12, temperature=0, n=3)
    assert [choice.text for choice in found.choices] == [greedy] * 3
    random_seeds = {client.completions.create(model="talker", prompt="a", max_tokens=1, seed=-1).seed for _ in range(4)}
    assert len(random_seeds) == 4
    assert min(random_seeds) >= 0
    negative = client.completions.create(model="talker", prompt="the cat", max_tokens=12, seed=-3)
    assert negative.seed == 2**63 - 3
    assert negative.choices[0].text == text(seed=negative.seed) == text(seed=-3)


def test_load_generators_get_the_number_of_tokens_they_ask_for(client, lms):
    """`ignore_eos` and `min_tokens` hold where the end token is the most probable one at every step."""
    eos = lms["talker"].tokenizer.eos_id
    options = {"model": "talker", "prompt": "the", "max_tokens": 9, "temperature": 0, "logit_bias": {str(eos): 1000}}
    plain = client.completions.create(**options)
    assert (plain.choices[0].finish_reason, plain.usage.completion_tokens) == ("stop", 1)
    found = client.completions.create(**options, extra_body={"ignore_eos": True})
    assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("length", 9)
    assert found.choices[0].text == "<|endoftext|>" * 9
    found = client.completions.create(**options, extra_body={"min_tokens": 4})
    assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("stop", 5)
    assert found.choices[0].text == lms["talker"].generate("the", temperature=0, max_tokens=4).text
    chat = client.chat.completions.create(
        model="talker", messages=MESSAGES, max_completion_tokens=7, extra_body={"ignore_eos": True, "min_tokens": 7}
    )
    assert (chat.choices[0].finish_reason, chat.usage.completion_tokens) == ("length", 7)


STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
LOADS = {
    "vllm bench": {"prompt": "the", "repetition_penalty": 1.0, "temperature": 0.0, "max_tokens": 8, "logprobs": None,
                   "ignore_eos": True} | STREAMED,
    "vllm bench, chat": {"messages": [{"role": "user", "content": [{"type": "text", "text": "the"}]}],
                         "temperature": 0.0, "max_completion_tokens": 8, "ignore_eos": True, "request_id": "r1",
                         } | STREAMED,
    "sglang": {"prompt": "the", "temperature": 0.0, "best_of": 1, "max_tokens": 8, "ignore_eos": True} | STREAMED,
    "guidellm": {"prompt": "the", "max_tokens": 8, "stop": None, "ignore_eos": True, "stream": True,
                 "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "genai-perf": {"prompt": ["the"], "n": 1, "max_tokens": 8, "min_tokens": 8, "ignore_eos": True} | STREAMED,
    "without reasoning": {"messages": [{"role": "user", "content": "the"}], "max_tokens": 8, "ignore_eos": True,
                          "chat_template_kwargs": {"enable_thinking": False}} | STREAMED,
}  # fmt: skip


@pytest.mark.parametrize("name", LOADS)
def test_bodies_of_load_generators(http, name):
    """Each gets exactly the tokens that it asks for."""
    route = "/v1/chat/completions" if "messages" in LOADS[name] else "/v1/completions"
    answer = http.post(route, json={"model": "talker"} | LOADS[name])
    assert answer.status_code == 200, answer.text
    *events, last = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert last["usage"]["completion_tokens"] == 8
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_every_chunk_holds_the_counts_so_far(client, lms, kind):
    options = {"include_usage": True, "continuous_usage_stats": True}
    create = client.completions.create if kind == "completions" else client.chat.completions.create
    given = {"prompt": "the cat"} if kind == "completions" else {"messages": MESSAGES}
    *chunks, last = create(model="talker", stream=True, stream_options=options, **given, **SEEDED)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == last.usage.completion_tokens == 12
    assert len(set(counts)) > 5
    for chunk in chunks:
        assert chunk.usage.total_tokens == chunk.usage.prompt_tokens + chunk.usage.completion_tokens


def test_obfuscated_chunks_have_sizes_of_whole_blocks(http):
    body = {"model": "talker", "prompt": "the cat", "stream": True, "stream_options": {"include_obfuscation": True}}

    def events(options):
        lines = http.post("/v1/completions", json=body | {"stream_options": options} | SEEDED).text.splitlines()
        return [line for line in lines if line.startswith("data: {")]

    padded = events({"include_obfuscation": True})
    assert len({len(line.encode()) % 64 for line in padded}) == 1
    assert all("obfuscation" in line for line in padded)
    assert not any("obfuscation" in line for line in events({"include_obfuscation": False}))


def test_an_answer_is_accepted_as_a_message(client, lms):
    """The objects that OpenAI's client returns, as objects and as dicts, and the fields of other servers' answers."""
    lm, question = lms["talker"], {"role": "user", "content": "the dog"}
    first = client.chat.completions.create(model="talker", messages=[question], **SEEDED).choices[0].message
    plain = {"role": "assistant", "content": first.content}
    others = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": []}
    from glassformer.text.chat.chat_template import ChatTemplate

    ids = ChatTemplate(lm.tokenizer).encode([question, plain, question], add_generation_prompt=True)
    expected = lm.generate(ids, **SEEDED).text
    for message in (first, first.model_dump(), plain | others, plain | {"tool_calls": None, "reasoning_content": None}):
        found = client.chat.completions.create(model="talker", messages=[question, message, question], **SEEDED)
        assert found.choices[0].message.content == expected, message
        assert found.usage.prompt_tokens == len(ids)
    empty = ChatTemplate(lm.tokenizer).encode([question, plain | {"content": ""}, question], add_generation_prompt=True)
    for message in ({"role": "assistant", "content": None}, {"role": "assistant"}):
        found = client.chat.completions.create(model="talker", messages=[question, message, question], **SEEDED)
        assert found.choices[0].message.content == lm.generate(empty, **SEEDED).text


def test_variables_of_the_chat_template(lms):
    """`reasoning_effort` and `chat_template_kwargs` reach the template, as text that forges no control token."""
    from glassformer.models.language_model import LanguageModel
    from glassformer.text.chat.chat_template import ChatTemplate
    from glassformer.text.tokenizer import Tokenizer

    lm, tokenizer = lms["talker"], lms["talker"].tokenizer
    source = "{{ reasoning_effort }}{% if thinking_on %}!{% endif %}" + tokenizer.chat_template
    chat = LanguageModel(lm.model, Tokenizer(tokenizer.backend, tokenizer.config, chat_template=source))
    fields = {"reasoning_effort": "high<|endoftext|>", "thinking_on": True}
    messages = [{"role": "user", "content": "the cat"}]
    ids = ChatTemplate(chat.tokenizer).encode(messages, add_generation_prompt=True, **fields)
    assert tokenizer.decode(ids).startswith("high<|endoftext|>!")
    with serving([("m", chat)]) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        found = client.chat.completions.create(
            model="m", messages=messages, **SEEDED, reasoning_effort=fields["reasoning_effort"],
            extra_body={"chat_template_kwargs": {"thinking_on": True, "unknown": None}},
        )  # fmt: skip
    assert found.usage.prompt_tokens == len(ids)
    assert found.choices[0].message.content == chat.generate(ids, **SEEDED).text


def test_a_full_context_is_scored(client, lms):
    lm = lms["talker"]
    ids = [(7 * i) % lm.config.vocab_size for i in range(lm.config.context_length)]
    found = client.completions.create(model="talker", prompt=ids, max_tokens=0, echo=True, logprobs=0).choices[0]
    expected = [token.logprob for token in lm.score(ids).tokens[1:]]
    assert found.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-5)
    for more, limit in (([1], 0), ([], 1)):
        with pytest.raises(openai.BadRequestError, match="context holds 256 tokens") as error:
            client.completions.create(model="talker", prompt=ids + more, max_tokens=limit, echo=True, logprobs=0)
        assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"frob": 1}, "frob", ["unknown field 'frob'", "known: ", "temperature"]),
        ({"best_of": 3}, "best_of", ["must equal n, which is 1, got 3"]),
        ({"suffix": "x"}, "suffix", ["not supported"]),
        ({"verbosity": "low"}, "verbosity", ["not supported"]),
        ({"response_format": {"type": "json_object"}}, "response_format", ["not supported"]),
        ({"tool_choice": "required"}, "tool_choice", ["not supported"]),
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
        ({"top_p": -0.1}, "top_p", ["from 0 to 1"]),
        ({"top_p": 2, "temperature": 0}, "top_p", ["from 0 to 1"]),
        ({"top_k": -2}, "top_k", ["from 1"]),
        ({"min_tokens": -1}, "min_tokens", ["from 0"]),
        ({"min_tokens": 3}, "min_tokens", ["from 0 to 2, got 3"]),
        ({"ignore_eos": 1}, "ignore_eos", ["valid boolean"]),
        ({"max_completion_tokens": 3}, "max_tokens", ["not both, got 3 and 2"]),
        ({"min_p": -1}, "min_p", ["from 0 to 1"]),
        ({"seed": 1 << 70}, "seed", ["from 0"]),
        ({"n": 0}, "n", ["from 1"]),
        ({"n": 1025}, "prompt", ["at most 128"]),
        ({"logprobs": True}, "logprobs", ["valid integer"]),
        ({"logprobs": 5000}, "logprobs", ["to 1024"]),
        ({"logit_bias": {"a": 1}}, "logit_bias", ["token ids", "'a'"]),
        ({"logit_bias": {"99999": 1}}, "logit_bias", ["out of range"]),
        ({"logit_bias": {"1": 1e9}}, "logit_bias", ["-1000"]),
        ({"stop": 5}, "stop", ["valid string, or a valid list"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["without stream"]),
        ({"stream_options": {"x": 1}, "stream": True}, "x", ["unknown field 'x'"]),
        ({"stream": "yes"}, "stream", ["valid boolean"]),
        ({"prompt": "\ud800"}, None, ["surrogate"]),
    ],
)
def test_bad_completion_fields_are_rejected(http, change, param, words):
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
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "messages",
            ["'image_url' is not supported", "only type is 'text'"],
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", ["missing", "role user"]),
        ({"messages": [{"role": "user", "content": "x", "frob": 1}]}, "frob", ["unknown field 'frob'"]),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "tool_calls", ["not supported"]),
        ({"messages": [{"role": "assistant", "refusal": "No."}]}, "refusal", ["not supported"]),
        ({"reasoning_effort": "low"}, "reasoning_effort", ["has no effect", "does not read it"]),
        ({"chat_template_kwargs": {"a": 1}}, "a", ["has no effect", "does not read it"]),
        (
            {"chat_template_kwargs": {"bos_token": "<|end|>"}},
            "chat_template_kwargs",
            ["bos_token is set by the server"],
        ),
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

"""Log-probabilities of the OpenAI routes against transformers, including the end token and tokens with one text."""

import json
import math

import openai
import pytest
import tokenizers
import torch
import transformers
from server.conftest import serving, tiny_lm
from tiny import random_ids, run, tiny
from tokenizers import decoders, models

from glassformer.models.language_model import LanguageModel
from glassformer.text.chat.chat_template import ChatTemplate
from glassformer.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(chat=True, context_length=64, tied_head=False)


@pytest.fixture(scope="module")
def reference(lm, tmp_path_factory):
    """Return a function: token ids -> log-probabilities [T, V] in transformers, of the same weights in float64."""
    folder = tmp_path_factory.mktemp("reference")
    lm.save(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return lambda ids: model(torch.tensor([list(ids)])).logits[0].log_softmax(-1).detach()


@pytest.fixture(scope="module")
def api(lm):
    with (
        serving([("m", lm)]) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def ending(lm):
    """A prompt after which the end token is the most probable one."""
    prompts = random_ids(lm.config, 4096, 6, seed=4)
    with torch.no_grad():
        best = run(lm.model, prompts)[:, -1].argmax(-1)
    return prompts[(best == lm.tokenizer.eos_id).nonzero()[0, 0]].tolist()


def test_echo_includes_the_end_token(api, lm, reference, ending):
    """An evaluation harness drops the last token, the one it had to generate, and sums those of the continuation."""
    found = api.completions.create(
        model="m", prompt=ending, max_tokens=1, temperature=0, echo=True, logprobs=1
    )  # fmt: skip
    (choice,), expected = found.choices, reference(ending)
    assert choice.finish_reason == "stop"
    assert found.usage.completion_tokens == 1
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs) == len(ending) + 1
    assert logprobs.tokens[-1] == "<|endoftext|>"
    assert logprobs.text_offset[-1] == len(choice.text)
    own = [expected[i, id].item() for i, id in enumerate([*ending[1:], lm.tokenizer.eos_id])]
    assert logprobs.token_logprobs[1:] == pytest.approx(own, abs=1e-5)
    for n_context in range(1, len(ending)):
        assert sum(logprobs.token_logprobs[n_context:-1]) == pytest.approx(sum(own[n_context - 1 : -1]), abs=1e-5)
    for logprob, top, row in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], expected, strict=True):
        assert max(top.values()) == pytest.approx(row.max().item(), abs=1e-5)
        assert logprob in top.values()


@pytest.mark.parametrize("n_before", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_include_the_end_token(api, lm, reference, ending, n_before, stream):
    """The end token is counted and scored, and adds no text."""
    eos, prompt, text, rest = lm.tokenizer.eos_id, ending, "", [lm.tokenizer.eos_id]
    options = {"temperature": 0, "max_tokens": 9}
    if n_before:  # forces the path to the end token; log-probabilities are those before the bias
        options |= {"logit_bias": {str(eos): 1000}, "extra_body": {"min_tokens": n_before}}
        (greedy,) = lm.generate("the cat", temperature=0, max_tokens=n_before).continuations
        prompt, text, rest = lm.encode("the cat"), greedy.text, [*greedy.ids, eos]
    expected = reference([*prompt, *rest])[len(prompt) - 1 :]
    own = [expected[i, id].item() for i, id in enumerate(rest)]
    found = api.completions.create(
        model="m", prompt=prompt, logprobs=2, stream=stream, **options,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )  # fmt: skip
    *chunks, last = list(found) if stream else [found, found]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == text
    assert choices[-1].finish_reason == "stop"
    assert [p for choice in choices for p in choice.logprobs.token_logprobs] == pytest.approx(own, abs=1e-5)
    assert choices[-1].logprobs.tokens[-1] == "<|endoftext|>"
    assert last.usage.completion_tokens == len(rest)


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs_include_the_end_token(api, lm, reference, stream):
    eos, messages = lm.tokenizer.eos_id, [{"role": "user", "content": "the cat"}]
    found = api.chat.completions.create(
        model="m", messages=messages, temperature=0, logprobs=True, top_logprobs=1, logit_bias={str(eos): 1000},
        stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}),
    )  # fmt: skip
    *chunks, last = list(found) if stream else [found, found]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    (token,) = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert (token.token, bytes(token.bytes)) == ("<|endoftext|>", b"<|endoftext|>")
    prompt = ChatTemplate(lm.tokenizer).encode(messages, add_generation_prompt=True)
    assert token.logprob == pytest.approx(reference(prompt)[-1, eos].item(), abs=1e-5)
    assert last.usage.completion_tokens == 1
    assert choices[-1].finish_reason == "stop"


def test_generate_returns_the_end_token(lm, reference, ending):
    eos = lm.tokenizer.eos_id
    (found,) = lm.generate(ending, temperature=0, logprobs=1).continuations
    assert (found.text, found.ids, found.tokens) == ("", (), ())
    assert found.end is not None
    assert (found.end.id, found.end.top[0][0]) == (eos, eos)
    assert found.end.logprob == pytest.approx(reference(ending)[-1, eos].item(), abs=1e-5)
    assert lm.generate(ending, temperature=1.0, seed=1, max_tokens=1, logprobs=0).continuations[0].end is None


def fallback_lm():
    """A model whose tokenizer has the token "A" and the byte token <0x41>, and fewer tokens than the model has rows."""
    vocab = {"<unk>": 0, "</s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    vocab |= {letter: len(vocab) + i for i, letter in enumerate("▁ABCé")}
    core = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer(core.to_str(), {"eos_token": "</s>"})
    return LanguageModel(tiny("llama", 3, vocab_size=tokenizer.vocab_size + 3), tokenizer)


def test_tokens_with_one_text_keep_their_own_values():
    """Byte tokens have their own text, so no value of `top_logprobs` hides another."""
    lm = fallback_lm()
    logits = lm.score([5, 6], top=lm.config.vocab_size).tokens[1].top
    expected = dict(logits)
    vocab = lm.tokenizer.backend.vocab
    with serving([("m", lm)]) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        found = client.completions.create(model="m", prompt=[5, 6], echo=True, max_tokens=0, logprobs=1024)
        top = found.choices[0].logprobs.top_logprobs[1]
        assert len(top) == lm.config.vocab_size
        for letter in "ABC":
            assert top[letter] == pytest.approx(expected[vocab[letter]], abs=1e-6)
            byte = f"\\x{ord(letter):02x}"
            assert top[f"bytes:{byte}"] == pytest.approx(expected[vocab[f"<0x{ord(letter):02X}>"]], abs=1e-6)
        assert top["é"] == pytest.approx(expected[vocab["é"]], abs=1e-6)
        assert top[f"#{lm.tokenizer.vocab_size}"] == pytest.approx(expected[lm.tokenizer.vocab_size], abs=1e-6)


def test_of_two_tokens_with_one_text_the_more_probable_stays():
    """Added tokens may have the text of a token of the vocabulary."""
    vocab = {"a": 0, "▁a": 1, " a": 2, "b": 3}
    core = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="a"))
    core.decoder = decoders.Replace("▁", " ")
    lm = LanguageModel(tiny("llama", 3, vocab_size=4), Tokenizer(core.to_str(), {}))
    assert lm.tokenizer.token_bytes(1) == lm.tokenizer.token_bytes(2) == b" a"
    with serving([("m", lm)]) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        for first in range(4):
            for second in (1, 2):
                expected = dict(lm.score([first, second], top=4).tokens[1].top)
                found = client.completions.create(
                    model="m", prompt=[first, second], echo=True, max_tokens=0, logprobs=4
                )
                logprobs = found.choices[0].logprobs
                assert logprobs.top_logprobs[1][" a"] == pytest.approx(max(expected[1], expected[2]), abs=1e-6)
                assert logprobs.token_logprobs[1] == pytest.approx(expected[second], abs=1e-6)


def test_top_logprobs_include_the_chosen_token(api, lm):
    """As OpenAI's: `logprobs` of the most probable tokens, and the chosen one."""
    found = api.completions.create(model="m", prompt="the", logprobs=0, seed=1, max_tokens=5).choices[0].logprobs
    assert found.top_logprobs == [
        {token: p} for token, p in zip(found.tokens, found.token_logprobs, strict=True)
    ]  # fmt: skip


def test_no_number_is_outside_json(api, lm):
    """-inf and NaN are not JSON: a token that an edit makes impossible has the smallest log-probability."""
    edit = {"op": "replace", "point": "final.logits", "value": "-Infinity", "dim": [3, 4]}
    body = {"model": "m", "prompt": [5, 6, 3, 5], "max_tokens": 2, "echo": True, "logprobs": 300, "edits": [edit]}

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    text = api.completions.with_raw_response.create(**{k: v for k, v in body.items() if k != "edits"},
                                                    extra_body={"edits": [edit]}).text  # fmt: skip
    found = json.loads(text, parse_constant=no_constant)["choices"][0]["logprobs"]
    assert found["token_logprobs"][2] == -9999.0
    assert all(math.isfinite(p) for top in found["top_logprobs"][1:] for p in top.values())

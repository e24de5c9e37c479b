"""From tokens to text: stop strings and characters across token boundaries, finish reasons."""

import pytest
import tokenizers
import torch
from generate.scripted import Scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from glassformer.errors import GlassformerError
from glassformer.models.language_model import LanguageModel
from glassformer.text.tokenizer import Tokenizer

GREEDY = {"temperature": 0.0}


def generate_text(lm, **options):
    """Return text and finish reason; check that the streamed events give the same text."""
    continuation = lm.generate([0], **GREEDY, **options).continuations[0]
    events = list(lm.stream([0], **GREEDY, **options))
    assert "".join(p.text for p in events) == continuation.text
    assert [p.id for p in events if p.id is not None] == list(continuation.ids)
    assert [p.finish for p in events] == [None] * (len(events) - 1) + [continuation.finish]
    return continuation.text, continuation.finish


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("sat", ("the cat ", "stop")),
        (["mat", "cat s"], ("the ", "stop")),
        ("the", ("", "stop")),
        (["cat sat", "at"], ("the c", "stop")),
        ("dog", ("the cat sat on", "length")),
        ("on the", ("the cat sat on", "length")),  # withheld as a possible stop string, then released
        ((), ("the cat sat on", "length")),
    ],
)
def test_stop_strings_across_token_boundaries(scripted, stop, expected):
    """Every token is one character, so stop strings span tokens."""
    assert generate_text(scripted(b"the cat sat on"), stop=stop, max_tokens=14) == expected


def test_stop_string_inside_one_token(scripted, tokenizer):
    full_text = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b" the")
    assert generate_text(scripted([full_text, full_text]), stop="h", max_tokens=5) == (" t", "stop")


def test_stop_string_ends_within_a_token_with_a_partial_character(scripted, tokenizer):
    """A token may end one character and begin the next: "猫" is e7 8c ab, and its first byte comes with the stop."""
    stop = "は".encode()
    partial = [i for i in range(tokenizer.vocab_size) if len(t := tokenizer.token_bytes(i)) > 1 and not is_utf8(t)]
    assert partial, "this tokenizer has no token with a partial character"
    assert generate_text(scripted(b"a" + stop + b"\xe7\x8c"), stop="は", max_tokens=9) == ("a", "stop")
    for i in partial:
        text = tokenizer.token_bytes(i).decode("utf-8", "replace")
        assert generate_text(scripted([i]), max_tokens=1) == (text, "length")


def is_utf8(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_partial_characters_are_withheld(scripted):
    texts = [p.text for p in scripted("né🙂".encode()).stream([0], **GREEDY, max_tokens=7)]
    assert texts == ["n", "", "é", "", "", "", "🙂"]


def test_incomplete_character_becomes_one_replacement_sign(scripted):
    assert generate_text(scripted("né🙂".encode()), max_tokens=5) == ("né\ufffd", "length")


def test_prompt_that_ends_within_a_character(scripted):
    """The prompt ends with the first byte of 猫; the text starts when the character is complete."""
    lm = scripted("猫!".encode())
    first, *rest = lm.model.script
    lm.model.script = [0, *rest]
    assert [p.text for p in lm.stream([0, first], **GREEDY, max_tokens=3)] == ["", "猫", "!"]


def test_first_space_of_a_continuation_is_preserved():
    """A SentencePiece decoder strips the first space of a text, but not of a continuation."""
    vocab = {"<s>": 0, "▁the": 1, "▁cat": 2}
    core = tokenizers.Tokenizer(models.WordLevel(vocab, "<s>"))
    core.add_special_tokens(["<s>"])
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    lm = LanguageModel(Scripted([2, 2], 3), Tokenizer(core.to_str(), {"bos_token": "<s>"}))
    assert lm.generate([1], **GREEDY, max_tokens=2).text == " cat cat"
    assert lm.generate([0], **GREEDY, max_tokens=2).text == "cat cat"


@settings(max_examples=40)
@given(st.text("ab猫é🙂", min_size=1, max_size=12), st.text("ab猫é🙂", min_size=1, max_size=3), st.integers(1, 40))
def test_random_text_stop_and_length(scripted, text, stop, max_tokens):
    data = text.encode()[:max_tokens]
    full_text = data.decode("utf-8", "replace")
    if stop in full_text:
        expected = full_text[: full_text.index(stop)], "stop"
    else:
        expected = full_text, "length"
    assert generate_text(scripted(data), stop=stop, max_tokens=len(data)) == expected


def test_end_token_is_not_part_of_the_text(scripted, tokenizer):
    script = [*tokenizer.encode("cat"), tokenizer.eos_id, 5]
    found = scripted(script).generate([0], **GREEDY, logprobs=1).continuations[0]
    assert (found.text, found.ids, found.finish) == ("cat", tuple(tokenizer.encode("cat")), "stop")
    last = list(scripted(script).stream([0], **GREEDY, logprobs=1))[-1]
    assert (last.id, last.finish, last.top[0][0]) == (None, "stop", tokenizer.eos_id)


def test_end_token_releases_withheld_text(scripted, tokenizer):
    script = [*tokenizer.encode("one EN"), tokenizer.eos_id]
    assert generate_text(scripted(script), stop="END") == ("one EN", "stop")


def test_stop_strings_have_no_effect_before_min_tokens(scripted):
    lm = scripted(b"the cat sat on the cat")
    assert generate_text(lm, stop="cat", max_tokens=22) == ("the ", "stop")
    assert generate_text(lm, stop="cat", max_tokens=22, min_tokens=7) == ("the cat sat on the ", "stop")
    assert generate_text(lm, stop="cat", max_tokens=22, min_tokens=6) == ("the cat sat on the ", "stop")
    assert generate_text(lm, stop="cat", max_tokens=22, min_tokens=22) == ("the cat sat on the cat", "length")
    with pytest.raises(GlassformerError, match="min_tokens must be a whole number from 0 to 5, got 6"):
        lm.generate([0], max_tokens=5, min_tokens=6)


def test_ignored_end_tokens_are_part_of_the_text(scripted, tokenizer):
    script = [*tokenizer.encode("cat"), tokenizer.eos_id, *tokenizer.encode(" sat")]
    text = generate_text(scripted(script), max_tokens=len(script), ignore_eos=True)
    assert text == ("cat<|endoftext|> sat", "length")


def test_stop_string_at_the_last_token_finishes_with_stop(scripted):
    assert generate_text(scripted(b"cat"), stop="cat", max_tokens=3) == ("", "stop")


def test_stream_equals_generate(lm):
    """Also for random bytes, the streamed text equals the decoded text of all ids."""
    for seed in (0, 1):
        options = {"seed": seed, "temperature": 2.0, "max_tokens": 40}
        result = lm.generate("the cat", n=2, **options)
        events = list(lm.stream("the cat", n=2, **options))
        for r, continuation in enumerate(result.continuations):
            assert (
                "".join(p.text for p in events if p.sequence == r)
                == continuation.text
                == lm.tokenizer.decode(continuation.ids)
            )
        assert "\ufffd" in result.text
        assert result.text == result.continuations[0].text


def test_continuations_end_independently(lm):
    result = lm.generate("the cat", n=12, seed=0, temperature=2.0, max_tokens=10, stop=["e", "a"])
    assert {c.finish for c in result.continuations} == {"stop", "length"}
    assert all("e" not in c.text and "a" not in c.text for c in result.continuations)
    for r, continuation in list(enumerate(result.continuations))[:5]:
        alone = lm.generate("the cat", seed=r, temperature=2.0, max_tokens=10, stop=["e", "a"])
        assert alone.continuations == (continuation,)


def test_invalid_request_raises_before_the_first_event(lm):
    for name, value in (("max_tokens", 1000), ("temperatur", 1.0), ("stop", "")):
        with pytest.raises(GlassformerError, match=name):
            lm.stream("a", **{name: value})
    assert not torch.is_inference_mode_enabled()

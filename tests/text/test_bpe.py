"""The readable BPE and the library's: the same merges, the same ids, whatever the text."""

import json
import random
import unicodedata
from itertools import pairwise, product

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from glassformer.errors import TokenizerError
from glassformer.text import bpe as readable
from glassformer.text.patterns import GPT2, PATTERNS, byte_alphabet

EOT = "<|endoftext|>"


def fast(texts, vocab_size, pattern=GPT2, special=EOT) -> Tokenizer:
    """The library's own byte-level BPE, put together here without any of our code."""
    core = Tokenizer(models.BPE())
    if pattern == GPT2:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[special], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.encode_special_tokens = True
    return core


def both(texts, vocab_size, pattern=GPT2, special=EOT) -> tuple[readable.BPE, Tokenizer]:
    """Train both; what they learned must be the same."""
    core = fast(texts, vocab_size, pattern, special)
    merges = readable.train(texts, vocab_size, special_tokens=[special], pattern=pattern)
    ours, theirs = (
        readable.BPE.from_merges(merges, special_tokens=[special], pattern=pattern),
        readable.BPE.from_json(core.to_str()),
    )
    assert ours.merges == theirs.merges
    assert ours.vocab == theirs.vocab
    return ours, core


@pytest.mark.parametrize(("name", "vocab_size"), [("tinyshakespeare.txt", 1257), ("wagahai-ja.txt", 657)])
def test_same_merges_and_ids_on_a_whole_book(shared_file, name, vocab_size):
    text = shared_file(name).read_text("utf-8")  # all of it: about 1.1 MB
    ours, core = both([text], vocab_size)
    assert len(ours.merges) == vocab_size - 257
    part = text[:30_000]
    ids = ours.encode(part)
    assert ids == core.encode(part).ids
    assert ours.decode(ids) == part


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wagahai-ja.txt"])
def test_same_with_qwen2s_pattern(shared_file, name):
    text = shared_file(name).read_text("utf-8")[:40_000]
    ours, core = both([text], 450, PATTERNS["qwen2"])
    assert ours.encode(text) == core.encode(text).ids


@pytest.mark.soak
def test_same_ids_with_a_published_vocabulary(shared_file):
    folder = shared_file("llama3-tokenizer")
    core = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = readable.BPE.from_json(core.to_str())
    text = shared_file("tinyshakespeare.txt").read_text("utf-8")[:20_000]
    assert ours.encode(text) == core.encode(text).ids


def test_ties_and_exhausted_texts():
    """Few letters, so that counts tie, runs overlap (aaa) and the texts run out of pairs."""
    chance = random.Random(0)
    for _ in range(100):
        letters = chance.choice(["ab", "abc", "abcd", "a b", "aé😀"])
        texts = ["".join(chance.choices(letters, k=chance.randint(1, 60))) for _ in range(chance.randint(1, 6))]
        ours, core = both(texts, 257 + chance.randint(1, 60))
        other = "".join(chance.choices(letters, k=50))
        assert ours.encode(other) == core.encode(other).ids


SETTLED = st.characters(codec="utf-8").filter(lambda char: unicodedata.ucd_3_2_0.category(char) != "Cn")
"""Characters since Unicode 3.2: `regex` and the library carry Unicode tables of different years, and what one of them
does not know yet is a letter to the other."""
TEXT = st.text(st.one_of(SETTLED, st.sampled_from(" \n\r\t\u3000\x85'sS1,。a👩\u200d🇯𓂀ẞ\U00030000")))


@given(st.lists(TEXT, max_size=8), st.integers(257, 300), TEXT, st.sampled_from(sorted(PATTERNS)))
def test_same_on_any_unicode(texts, vocab_size, text, name):
    ours, core = both(texts, vocab_size, PATTERNS[name])
    for sample in (text, "".join(texts), f" {text}  {text}\n"):
        ids = ours.encode(sample)
        assert ids == core.encode(sample).ids
        assert ours.decode(ids) == sample


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\r\t\u3000\x85'sS1,。a"))))
def test_words_join_to_the_text(pattern, text):
    assert "".join(regex.findall(pattern, text)) == text


def test_a_special_token_may_be_spelled_like_a_merge():
    ours, _ = both(["abab ab abc", "abcabc"], 270, special="ab")
    assert ours.vocab[b"ab"] == 0
    assert (b"a", b"b") in ours.merges


def test_words_are_gpt2s():
    """Every text of up to five of these characters, cut by the library's own GPT-2 pattern."""
    theirs, shown = pre_tokenizers.ByteLevel(add_prefix_space=False), byte_alphabet()
    for length in range(1, 6):
        for chars in product(" a1!\n'sé", repeat=length):
            text = "".join(chars)
            ours = ["".join(shown[byte] for byte in word.encode()) for word in regex.findall(GPT2, text)]
            assert ours == [word for word, _ in theirs.pre_tokenize_str(text)], text


def test_qwen2s_pattern_is_qwen2s():
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert PATTERNS["qwen2"] == PRETOKENIZE_REGEX


def test_the_byte_alphabet_is_gpt2s():
    ours = byte_alphabet()
    assert sorted(ours.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    text = "".join(map(chr, range(0x800))) + "\u3042\U0001f600"  # every byte that UTF-8 uses in one and two bytes
    [(shown, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert shown == "".join(ours[byte] for byte in text.encode())


def test_merge_steps_are_the_worked_example():
    steps = [(b"l", b"o"), (b"lo", b"w"), (b"e", b"r")]
    model = readable.BPE.from_merges(steps)
    shown = [(b" ".join(step.parts).decode(), step.rank, step.at) for step in model.merge_steps("lower")]
    assert shown == [("l o w e r", None, None), ("lo w e r", 0, 0), ("low e r", 1, 0), ("low er", 2, 1)]
    assert [step.parts for step in model.merge_steps("")] == [()]
    assert model.encode("lower") == [model.vocab[b"low"], model.vocab[b"er"]]


@given(st.text(min_size=1))
def test_every_step_joins_the_pair_learned_first(bpe, text):
    model = readable.BPE.from_json(bpe.backend.json)
    for word in model.words(text):
        steps = list(model.merge_steps(word))
        assert all(b"".join(step.parts) == word.encode() for step in steps)
        for before, after in pairwise(steps):
            pairs = list(pairwise(before.parts))
            known = [model.merges.index(pair) for pair in pairs if pair in model.merges]
            assert after.rank == min(known)
            assert pairs.index(model.merges[after.rank]) == after.at
        last = steps[-1].parts
        assert not any(pair in model.ranks for pair in pairwise(last))


def test_from_json_refuses_what_it_would_encode_otherwise(char, bpe):
    with pytest.raises(TokenizerError, match="byte-level BPE"):
        readable.BPE.from_json(char.backend.json)
    for field, value in (("normalizer", {"type": "Lowercase"}), ("pre_tokenizer", None)):
        with pytest.raises(TokenizerError, match="byte-level BPE"):
            readable.BPE.from_json(json.dumps(json.loads(bpe.backend.json) | {field: value}))

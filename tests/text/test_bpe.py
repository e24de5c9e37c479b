"""The readable BPE learns the same merges and returns the same ids as `tokenizers`."""

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


def train_reference(texts, vocab_size, pattern=GPT2, special=EOT) -> Tokenizer:
    """Train the byte-level BPE of `tokenizers`, without any code of this project."""
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


def train_both(texts, vocab_size, pattern=GPT2, special=EOT) -> tuple[readable.BPE, Tokenizer]:
    """Train both and assert that merges and vocabulary are equal."""
    core = train_reference(texts, vocab_size, pattern, special)
    merges = readable.train(texts, vocab_size, special_tokens=[special], pattern=pattern)
    ours, theirs = (
        readable.BPE.from_merges(merges, special_tokens=[special], pattern=pattern),
        readable.BPE.from_json(core.to_str()),
    )
    assert ours.merges == theirs.merges
    assert ours.vocab == theirs.vocab
    return ours, core


@pytest.mark.parametrize(("name", "vocab_size"), [("tinyshakespeare.txt", 1257), ("wagahai-ja.txt", 657)])
def test_merges_and_ids_of_a_book_equal_tokenizers(shared_file, name, vocab_size):
    text = shared_file(name).read_text("utf-8")  # about 1.1 MB
    ours, core = train_both([text], vocab_size)
    assert len(ours.merges) == vocab_size - 257
    part = text[:30_000]
    ids = ours.encode(part)
    assert ids == core.encode(part).ids
    assert ours.decode(ids) == part


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wagahai-ja.txt"])
def test_merges_and_ids_with_the_qwen2_pattern_equal_tokenizers(shared_file, name):
    text = shared_file(name).read_text("utf-8")[:40_000]
    ours, core = train_both([text], 450, PATTERNS["qwen2"])
    assert ours.encode(text) == core.encode(text).ids


@pytest.mark.soak
def test_ids_of_a_published_vocabulary_equal_tokenizers(shared_file):
    folder = shared_file("llama3-tokenizer")
    core = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = readable.BPE.from_json(core.to_str())
    text = shared_file("tinyshakespeare.txt").read_text("utf-8")[:20_000]
    assert ours.encode(text) == core.encode(text).ids


def test_ties_and_exhausted_texts_equal_tokenizers():
    """With few letters, counts tie, runs overlap (aaa) and no pairs remain."""
    rng = random.Random(0)
    for _ in range(100):
        letters = rng.choice(["ab", "abc", "abcd", "a b", "aé😀"])
        texts = ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(rng.randint(1, 6))]
        ours, core = train_both(texts, 257 + rng.randint(1, 60))
        other = "".join(rng.choices(letters, k=50))
        assert ours.encode(other) == core.encode(other).ids


UNICODE_3_2 = st.characters(codec="utf-8").filter(lambda char: unicodedata.ucd_3_2_0.category(char) != "Cn")
"""Characters of Unicode 3.2: `regex` and `tokenizers` disagree about letters that newer versions added."""
TEXT = st.text(st.one_of(UNICODE_3_2, st.sampled_from(" \n\r\t\u3000\x85'sS1,。a👩\u200d🇯𓂀ẞ\U00030000")))


@given(st.lists(TEXT, max_size=8), st.integers(257, 300), TEXT, st.sampled_from(sorted(PATTERNS)))
def test_merges_and_ids_of_unicode_text_equal_tokenizers(texts, vocab_size, text, name):
    ours, core = train_both(texts, vocab_size, PATTERNS[name])
    for sample in (text, "".join(texts), f" {text}  {text}\n"):
        ids = ours.encode(sample)
        assert ids == core.encode(sample).ids
        assert ours.decode(ids) == sample


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\r\t\u3000\x85'sS1,。a"))))
def test_words_concatenate_to_the_text(pattern, text):
    assert "".join(regex.findall(pattern, text)) == text


def test_special_token_may_have_the_text_of_a_merge():
    ours, _ = train_both(["abab ab abc", "abcabc"], 270, special="ab")
    assert ours.vocab[b"ab"] == 0
    assert (b"a", b"b") in ours.merges


def test_gpt2_pattern_splits_words_like_tokenizers():
    """Compare every text of up to five of these characters with the GPT-2 pattern of `tokenizers`."""
    theirs, alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False), byte_alphabet()
    for length in range(1, 6):
        for chars in product(" a1!\n'sé", repeat=length):
            text = "".join(chars)
            ours = ["".join(alphabet[byte] for byte in word.encode()) for word in regex.findall(GPT2, text)]
            assert ours == [word for word, _ in theirs.pre_tokenize_str(text)], text


def test_qwen2_pattern_equals_transformers():
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert PATTERNS["qwen2"] == PRETOKENIZE_REGEX


def test_byte_alphabet_equals_tokenizers():
    ours = byte_alphabet()
    assert sorted(ours.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    text = "".join(map(chr, range(0x800))) + "\u3042\U0001f600"  # every byte that UTF-8 uses in one and two bytes
    [(encoded, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert encoded == "".join(ours[byte] for byte in text.encode())


def test_merge_steps_equal_the_worked_example():
    merges = [(b"l", b"o"), (b"lo", b"w"), (b"e", b"r")]
    model = readable.BPE.from_merges(merges)
    steps = [(b" ".join(step.parts).decode(), step.rank, step.at) for step in model.merge_steps("lower")]
    assert steps == [("l o w e r", None, None), ("lo w e r", 0, 0), ("low e r", 1, 0), ("low er", 2, 1)]
    assert [step.parts for step in model.merge_steps("")] == [()]
    assert model.encode("lower") == [model.vocab[b"low"], model.vocab[b"er"]]


@given(st.text(min_size=1))
def test_every_merge_step_has_the_lowest_rank(bpe, text):
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


def test_from_json_rejects_other_tokenizers(char, bpe):
    with pytest.raises(TokenizerError, match="byte-level BPE"):
        readable.BPE.from_json(char.backend.json)
    for field, value in (("normalizer", {"type": "Lowercase"}), ("pre_tokenizer", None)):
        with pytest.raises(TokenizerError, match="byte-level BPE"):
            readable.BPE.from_json(json.dumps(json.loads(bpe.backend.json) | {field: value}))

# ruff: noqa: E501  (characters)
"""`tokenizer.json` with the parts that published models have, trained here: the same ids, text and offsets as the
library, control tokens read or not, and long runs."""

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sentencepiece import CORPUS
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Core

from glassformer.text.patterns import LLAMA3, QWEN2
from glassformer.text.tokenizer import Tokenizer

SPACES = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
STRIPPED = decoders.Sequence([*SPACES, decoders.Strip(" ", 1, 0)])
LINES = pre_tokenizers.Split(Regex("[\r\n]"), "isolated")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def bpe(normalizer=None, pre=None, decoder=None, size=420, fallback=False, special=("<unk>", "<s>", "</s>"), **options):
    core = Core(models.BPE(**options))
    core.normalizer, core.pre_tokenizer = normalizer, pre
    letters = [] if fallback else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*special], show_progress=False, initial_alphabet=letters
    )
    core.train_from_iterator([CORPUS] * 3, trainer)
    if fallback:
        layout = json.loads(core.to_str())
        vocab = layout["model"]["vocab"]
        for byte in range(256):
            vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
        layout["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
        core = Core.from_str(json.dumps(layout))
    core.decoder = decoder or decoders.ByteLevel()
    return core


def prepended():
    """Llama 2 as it was first converted."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core = bpe(spaces, None, STRIPPED, fallback=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


def reaching():
    """Phi-3: control tokens that take the spaces beside them."""
    core = prepended()
    core.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|mid|>", lstrip=True)])
    core.add_tokens([AddedToken("[foo]", lstrip=True, rstrip=True, normalized=False)])
    return core


def first_space():
    """Llama 2 and Mistral as they are converted now."""
    pre = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return bpe(None, pre, STRIPPED, fallback=True)


def runs():
    """Gemma: no space before, and tokens for runs of lines and spaces."""
    pre = pre_tokenizers.Split(" ", "merged_with_previous")
    core = bpe(normalizers.Replace(" ", "▁"), pre, decoders.Sequence(SPACES), fallback=True)
    core.add_tokens([AddedToken(char * n, normalized=False) for char in "\n▁" for n in range(2, 6)] + ["<b>"])
    return core


def composed():
    """Qwen2."""
    cut = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    return bpe(normalizers.NFC(), pre_tokenizers.Sequence([cut, BYTES]), special=("<|endoftext|>", "<s>"))


def framed():
    """Llama 3."""
    cut = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    core = bpe(None, pre_tokenizers.Sequence([cut, BYTES]), ignore_merges=True)
    frame = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), frame])
    return core


def cut_again():
    """DeepSeek: one cut after the other, digits apart."""
    cuts = [pre_tokenizers.Split(Regex(p), "isolated") for p in (r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥가-퟿]+")]
    parts = pre_tokenizers.Sequence([LINES, *cuts, pre_tokenizers.Digits(True), BYTES])
    return bpe(None, parts, special=("<｜end▁of▁sentence｜>",))


def prefixed():
    """GPT-NeoX: a space before the text, and tokens for runs of spaces."""
    core = bpe(None, pre_tokenizers.ByteLevel(add_prefix_space=True), special=("<|endoftext|>",))
    core.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 8)])
    return core


def unigram():
    """T5."""
    core = Core(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    core.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    special = ["<unk>", "</s>"]
    core.train_from_iterator(
        [CORPUS] * 3,
        trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return core


KINDS = (prepended, reaching, first_space, runs, composed, framed, cut_again, prefixed, unigram)
ODD = "\t\n\r\0\x07\x7f\x85\xa0\xad\u0301\u0300\u0e33\u200b\u200d\u200e\u202e\u2028\ufeff\ufffd\U0001f469\U0001f1ef\ufe0f1２½ﬁßİſ猫각\u1100\u1161éÅ"
WORDS = [
    "the cat",
    "<|end|>",
    " <|mid|> ",
    "[foo]",
    " [foo] ",
    "cat",
    "cats",
    "<b>",
    "\n\n\n",
    "   ",
    "▁▁",
    "<s>",
    "</s>",
]
WORDS += ["<unk>", "<|endoftext|>", "<0x41>", "<｜end▁of▁sentence｜>", "12345", "don't", "DON'T", *ODD]
TEXT = st.lists(st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=10).map("".join)
LONG = [char * 20_000 for char in ("a", " ", "\n", "猫", "\u0301", "1")]


@cache
def both(make):
    core = make()
    return Tokenizer(core.to_str()), core


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_as_the_library(make):
    ours, core = both(make)

    def same(text):
        ids = ours.encode(text, parse_special=True)
        assert ids == core.encode(text).ids
        found = ours.decode(ids)
        if "\ufffd" not in found:  # of bytes that are no text, the library makes as many as there are bytes
            assert found == core.decode(ids, skip_special_tokens=False)
        assert ours.encode_offsets(text, parse_special=True).ids == ids
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == found
        unknown = {ours.special_tokens.get("<unk>")}
        assert not set(ours.encode(text, bare=True)) & set(ours.special_tokens.values()) - unknown

    for text in LONG:
        assert ours.encode(text) == core.encode(text).ids

    @given(text=TEXT)
    @settings(max_examples=60)
    def on_any_unicode(text):
        same(text)

    on_any_unicode()


def test_tokens_added_behind_a_unigram_model_keep_their_ids():
    core = unigram()
    core.add_special_tokens(["<extra>"])
    core.add_tokens(["plainly"])
    ours = Tokenizer(core.to_str())
    plain = core.token_to_id("plainly")
    assert plain in ours.encode("a plainly b")
    assert not {core.token_to_id("<extra>"), core.token_to_id("</s>")} & set(ours.encode("<extra> </s> a", bare=True))
    assert core.token_to_id("<extra>") in ours.encode("<extra> a", parse_special=True)

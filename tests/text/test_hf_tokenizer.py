# ruff: noqa: E501  (characters)
"""`tokenizer.json` with the components of published models: ids, text and offsets equal `tokenizers`.

The tests cover parsed and unparsed special tokens, and long runs of one character.
"""

import json
import threading
import time
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


def llama2_original():
    """Return Llama 2 as first converted: a normalizer prepends ▁."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core = bpe(spaces, None, STRIPPED, fallback=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


def phi3():
    """Return Phi-3: special tokens that strip adjacent spaces."""
    core = llama2_original()
    core.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|mid|>", lstrip=True)])
    core.add_tokens([AddedToken("[foo]", lstrip=True, rstrip=True, normalized=False)])
    return core


def llama2_metaspace():
    """Return Llama 2 and Mistral as converted today: Metaspace prepends ▁ to the first text."""
    pre = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return bpe(None, pre, STRIPPED, fallback=True)


def gemma():
    """Return Gemma: no prefix space, and tokens for runs of line ends and spaces."""
    pre = pre_tokenizers.Split(" ", "merged_with_previous")
    core = bpe(normalizers.Replace(" ", "▁"), pre, decoders.Sequence(SPACES), fallback=True)
    core.add_tokens([AddedToken(char * n, normalized=False) for char in "\n▁" for n in range(2, 6)] + ["<b>"])
    return core


def qwen2():
    """Return Qwen2: NFC and a regex split."""
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    return bpe(normalizers.NFC(), pre_tokenizers.Sequence([split, BYTES]), special=("<|endoftext|>", "<s>"))


def llama3():
    """Return Llama 3: ignore_merges and a BOS template."""
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    core = bpe(None, pre_tokenizers.Sequence([split, BYTES]), ignore_merges=True)
    frame = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), frame])
    return core


def deepseek():
    """Return DeepSeek: successive splits, and single digits."""
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in (r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥가-퟿]+")]
    parts = pre_tokenizers.Sequence([LINES, *splits, pre_tokenizers.Digits(True), BYTES])
    return bpe(None, parts, special=("<｜end▁of▁sentence｜>",))


def gpt_neox():
    """Return GPT-NeoX: a prefix space, and tokens for runs of spaces."""
    core = bpe(None, pre_tokenizers.ByteLevel(add_prefix_space=True), special=("<|endoftext|>",))
    core.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 8)])
    return core


def t5():
    """Return T5: a unigram model with an EOS template."""
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


KINDS = (llama2_original, phi3, llama2_metaspace, gemma, qwen2, llama3, deepseek, gpt_neox, t5)
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
def test_ids_text_and_offsets_equal_tokenizers(make):
    ours, core = both(make)

    def assert_equal(text):
        ids = ours.encode(text, parse_special=True)
        assert ids == core.encode(text).ids
        found = ours.decode(ids)
        if "\ufffd" not in found:  # `tokenizers` emits one U+FFFD per invalid byte
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
    def check_random_text(text):
        assert_equal(text)

    check_random_text()


def test_tokens_added_after_a_unigram_vocabulary_keep_their_ids():
    core = t5()
    core.add_special_tokens(["<extra>"])
    core.add_tokens(["plainly"])
    ours = Tokenizer(core.to_str())
    plain = core.token_to_id("plainly")
    assert plain in ours.encode("a plainly b")
    assert not {core.token_to_id("<extra>"), core.token_to_id("</s>")} & set(ours.encode("<extra> </s> a", bare=True))
    assert core.token_to_id("<extra>") in ours.encode("<extra> a", parse_special=True)


@pytest.mark.parametrize("encode", ["encode", "encode_continuations", "encode_offsets"])
def test_other_threads_run_while_a_text_is_encoded(encode):
    """The library encodes a batch without Python's lock, and a single text with it."""
    backend = both(KINDS[0])[0].backend
    text, done, n, seen = "the cat " * 100_000, threading.Event(), 0, []

    def run():
        seen.append(n)
        getattr(backend, encode)(text if encode == "encode_offsets" else [text], **options)
        seen.append(n)
        done.set()

    options = {} if encode == "encode_continuations" else {"parse_special": False}
    thread = threading.Thread(target=run)
    thread.start()
    while not done.is_set():
        n += 1
        time.sleep(1e-4)
    thread.join()
    assert seen[1] - seen[0] > 20

"""Tokenizer folders of each format equal their reference library; precedence of formats; invalid folders."""

import base64
import json
import random

import pytest
import regex
import tiktoken
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers, pre_tokenizers, trainers

from glassformer.errors import TokenizerError
from glassformer.text.files.find import find_tokenizer
from glassformer.text.files.load import load_tokenizer
from glassformer.text.files.tiktoken import ENCODINGS, tiktoken_json
from glassformer.text.patterns import CL100K, GPT2, O200K, PATTERNS, byte_alphabet
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer

END = "<|endoftext|>"
ODD = (
    " \t\n\r\u3000\xa0\0\x1f\x7f\x85\xad\u200b\u200d\u200f\u202e\ufeff\ufffd\u0301é'sSſ1２½ﬁßǅİ猫가\U0001f469\U0001f1ef"
)
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(ODD), st.sampled_from("the cat's LOW ##12.")))
LONG = ("", " ", "a" * 3000, " " * 2000, "\u0301" * 500, "👩‍👩‍👧" * 100, "שלום עולם" * 50, "12" * 500)


def assert_same_ids(ours, theirs, examples=80):
    """Assert that two functions from text to ids are equal on long and random texts."""
    for text in LONG:
        assert ours(text) == theirs(text), repr(text[:40])

    @given(text=TEXT)
    @settings(max_examples=examples)
    def check_random_text(text):
        assert ours(text) == theirs(text)

    check_random_text()


def gpt2_folder(folder, corpus, names=("vocab.json", "merges.txt"), special=(END,), pattern="gpt2"):
    folder.mkdir(parents=True, exist_ok=True)
    trained = train_tokenizer([corpus] * 3, vocab_size=420, special_tokens=special, pattern=pattern)
    model = trained.backend.layout["model"]
    (folder / names[0]).write_text(json.dumps(model["vocab"]))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / names[1]).write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    return folder


# ---- GPT-2: vocabulary and merges


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2_files_equal_transformers(corpus, tmp_path, names):
    opened = load_tokenizer(gpt2_folder(tmp_path, corpus, names))
    reference = gpt2_folder(tmp_path / "reference", corpus)
    theirs = transformers.GPT2Tokenizer.from_pretrained(reference)
    assert (opened.eos_id, opened.bos_id, opened.add_bos) == (theirs.eos_token_id, theirs.bos_token_id, False)
    assert_same_ids(lambda text: opened.encode(text, parse_special=True), lambda text: theirs(text)["input_ids"])
    assert opened.encode(f"a{END}b", parse_special=True) == theirs(f"a{END}b")["input_ids"]
    assert opened.eos_id not in opened.encode(f"a{END}b")
    assert opened.decode(opened.encode(corpus)) == corpus


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "RobertaTokenizer"])
def test_gpt2_files_of_other_classes_equal_transformers(corpus, tmp_path, name):
    special = (END, "<s>", "</s>", "<unk>", "<pad>", "<mask>")
    folder = gpt2_folder(tmp_path, corpus, special=special, pattern="qwen2" if "Qwen" in name else "gpt2")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    opened, theirs = load_tokenizer(folder), getattr(transformers, name).from_pretrained(folder)
    assert_same_ids(opened.encode, lambda text: theirs(text, split_special_tokens=True)["input_ids"])
    assert opened.eos_id == theirs.eos_token_id


def test_published_vocabulary_equals_tokenizers(shared_file):
    folder = shared_file("llama3-tokenizer")
    opened = load_tokenizer(folder)
    core = Core(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert_same_ids(opened.encode, lambda text: core.encode(text).ids, examples=200)
    assert opened.vocab_size == core.get_vocab_size()


# ---- tiktoken


def ranks_of(corpus, size=600, pattern="llama3") -> dict[bytes, int]:
    """Return tiktoken ranks of a trained BPE: the 256 bytes, then the merged tokens in order."""
    to_byte = {char: byte for byte, char in byte_alphabet().items()}
    merges = train_tokenizer([corpus] * 3, vocab_size=size, special_tokens=(END,), pattern=pattern).backend.layout[
        "model"
    ]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    tokens = [bytes([byte]) for byte in range(256)] + [bytes(to_byte[c] for c in a + b) for a, b in pairs]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def rank_lines(ranks) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("file", ["tokenizer.model", "mine.tiktoken"])
def test_rank_files_equal_tiktoken(corpus, tmp_path, name, file):
    ranks = ranks_of(corpus)
    (tmp_path / file).write_bytes(rank_lines(ranks))
    n = len(ranks)
    config = {"pattern": PATTERNS[name], "added_tokens_decoder": {str(n + 1): {"content": END, "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": END}))
    opened = load_tokenizer(tmp_path)
    theirs = tiktoken.Encoding("mine", pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={END: n + 1})
    known = "".join(char for char in ODD if char not in "ſ")  # Unicode versions differ, see test_bpe
    text = st.text(
        st.one_of(st.sampled_from(known), st.sampled_from("the cat's LOW ##12.猫である。Привет")), max_size=60
    )

    @given(text=text)
    def check_known_text(text):
        assert opened.encode(text) == theirs.encode(text, disallowed_special=())

    check_known_text()
    assert opened.encode(corpus * 3) == theirs.encode(corpus * 3, disallowed_special=())
    assert opened.encode(f"a{END}", parse_special=True) == theirs.encode(f"a{END}", allowed_special="all")
    assert opened.eos_id == n + 1


def test_merges_follow_the_rank_of_the_result():
    """In random vocabularies, several merges can form the same token."""
    rng = random.Random(0)
    for _ in range(40):
        tokens = [bytes([byte]) for byte in range(256)]
        while len(tokens) < 290:
            a, b = rng.choices([t for t in tokens if set(t) <= set(b"abc")], k=2)
            tokens += [a + b] if a + b not in tokens and len(a + b) < 7 else []
        ranks = {token: rank for rank, token in enumerate(tokens)}
        opened, theirs = (
            Tokenizer(json.dumps(tiktoken_json(ranks, GPT2, ()))),
            tiktoken.Encoding("x", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={}),
        )
        for _ in range(30):
            text = "".join(rng.choices("abc ", [5, 5, 5, 1], k=rng.randint(1, 30)))
            assert opened.encode(text) == theirs.encode(text)


def test_patterns_of_known_encodings_equal_tiktoken(monkeypatch):
    from tiktoken_ext import openai_public

    rng = random.Random(1)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for pattern, name in ((CL100K, "cl100k_base"), (O200K, "o200k_base"), (GPT2, "gpt2")):
        source = _pattern_of(openai_public, name, monkeypatch)
        ours = tiktoken.Encoding("a", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        theirs = tiktoken.Encoding("b", pat_str=source, mergeable_ranks=ranks, special_tokens={})
        for _ in range(300):
            text = "".join(rng.choices("aB'sS 1\n\r!/é猫\t", k=rng.randint(1, 12)))
            assert ours._core_bpe.encode_ordinary(text) == theirs._core_bpe.encode_ordinary(text)
            assert regex.findall(pattern, text) == regex.findall(source, text), (name, text)
    assert all(len(set(control.values())) == len(control) for _, control, _ in ENCODINGS.values())


def _pattern_of(module, name, monkeypatch):
    """Return the pattern of an encoding of tiktoken without downloading its ranks."""
    for fetch in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(module, fetch, lambda *args, **options: {})
    return getattr(module, name)()["pat_str"]


# ---- WordPiece


@pytest.fixture(scope="module")
def wordpieces(corpus):
    core = Core(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    core.train_from_iterator([corpus] * 3, trainer)
    vocab = core.get_vocab()
    return "\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n"


@pytest.mark.parametrize(
    "config", [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_wordpiece_equals_bert_tokenizer(wordpieces, tmp_path, config):
    (tmp_path / "vocab.txt").write_text(wordpieces)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "BertTokenizer"}))
    opened, theirs = load_tokenizer(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    assert_same_ids(opened.encode, lambda text: theirs(text, split_special_tokens=True)["input_ids"])
    assert opened.encode("the [SEP] cat", parse_special=True) == theirs("the [SEP] cat")["input_ids"]
    assert opened.special_tokens["[SEP]"] not in opened.encode("the [SEP] cat", bare=True)
    ids = opened.encode("the cats")
    assert opened.decode(ids, skip_special=True) == "the cats"
    stream = opened.stream(skip_special=True)
    assert "".join(map(stream.push, ids)) + stream.finish() == "the cats"


# ---- precedence and errors


def test_formats_are_found_in_order_of_precedence(bpe, corpus, wordpieces, tmp_path):
    (tmp_path / "vocab.txt").write_text(wordpieces)
    assert find_tokenizer(tmp_path).format == "wordpiece"
    (tmp_path / "a.tiktoken").write_bytes(rank_lines(ranks_of(corpus)))
    assert find_tokenizer(tmp_path).format == "tiktoken"
    gpt2_folder(tmp_path, corpus)
    assert find_tokenizer(tmp_path).format == "bpe"
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05\n\x03abc")
    assert find_tokenizer(tmp_path).format == "sentencepiece"
    (tmp_path / "tokenizer.model").write_bytes(b"YWJj 0\n")
    assert find_tokenizer(tmp_path).format == "tiktoken"
    bpe.save(tmp_path)
    assert find_tokenizer(tmp_path).format == "json"
    assert find_tokenizer(tmp_path / "nothing") is None


BYTES = rank_lines({bytes([byte]): byte for byte in range(256)})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer: expected tokenizer.json, a SentencePiece model .* or vocab.txt"),
        ({"vocab.json": "{}"}, r"merges\.txt is missing, but vocab\.json exists"),
        ({"a.tiktoken": "", "b.tiktoken": ""}, r"several tiktoken files, .*: a\.tiktoken, b\.tiktoken"),
        ({"vocab.json": "[", "merges.txt": ""}, r"the vocabulary is not valid JSON"),
        ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "the vocabulary: a: input should be a valid integer"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "#version\na b\n"}, "line 2 of the merges must be .*, got 'a b'"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "Odd"}'}, "Odd"),
        ({"spiece.model": b"\n\x05\n\x03abc", "tokenizer_config.json": '{"tokenizer_class": "XLMRobertaTokenizer"}'},
         r"XLMRobertaTokenizer does not use the ids of its SentencePiece model: .* tokenizer\.json"),
        ({"vocab.txt": "a\nb\n"}, r"vocab\.txt: the unk_token '\[UNK\]' is not in the vocabulary of 2 tokens"),
        ({"vocab.txt": "a\nb\na\n"}, "contains the token 'a' twice"),
        ({"vocab.txt": b"\xff"}, r"vocab\.txt is not UTF-8"),
        ({"a.tiktoken": "YQ== 0\nnonsense\n"}, r"line 2 must be a base64 token .* and its rank, .* got b'nonsense'"),
        ({"a.tiktoken": "YQ== 0\n"}, "255 of the 256 bytes have no token; the first is 0"),
        ({"a.tiktoken": "YQ== 0\nYg== 0\n"}, "two tokens have the same rank"),
        ({"a.tiktoken": BYTES}, "no known encoding has 256 ranks .*added_tokens_decoder"),
    ],
)  # fmt: skip
def test_invalid_folder_raises_error(tmp_path, files, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(TokenizerError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_wordpiece_is_saved_as_tokenizer_json(wordpieces, tmp_path):
    (tmp_path / "vocab.txt").write_text(wordpieces)
    opened = load_tokenizer(tmp_path)
    opened.save(tmp_path / "saved")
    again, auto = load_tokenizer(tmp_path / "saved"), transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("the cat", "Who's THAT? 吾輩"):
        assert again.encode(text) == opened.encode(text) == auto(text)["input_ids"]

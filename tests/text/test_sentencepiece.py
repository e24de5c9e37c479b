"""SentencePiece models: ids and offsets equal `sentencepiece` for all model types and texts."""

import io
import random
from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import TokenizerError
from glassformer.text.files.load import load_tokenizer
from glassformer.text.sentencepiece.model_file import (
    BPE,
    NORMAL,
    UNUSED,
    SentencePieceModel,
    SentencePiecePiece,
    parse_sentencepiece,
    serialize_sentencepiece,
)
from glassformer.text.sentencepiece.segmenter import Segmenter
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer

CORPUS = """The cat sat on the mat; it's 12:30, and the dog isn't there. They'll say: "Who's that?"
    def f(x):\n\treturn x ** 2  # naïve façade — coöperate
吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。Привет, мир! שלום 👩‍👩‍👧 🇯🇵 é é ﷽
the the the cat cats catty, low lower lowest, new newer newest wide wider widest <sep> <b>bold</b>
"""

KINDS = {
    "unigram": {"model_type": "unigram", "vocab_size": 230},
    "unigram-bytes": {"model_type": "unigram", "vocab_size": 420, "byte_fallback": True, "character_coverage": 0.98},
    "unigram-defined": {"model_type": "unigram", "vocab_size": 240, "user_defined_symbols": "<sep>,cat,▁▁,<b>,ca"},
    "unigram-casefold": {"model_type": "unigram", "vocab_size": 220, "normalization_rule_name": "nmt_nfkc_cf"},
    "bpe": {"model_type": "bpe", "vocab_size": 250},
    "bpe-llama": {
        "model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "character_coverage": 0.98,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True,
        "allow_whitespace_only_pieces": True,
    },
    "bpe-gemma": {
        "model_type": "bpe", "vocab_size": 430, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "add_dummy_prefix": False, "user_defined_symbols": "<sep>,▁▁,▁▁▁▁,\n\n",
    },
    "bpe-across": {"model_type": "bpe", "vocab_size": 260, "split_by_whitespace": False},
    "bpe-suffix": {"model_type": "bpe", "vocab_size": 250, "treat_whitespace_as_suffix": True},
}  # fmt: skip


@cache
def trained(name: str) -> bytes:
    out = io.BytesIO()
    lines = [line for line in CORPUS.splitlines() for _ in range(3)]
    options = {"hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1} | KINDS[name]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **options)
    return out.getvalue()


@cache
def both(name: str) -> tuple[Segmenter, sentencepiece.SentencePieceProcessor]:
    data = trained(name)
    return Segmenter(parse_sentencepiece(data)), sentencepiece.SentencePieceProcessor(model_proto=data)


def assert_same_ids(ours: Segmenter, theirs: sentencepiece.SentencePieceProcessor, text: str) -> None:
    ids = theirs.encode(text)
    assert ours.encode(text) == ids, repr(text)
    offset_ids, offsets = ours.encode_offsets(text)
    assert offset_ids == ids
    if ours.byte_ids is None:  # sentencepiece gives offsets only to the last byte of a character
        byte_offsets = [0]
        for char in text:
            byte_offsets.append(byte_offsets[-1] + len(char.encode()))
        wanted = [(piece.begin, piece.end) for piece in theirs.encode(text, return_type="proto").pieces]
        assert [(byte_offsets[start], byte_offsets[end]) for start, end in offsets] == wanted


ODD = " \t\n\u3000\xa0\u2581\0\x1f\x7f\x85\xad\u200b\u200d\u200f\u202e\ufeff\ufffd"
ODD += "ﬁ½①ｶﾞ가각\u1100\u1161\u0301\u0300é👩👧🇯🇵ßǅİſ"
TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(ODD), st.sampled_from("catheolwrs<>b0 1▁ネコ猫")),
    max_size=40,
)


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXT)
@settings(max_examples=60)
def test_ids_of_unicode_text_equal_sentencepiece(name, text):
    assert_same_ids(*both(name), text)


@pytest.mark.parametrize("name", KINDS)
def test_ids_of_piece_mixtures_equal_sentencepiece(name):
    """Sequences of pieces, prefixes of pieces and spaces, where several merges compete."""
    ours, theirs = both(name)
    rng, pieces = random.Random(0), [piece.text for piece in ours.model.pieces]
    for _ in range(100):
        parts = [rng.choice(pieces)[: rng.choice([None, None, 1, 2])] for _ in range(rng.randint(1, 12))]
        assert_same_ids(ours, theirs, "".join(parts).replace("▁", rng.choice([" ", "▁", "  "])))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "text", [CORPUS, "a" * 5000, " " * 3000, "ab" * 2000, "👩‍👩‍👧" * 300, "\u0301" * 800, "", " ", "▁"]
)
def test_ids_of_long_runs_equal_sentencepiece(name, text):
    assert_same_ids(*both(name), text)


def test_scores_of_long_texts_round_like_sentencepiece(shared_file):
    """Scores sum to about −10⁵, where 32-bit floats are 0.008 apart: the best segmentation may depend on rounding."""
    data = shared_file("sentencepiece/test_model.model").read_bytes()
    text = shared_file("tinyshakespeare.txt").read_text("utf-8")[:60_000]
    assert_same_ids(Segmenter(parse_sentencepiece(data)), sentencepiece.SentencePieceProcessor(model_proto=data), text)


@pytest.mark.parametrize("name", ["llama2", "test_model", "test_ja_model"])
def test_ids_of_published_models_equal_sentencepiece(shared_file, name):
    data = shared_file(f"sentencepiece/{name}.model").read_bytes()
    ours, theirs = Segmenter(parse_sentencepiece(data)), sentencepiece.SentencePieceProcessor(model_proto=data)
    for file in ("tinyshakespeare.txt", "wagahai-ja.txt"):
        assert_same_ids(ours, theirs, shared_file(file).read_text("utf-8")[:4_000])

    @given(text=TEXT)
    @settings(max_examples=50)
    def check_random_text(text):
        assert_same_ids(ours, theirs, text)

    check_random_text()
    rng, pieces = random.Random(1), [piece.text for piece in ours.model.pieces]
    for _ in range(200):
        assert_same_ids(ours, theirs, "".join(rng.choices(pieces, k=rng.randint(1, 12))).replace("▁", " "))


def model_with_scores(pieces: dict[str, float], **kind) -> bytes:
    all_pieces = [
        SentencePiecePiece("<unk>", 0.0, 2),
        *(SentencePiecePiece(text, score) for text, score in pieces.items()),
    ]
    options = {"kind": BPE, "dummy_prefix": False, "remove_extra_spaces": False} | kind
    return serialize_sentencepiece(SentencePieceModel(tuple(all_pieces), **options))


@pytest.mark.parametrize("kind", [1, 2])
def test_ids_with_tied_scores_equal_sentencepiece(kind):
    """With few letters and scores, every merge is tied and the leftmost must win; some pieces are unused."""
    rng = random.Random(2)
    for _ in range(12):
        pieces = dict.fromkeys("abc") | {"".join(rng.choices("abc", k=rng.randint(2, 5))): 0 for _ in range(25)}
        data = model_with_scores({text: float(rng.randint(-4, -1)) for text in pieces}, kind=kind)
        model = parse_sentencepiece(data)
        unused = [
            replace(p, type=UNUSED) if p.type == NORMAL and p.text not in "abc" and rng.random() < 0.2 else p
            for p in model.pieces
        ]
        for variant in (model, replace(model, pieces=tuple(unused))):
            theirs = sentencepiece.SentencePieceProcessor(model_proto=serialize_sentencepiece(variant))
            ours = Segmenter(variant)
            for _ in range(20):
                assert_same_ids(ours, theirs, "".join(rng.choices("abcd ", [4, 4, 4, 1, 1], k=rng.randint(1, 40))))


@pytest.mark.parametrize("name", KINDS)
def test_serialized_model_parses_to_the_same_model(name):
    model = parse_sentencepiece(trained(name))
    assert parse_sentencepiece(serialize_sentencepiece(model)) == model
    theirs = sentencepiece.SentencePieceProcessor(model_proto=serialize_sentencepiece(model))
    assert theirs.encode(CORPUS) == both(name)[1].encode(CORPUS)
    assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id()) == (0, 1, 2)


# ---- folders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(trained("bpe-llama"))
    return tmp_path


def test_folder_with_tokenizer_model_loads_and_saves(folder, tmp_path):
    opened = load_tokenizer(folder)
    theirs = both("bpe-llama")[1]
    assert (opened.bos_id, opened.eos_id, opened.add_bos, opened.vocab_size) == (1, 2, True, len(theirs))
    for text in (CORPUS, "", " a", "<s> </s> <unk>", "猫 ネコ\0"):
        assert opened.encode(text) == [1, *theirs.encode(text)]
        assert opened.encode(text, bare=True) == theirs.encode(text)
        assert opened.decode(opened.encode(text, bare=True)) == text
        stream = opened.stream()
        assert "".join(map(stream.push, theirs.encode(text))) + stream.finish() == text
    assert opened.encode("a</s>", parse_special=True, bare=True) == [*theirs.encode("a"), 2]
    assert not {0, 1, 2} & set(opened.encode("a</s><unk><s>", bare=True))
    opened.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == trained("bpe-llama")
    assert again.encode(CORPUS) == opened.encode(CORPUS)


def test_decoded_text_equals_sentencepiece(folder):
    opened, theirs, rng = load_tokenizer(folder), both("bpe-llama")[1], random.Random(3)
    pieces = [i for i in range(3, len(theirs)) if theirs.id_to_piece(i) != "<0x20>"]  # decoded like ▁ at the start
    for _ in range(300):
        ids = [rng.choice(pieces) for _ in range(rng.randint(1, 10))]
        wanted = theirs.decode(ids)
        assert opened.decode(ids) == wanted or "\ufffd" in wanted


def test_added_tokens_json_extends_the_vocabulary(folder):
    n = len(both("bpe-llama")[1])
    (folder / "added_tokens.json").write_text(f'{{"<|user|>": {n}, "<tag>": {n + 1}}}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|user|>", "add_bos_token": false}')
    opened, theirs = load_tokenizer(folder), both("bpe-llama")[1]
    assert (opened.eos_id, opened.vocab_size, opened.special_tokens["<|user|>"]) == (n, n + 2, n)
    assert opened.encode("a<tag>b<|user|>c") == [
        *theirs.encode("a"),
        n + 1,
        *opened.backend.encode_continuations(["b<|user|>c"])[0],
    ]
    assert opened.encode("a<|user|>", parse_special=True) == [*theirs.encode("a"), n]
    assert opened.decode(opened.encode("a<tag>b<|user|>c")) == "a<tag>b<|user|>c"


@pytest.mark.parametrize("legacy", [False, True])
def test_space_after_a_special_token_equals_llama_tokenizer(folder, legacy):
    """`legacy` adds a space before each text between special tokens; otherwise only before the first text."""
    import transformers

    (folder / "tokenizer_config.json").write_text(f'{{"legacy": {str(legacy).lower()}, "bos_token": "<s>"}}')
    opened = load_tokenizer(folder)
    theirs = transformers.LlamaTokenizer.from_pretrained(folder, legacy=legacy)
    for text in (
        "a</s>b",
        "</s>the cat",
        "the </s>cat</s>",
    ):  # not " cat": transformers drops one of two spaces, sentencepiece does not
        assert opened.encode(text, parse_special=True, bare=True) == theirs(text, add_special_tokens=False)["input_ids"]


def test_user_defined_piece_in_the_template_is_a_special_token():
    core = SentencePieceTokenizer(trained("bpe-gemma"), template="<sep>{{ x }}")
    assert core.special_tokens["<sep>"] in both("bpe-gemma")[1].encode("a<sep>")
    assert core.special_tokens["<sep>"] not in core.encode(["a<sep>"], parse_special=False)[0]
    assert core.special_tokens["<sep>"] in core.encode(["a<sep>"], parse_special=True)[0]
    assert "<sep>" not in SentencePieceTokenizer(trained("bpe-gemma")).special_tokens


# ---- invalid files


def test_truncated_model_raises_error_with_file_name(tmp_path):
    data, rng = trained("unigram"), random.Random(4)
    for end in [0, 1, 2, *(rng.randrange(len(data)) for _ in range(60))]:
        (tmp_path / "tokenizer.model").write_bytes(data[:end])
        with pytest.raises(TokenizerError, match=r"tokenizer\.model: "):
            load_tokenizer(tmp_path)


def test_damaged_model_raises_only_tokenizer_error():
    data, rng = trained("unigram"), random.Random(5)
    for _ in range(150):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        with suppress(TokenizerError):
            Segmenter(parse_sentencepiece(bytes(bad))).encode(CORPUS[:200])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 3}, "of type 3 are not supported, only unigram, bpe"),
        ({"pieces": (SentencePiecePiece("a"),)}, "one piece of type unknown, but it has 0"),
        (
            {"pieces": (SentencePiecePiece("<unk>", 0, 2), SentencePiecePiece("a"), SentencePiecePiece("a"))},
            "piece 2 'a' is a duplicate of piece 1",
        ),
        (
            {"pieces": (SentencePiecePiece("<unk>", 0, 2), SentencePiecePiece("a", 0, 9))},
            "piece 1 'a' has the unknown type 9",
        ),
        (
            {"pieces": (SentencePiecePiece("<unk>", 0, 2), SentencePiecePiece("<0x00>", 0, 6)), "byte_fallback": True},
            "requires 256 byte pieces, but the model has 1",
        ),
        ({"charsmap": b"\xff\xff\xff\xff123"}, "normalization rules are damaged"),
    ],
)
def test_invalid_model_raises_error(change, message):
    model = replace(parse_sentencepiece(trained("unigram")), **change)
    with pytest.raises(TokenizerError, match=message):
        Segmenter(parse_sentencepiece(serialize_sentencepiece(model)))


def test_unknown_normalizer_field_raises_error():
    extra = b"\x3a\x01x"  # field 7 of the normalizer_spec
    with pytest.raises(TokenizerError, match=r"field 7 of normalizer_spec is not supported"):
        parse_sentencepiece(trained("unigram") + b"\x1a" + bytes([len(extra)]) + extra)


def with_normalizer_field(data: bytes, field: bytes) -> bytes:
    """Return a model file with one more field in its normalizer_spec (field 3 of the model)."""
    normalizer = data.index(b"\x1a", data.rindex(b"</s>"))
    size, end = data[normalizer + 1], normalizer + 2 + data[normalizer + 1]
    assert size + len(field) < 128
    return data[: normalizer + 1] + bytes([size + len(field)]) + data[normalizer + 2 : end] + field + data[end:]


@pytest.mark.parametrize(
    ("field", "neutral"), [(b"\x38\x00", True), (b"\x42\x00", True), (b"\x4d" + bytes(4), True), (b"\x38\x01", False)]
)
def test_option_that_is_off_is_ignored(field, neutral):
    """Marian's SentencePiece writes field 7, encode_case, also when it is off."""
    data = serialize_sentencepiece(replace(parse_sentencepiece(trained("bpe-llama")), eos="</s>"))
    changed = with_normalizer_field(data, field)
    ids = sentencepiece.SentencePieceProcessor(model_proto=changed).encode("the cat")
    if neutral:
        assert SentencePieceTokenizer(changed).encode(["the cat"], parse_special=False) == [ids]
    else:
        with pytest.raises(TokenizerError, match="field 7 of normalizer_spec is not supported"):
            SentencePieceTokenizer(changed)

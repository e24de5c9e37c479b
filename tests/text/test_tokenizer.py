"""Encoding, offsets, special tokens and files, compared with `tokenizers` and `transformers`."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from glassformer import atomic
from glassformer.errors import TokenizerError
from glassformer.text.files.load import load_tokenizer
from glassformer.text.tokenizer import Tokenizer

EOT = "<|endoftext|>"
SAMPLES = [
    "",
    " ",
    "Hello  world!\n\n",
    "it's 1234",
    "吾輩は猫である。",
    "👩‍👩‍👧 e\u0301 é ﷽",
    "\x00\ufffd\u2028",
    "a" * 600,
]


@given(text=st.text())
def test_bpe_round_trips_any_text(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert b"".join(bpe.token_bytes(i) for i in ids) == text.encode()
    assert bpe.encode_batch([text, "x", text]) == [ids, bpe.encode("x"), ids]


def test_char_and_word_round_trip_known_text(char, word, corpus):
    assert char.decode(char.encode(corpus)) == corpus
    assert len(char.encode(corpus)) == len(corpus)
    assert word.decode(word.encode(corpus)) == corpus
    assert [word.token_bytes(i) for i in word.encode("the cat")] == [b"the", b" cat"]
    assert char.decode(char.encode("cϾt")) == "c<|unk|>t"
    assert char.decode(char.encode("cϾt"), skip_special=True) == "ct"


# ---- offsets


@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \na猫👩"))))
def test_offsets_cover_the_bytes_of_each_token(bpe, text):
    found = bpe.encode_offsets(text)
    assert found.ids == bpe.encode(text)
    assert b"".join(found.tokens) == text.encode()
    at = 0  # in bytes
    for token, (start, end) in zip(found.tokens, found.offsets, strict=True):
        first, after = len(text[:start].encode()), len(text[:end].encode())
        assert first <= at
        assert at + len(token) <= after
        assert len(text[start : start + 1].encode()) > at - first, "starts in the first byte's character"
        assert after - (at + len(token)) < len(text[end - 1 : end].encode()), "ends in the last byte's character"
        at += len(token)
    assert at == len(text.encode())


def test_tokens_of_one_character_share_its_offsets(bpe):
    found = bpe.encode_offsets("a𓂀b")
    assert found.tokens == [b"a", b"\xf0", b"\x93", b"\x82", b"\x80", b"b"]
    assert found.offsets == [(0, 1), *[(1, 2)] * 4, (2, 3)]


def test_trim_offsets_of_the_file_is_ignored(bpe):
    layout = json.loads(bpe.backend.json)
    layout["post_processor"]["trim_offsets"] = True
    trimming = Tokenizer(json.dumps(layout))
    for special in (False, True):
        assert trimming.encode_offsets("the cat", parse_special=special) == bpe.encode_offsets("the cat")
    assert bpe.encode_offsets("the cat").offsets[-1] == (3, 7)


@pytest.mark.parametrize("text", ["the cat sat", "c Ͼ", ""])
def test_offsets_of_char_and_word_cover_the_text(char, word, text):
    for simple in (char, word):
        found = simple.encode_offsets(text)
        assert "".join(text[start:end] for start, end in found.offsets) == text
        for token, (start, end) in zip(found.tokens, found.offsets, strict=True):
            assert token in (text[start:end].encode(), b"<|unk|>")


# ---- special tokens


def test_special_tokens_in_text_are_plain_text(tokenizer):
    for name, index in tokenizer.special_tokens.items():
        text = f"the {name} cat{name}{name}"
        if name != "<|unk|>":  # <|unk|> also encodes unknown text
            assert index not in tokenizer.encode(text)
            assert index not in tokenizer.encode_offsets(text).ids
            assert index not in tokenizer.encode_batch([text, name])[1]
        assert tokenizer.encode(text, parse_special=True).count(index) >= 3
    assert tokenizer.special_tokens[EOT] == tokenizer.eos_id == 0


@given(parts=st.lists(st.sampled_from([EOT, "<|user|>", "<|", "|>", "endoftext", " ", "<", "|", ">", "x"])))
def test_random_text_never_becomes_a_special_token(bpe, parts):
    text = "".join(parts)
    assert not {0, 1} & set(bpe.encode(text))
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.decode(bpe.encode(text, parse_special=True)) == text
    assert bpe.encode(text, parse_special=True).count(0) == text.count(EOT)


def test_copies_keep_special_tokens_in_text_plain(bpe):
    for copied in (copy.deepcopy(bpe), pickle.loads(pickle.dumps(bpe))):
        assert copied.encode(f"a{EOT}") == bpe.encode(f"a{EOT}")
        assert 0 not in copied.encode(EOT)


def test_encoding_is_thread_safe(bpe):
    text = f"the cat {EOT}" * 50
    wanted = {special: bpe.encode(text, parse_special=special) for special in (False, True)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: bpe.encode(text, parse_special=bool(i % 2)), range(400)))
    assert all(ids == wanted[bool(i % 2)] for i, ids in enumerate(found))


def with_added(tokenizer, *tokens) -> str:
    core = Core.from_str(tokenizer.backend.json)
    core.add_tokens(list(tokens))
    return core.to_str()


def test_added_tokens_of_special_form_or_template_are_special(bpe):
    """Without the special flag, <|fim|> (by form) and <think> (in the template) are special; <b> and spaces are not."""
    plain = [AddedToken(t, special=False, normalized=False) for t in ("<|fim|>", "<think>", "<b>", "    ")]
    opened = Tokenizer(with_added(bpe, *plain), chat_template="{% if x %}<think>    {% endif %}")
    ids = {t.content: opened.backend.core.token_to_id(t.content) for t in plain}
    assert set(opened.special_tokens) == {EOT, "<|user|>", "<|fim|>", "<think>"}
    text = "<|fim|><think><b>    x"
    assert {ids["<|fim|>"], ids["<think>"]}.isdisjoint(opened.encode(text))
    assert {ids["<b>"], ids["    "]} <= set(opened.encode(text))
    assert set(ids.values()) <= set(opened.encode(text, parse_special=True))
    assert opened.decode(opened.encode(text, parse_special=True)) == text


# ---- BOS


def with_bos(tokenizer) -> str:
    core = Core.from_str(tokenizer.backend.json)
    core.post_processor = processors.TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", 1)])
    return core.to_str()


@pytest.mark.parametrize(
    ("in_json", "add_bos_token", "expected"), [(0, None, 0), (1, None, 1), (0, True, 1), (1, False, 0)]
)
def test_bos_is_added_once(bpe, tmp_path, in_json, add_bos_token, expected):
    from transformers import AutoTokenizer

    config = {"bos_token": "<|user|>", "eos_token": {"content": EOT, "lstrip": False}}
    opened = Tokenizer(
        with_bos(bpe) if in_json else bpe.backend.json,
        config | ({} if add_bos_token is None else {"add_bos_token": add_bos_token}),
    )
    assert (opened.add_bos, opened.bos_id, opened.eos_id) == (bool(expected), 1, 0)
    bare = bpe.encode("the cat")
    assert opened.encode("the cat") == [1] * expected + bare
    assert opened.encode("the cat", bare=True) == bare
    assert opened.encode_batch(["the cat"], bare=True) == [bare]
    assert opened.encode_offsets("the cat").offsets[:expected] == [(0, 0)] * expected
    assert opened.encode_offsets("the cat", bare=True).ids == bare
    opened.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode("the cat") == opened.encode("the cat")
    assert AutoTokenizer.from_pretrained(tmp_path)("the cat")["input_ids"] == opened.encode("the cat")


# ---- files


def test_ids_equal_autotokenizer(tokenizer, corpus, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert auto.is_fast
    assert auto.eos_token_id == tokenizer.eos_id
    assert len(auto) == tokenizer.vocab_size
    for text in [*SAMPLES, corpus, f"a{EOT}b<|unk|>"]:
        ids = tokenizer.encode(text, parse_special=True)
        assert auto(text)["input_ids"] == ids
        assert auto.decode(ids) == tokenizer.decode(ids)
        if EOT not in text:
            assert tokenizer.encode(text) == ids
    again = load_tokenizer(tmp_path)
    assert (again.special_tokens, again.eos_id, again.vocab_size) == (tokenizer.special_tokens, 0, tokenizer.vocab_size)
    assert again.encode(corpus) == tokenizer.encode(corpus)


def test_gguf_converters_recognize_the_pre_tokenizer(bpe):
    layout = json.loads(bpe.backend.json)
    assert layout["pre_tokenizer"]["type"] == "ByteLevel"
    assert layout["pre_tokenizer"]["use_regex"] is True
    assert layout["pre_tokenizer"]["add_prefix_space"] is False
    assert layout["normalizer"] is None


def test_save_keeps_config_and_template(bpe, tmp_path):
    config = {"eos_token": EOT, "model_max_length": 77, "auto_map": {"AutoTokenizer": ["evil.py", None]}, "mine": 1}
    Tokenizer(bpe.backend.json, config, chat_template="{{ x }}").save(tmp_path / "new" / "folder")
    again = load_tokenizer(tmp_path / "new" / "folder")
    assert again.chat_templates == {"default": "{{ x }}"}
    assert (again.config["model_max_length"], again.config["mine"]) == (77, 1)
    assert "auto_map" not in again.config


def test_failed_save_keeps_the_old_files(bpe, tmp_path, monkeypatch):
    bpe.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"tokenizer.json", "tokenizer_config.json"}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json could not be written: No space left"):
        Tokenizer(bpe.backend.json, {"other": 1}).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_truncation_and_padding_of_the_file_are_ignored(bpe):
    core = Core.from_str(bpe.backend.json)
    core.enable_truncation(4)
    core.enable_padding(length=9)
    assert Tokenizer(core.to_str()).encode("the cat sat on the mat") == bpe.encode("the cat sat on the mat")


# ---- SentencePiece BPE in tokenizer.json


def test_sentencepiece_bpe_in_tokenizer_json():
    """Llama 2: ▁ replaces spaces and is prepended; unknown characters are encoded as <0xXX> bytes."""
    tokens = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    model = models.BPE(
        {t: i for i, t in enumerate(tokens)}, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"
    )
    core = Core(model)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    core.add_special_tokens(["<unk>", "<s>"])
    opened = Tokenizer(core.to_str())
    for text in ("ab a", "  ab 猫 b", "", "<s>", "猫"):
        ids = opened.encode(text)
        assert ids == core.encode(text).ids or text == "<s>"
        assert opened.decode(ids) == text
        stream = opened.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == text
    assert opened.token_bytes(tokens.index("<0xE7>")) == b"\xe7"
    assert opened.token_bytes(tokens.index("▁ab")) == b" ab"
    assert opened.encode_offsets("ab 猫").offsets == [(0, 2), (2, 3), (3, 4), (3, 4), (3, 4)]


# ---- errors


def test_lone_surrogates_raise_error_with_position(tokenizer):
    for call in (tokenizer.encode, tokenizer.encode_offsets):
        with pytest.raises(TokenizerError, match=r"character 2 is a lone surrogate \(U\+D83D\)"):
            call("ab\ud83dc")
    with pytest.raises(TokenizerError, match="character 0 of text 1 is a lone surrogate"):
        tokenizer.encode_batch(["fine", "\udfff"])


def test_ids_outside_the_vocabulary_raise_error(tokenizer):
    for bad, calls in (
        (tokenizer.vocab_size, [tokenizer.token_bytes]),
        (-1, [tokenizer.token_bytes, tokenizer.stream().push, lambda i: tokenizer.decode([2, i])]),
    ):
        for call in calls:
            with pytest.raises(TokenizerError, match=f"token id {bad} .* 0 to {tokenizer.vocab_size - 1}"):
                call(bad)


def test_id_without_a_token_has_no_text(tokenizer):
    """Models often have more rows than their tokenizer has tokens."""
    core = Core.from_str(tokenizer.backend.json)
    ids, padding = tokenizer.encode("the cat"), tokenizer.vocab_size
    ids[1:1] = [padding, padding + 100]
    stream = tokenizer.stream()
    expected = core.decode(ids) if tokenizer.backend.kind == "BPE" else "the cat"
    assert tokenizer.decode(ids) == "".join(map(stream.push, ids)) + stream.finish() == expected
    assert (tokenizer.token_text(padding), tokenizer.find_bytes(padding)) == (f"#{padding}", None)


def test_unused_id_raises_error(char):
    layout = json.loads(char.backend.json)
    removed = next(t for t, i in layout["model"]["vocab"].items() if i == 5)
    del layout["model"]["vocab"][removed]
    with pytest.raises(TokenizerError, match=r"token id 5 is in the range .*, but no token has it"):
        Tokenizer(json.dumps(layout)).token_bytes(5)


def test_unsupported_decoder_raises_error(bpe):
    layout = json.loads(bpe.backend.json)
    ctc = {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}
    regex = {"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "}
    for decoder, message in ((ctc, "CTC; supported are none, ByteLevel"), (regex, "regular expression")):
        with pytest.raises(TokenizerError, match=message):
            Tokenizer(json.dumps(layout | {"decoder": decoder}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"has no tokenizer: expected tokenizer\.json"),
        ("tokenizer.json", b'{"version": "1.0", "model"', r"tokenizer\.json is not valid JSON"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "New"}}', r"tokenizer\.json: .* cannot read it"),
        ("tokenizer.json", b"\xff\xfe", r"tokenizer\.json is not UTF-8"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer_config.json", b"[1]", r"tokenizer_config\.json: input should be a valid dictionary"),
        ("tokenizer_config.json", b'{"eos_token": 3}', r"tokenizer_config\.json: eos_token"),
        ("tokenizer_config.json", b'{"add_bos_token": true}', r"sets add_bos_token, but no bos_token"),
    ],
)
def test_damaged_folder_raises_error_with_path(bpe, tmp_path, name, content, message):
    bpe.save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_byte_level_decoding_equals_tokenizers(bpe):
    """Complete characters only; test_stream_decoder covers partial ones."""
    core = Core.from_str(bpe.backend.json)
    assert isinstance(core.pre_tokenizer, pre_tokenizers.ByteLevel)
    ids = bpe.encode("".join(SAMPLES))
    assert core.decode(ids, skip_special_tokens=False) == bpe.decode(ids)

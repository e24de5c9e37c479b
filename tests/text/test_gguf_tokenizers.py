"""Tokenizers in GGUF metadata: export and import preserve the ids; unsupported tokenizers raise errors."""

import json
import random
from contextlib import nullcontext

import pytest
from gguf import Keys
from hypothesis import given
from hypothesis import strategies as st
from test_sentencepiece import CORPUS, both, trained
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from glassformer.errors import TokenizerError
from glassformer.formats.gguf.tokenizer_keys import KEY, PRE_TOKENIZER_BY_NAME
from glassformer.formats.gguf.tokenizer_read import tokenizer_from_gguf
from glassformer.formats.gguf.tokenizer_write import lost_in_gguf, tokenizer_to_gguf, warn_of_losses
from glassformer.text.files.load import load_tokenizer
from glassformer.text.sentencepiece.model_file import parse_sentencepiece
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer

TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t▁é猫👩\u0301\u200d12 catheé</s>")), max_size=50
)


def assert_round_trip(tokenizer, special=()):
    metadata = tokenizer_to_gguf(tokenizer, vocab_size=tokenizer.vocab_size + 3)
    imported = tokenizer_from_gguf(json.loads(json.dumps(metadata)))  # JSON types only
    for name in ("bos_id", "eos_id", "add_bos"):
        assert getattr(imported, name) == getattr(tokenizer, name)
    assert len(metadata[KEY + "tokens"]) == tokenizer.vocab_size + 3
    assert tokenizer_to_gguf(imported, vocab_size=tokenizer.vocab_size + 3) == metadata
    for name in special:
        assert imported.encode(f"a{name}", parse_special=True) == tokenizer.encode(f"a{name}", parse_special=True)
        assert imported.special_tokens[name] not in imported.encode(f"a{name}", bare=True)

    @given(text=TEXT)
    def check_random_text(text):
        assert imported.encode(text) == tokenizer.encode(text)

    check_random_text()
    assert imported.encode(CORPUS) == tokenizer.encode(CORPUS)
    assert imported.decode(imported.encode("the cat", bare=True)) == "the cat"
    return metadata


@pytest.mark.parametrize("name", ["bpe-llama", "bpe-gemma", "unigram", "unigram-bytes", "unigram-defined"])
def test_sentencepiece_round_trip(name):
    metadata = assert_round_trip(Tokenizer(SentencePieceTokenizer(trained(name))), ["</s>"])
    assert metadata[KEY + "model"] == ("llama" if "bpe" in name else "t5")
    assert metadata[KEY + "tokens"][5] == both(name)[1].id_to_piece(5)


@pytest.mark.parametrize("pattern", ["gpt2", "qwen2", "llama3", "o200k"])
def test_byte_level_bpe_round_trip(pattern):
    special = ("<|endoftext|>", "<|user|>")
    tokenizer = train_tokenizer([CORPUS] * 3, vocab_size=400, special_tokens=special, pattern=pattern)
    metadata = assert_round_trip(tokenizer, special)
    assert metadata[KEY + "model"] == "gpt2"
    assert metadata[KEY + "pre"] in PRE_TOKENIZER_BY_NAME
    layout = json.loads(tokenizer.backend.json)
    layout["model"]["ignore_merges"] = True
    if pattern == "llama3":
        assert assert_round_trip(Tokenizer(json.dumps(layout), tokenizer.config))[KEY + "pre"] == "llama-bpe"


def tokenizer_with_pre(pre, **model):
    """Return a tokenizer trained on the corpus, with the pre-tokenizer of a GGUF name."""
    layout = json.loads(
        train_tokenizer([CORPUS] * 3, vocab_size=400, special_tokens=("<|end|>",), pattern="o200k").backend.json
    )
    layout["pre_tokenizer"] = PRE_TOKENIZER_BY_NAME[pre]
    layout["model"].update(model)
    return Tokenizer(json.dumps(layout), {"eos_token": "<|end|>"})


OTHERS = ["falcon", "smollm", "dbrx", "seed-coder", "deepseek-coder", "deepseek-llm", "deepseek-v3"]


@pytest.mark.parametrize(("pre", "ignore_merges"), [("tekken", True), *((pre, False) for pre in OTHERS)])
def test_pre_tokenizers_of_published_models_round_trip(pre, ignore_merges):
    tokenizer = tokenizer_with_pre(pre, ignore_merges=ignore_merges)
    assert assert_round_trip(tokenizer, ["<|end|>"])[KEY + "pre"] == pre
    if ignore_merges:
        with pytest.raises(TokenizerError, match="only for models with ignore_merges"):
            tokenizer_to_gguf(tokenizer_with_pre(pre, ignore_merges=False))


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("falcon", ["it", "'", "s", " ", "123", "45", " ", "6", "!?", " ok"]),
        ("tekken", ["it", "'s", " ", "1", "2", "3", "4", "5", " ", "6", "!?", " ok"]),
        ("llama-bpe", ["it", "'s", " ", "123", "45", " ", "6", "!?", " ok"]),
        ("deepseek-r1-qwen", ["it", "'s", " ", "1", "2", "3", "4", "5", " ", "6", "!?", " ok"]),
        ("seed-coder", ["it", "'s", " ", "1", "2", "3", "4", "5", " ", "6", "!?", " ok"]),
        ("deepseek-coder", ["it", "'", "s", " ", "1", "2", "3", "4", "5", " ", "6", "!?", " ok"]),
        ("deepseek-llm", ["it", "'", "s", " ", "1", "2", "3", "4", "5", " ", "6", "!?", " ok"]),
        ("deepseek-v3", ["it", "'s", " ", "123", "45", " ", "6", "!?", " ok"]),
    ],
)
def test_pre_tokenizer_names_split_words(pre, words):
    assert split_words(pre, "it's 12345 6!? ok") == words


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("qwen2", ["x", "=$", "y", ";\n\n", " ", " 猫が居る", " ne", "\u0301", " ", " $.\r\n", " \n"]),
        ("seed-coder", ["x", "=$", "y", ";", "\n\n", " ", " 猫が居る", " ne", "\u0301", " ", " $.", "\r\n \n"]),
        ("deepseek-coder", ["x", "=$", "y", ";", "\n", "\n", " ", " ", "猫が居る", " ne", "\u0301  $", ".",
                            "\r", "\n", " ", "\n"]),
        ("deepseek-llm", ["x", "=$", "y", ";", "\n", "\n", "  ", "猫が居る", " ne", "\u0301", " ", " $.",
                          "\r", "\n", " ", "\n"]),
        ("deepseek-v3", ["x", "=$", "y", ";\n\n", "  ", "猫が居る", " ne\u0301", " ", " $.\r\n", " \n"]),
    ],
)  # fmt: skip
def test_pre_tokenizer_names_split_punctuation_and_scripts(pre, words):
    assert split_words(pre, "x=$y;\n\n  猫が居る ne\u0301  $.\r\n \n") == words


def split_words(pre, text):
    pre_tokenizer = Core.from_str(tokenizer_with_pre(pre).backend.json).pre_tokenizer
    return [text[begin:end] for _, (begin, end) in pre_tokenizer.pre_tokenize_str(text)]


def test_deepseek_line_ends_and_empty_normalizer_are_recognized():
    """DeepSeek's `tokenizer.json` has unescaped line ends and an empty normalizer sequence."""
    layout = json.loads(tokenizer_with_pre("deepseek-v3").backend.json)
    layout["normalizer"] = {"type": "Sequence", "normalizers": []}
    last = layout["pre_tokenizer"]["pretokenizers"][2]["pattern"]
    assert r"[\r\n]*" in last["Regex"]
    last["Regex"] = last["Regex"].replace(r"\r", "\r").replace(r"\n", "\n")
    metadata = tokenizer_to_gguf(Tokenizer(json.dumps(layout), {"eos_token": "<|end|>"}))
    assert metadata == tokenizer_to_gguf(tokenizer_with_pre("deepseek-v3"))


@pytest.mark.parametrize("unknown", [[], [0], [0, 7, 9], [7, 9]])
def test_exactly_one_unknown_token_is_restored(unknown):
    """Some files mark padding tokens as unknown, or no token; the import keeps exactly one."""
    tokenizer = Tokenizer(SentencePieceTokenizer(trained("bpe-llama")))
    metadata = tokenizer_to_gguf(tokenizer, vocab_size=tokenizer.vocab_size + 3)
    first, types = tokenizer.vocab_size, metadata[KEY + "token_type"]
    types[0] = 2 if 0 in unknown else 3
    for index in unknown[-2:]:
        if index:
            types[first + index % 3] = 2
    imported = tokenizer_from_gguf(metadata)
    assert imported.encode("the cat 猫") == tokenizer.encode("the cat 猫")
    assert imported.token_bytes(first - 1) == tokenizer.token_bytes(first - 1)


def test_llama_tokenizer_json_round_trip():
    """A `tokenizer.json` with the same vocabulary has merges instead of scores."""
    pieces = parse_sentencepiece(trained("bpe-llama")).pieces
    vocab = {piece.text: index for index, piece in enumerate(pieces)}
    rank = sorted((p for p in pieces if p.type == 1 and len(p.text) > 1), key=lambda p: -p.score)
    cuts = [(p.text[:at], p.text[at:]) for p in rank for at in range(1, len(p.text))]
    merges = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
    core = Core(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    assert_round_trip(Tokenizer(core.to_str(), names), ["</s>"])


@pytest.mark.parametrize("name", ["T5Tokenizer", "XLMRobertaTokenizer"])
def test_unigram_tokenizer_json_round_trip(name, tmp_path):
    """Ids, prefix and suffix of T5's kind of metadata equal the tokenizer of `transformers`."""
    import transformers

    model = parse_sentencepiece(trained("unigram"))
    pieces = [(piece.text, piece.score) for piece in model.pieces[3:]]
    first = ["<pad>", "</s>", "<unk>"] if name == "T5Tokenizer" else ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = [*((token, 0.0) for token in first), *pieces, *([("<mask>", 0.0)] if len(first) == 4 else [])]
    theirs = getattr(transformers, name)(vocab=vocab, _spm_precompiled_charsmap=model.charsmap, extra_ids=3)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    metadata = tokenizer_to_gguf(ours, ours.vocab_size + 2)
    assert metadata[KEY + "model"] == "t5"
    assert metadata[KEY + "add_bos_token"] is (len(first) == 4)
    imported = tokenizer_from_gguf(json.loads(json.dumps(metadata)))
    assert (imported.prefix_ids, imported.suffix_ids) == (ours.prefix_ids, ours.suffix_ids)
    for text in [CORPUS, *CORPUS.splitlines(), "  two  spaces \t", "ﬁ ½ Ⅷ", ""]:
        assert imported.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]

    # Known difference: WhitespaceSplit treats U+0085 as whitespace, SentencePiece as an unknown character.
    @given(text=TEXT.filter(lambda text: "\x85" not in text))
    def check_random_text(text):
        assert imported.encode(text) == ours.encode(text)

    check_random_text()
    layout = json.loads(ours.backend.json)
    layout["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(TokenizerError, match="GGUF cannot represent a unigram model with this normalizer"):
        tokenizer_to_gguf(Tokenizer(json.dumps(layout)))


def test_wordpiece_round_trip(tmp_path):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "cat",
        "##s",
        "a",
        "##a",
        "c",
        "##t",
        "<",
        "/",
        ">",
        "##h",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, "s"]))
    metadata = assert_round_trip(load_tokenizer(tmp_path), ["[SEP]"])
    assert metadata[KEY + "tokens"][2:8] == ["[CLS]", "[SEP]", "[MASK]", "▁the", "▁cat", "s"]


def test_chat_template_round_trip():
    for templates in ({"default": "{{ messages }}"}, {"default": "A", "rag": "B"}, {"rag": "B"}):
        tokenizer = Tokenizer(SentencePieceTokenizer(trained("bpe-llama")), chat_template=templates)
        metadata = tokenizer_to_gguf(tokenizer)
        assert tokenizer_from_gguf(metadata).chat_templates == templates
        assert metadata.get(Keys.Tokenizer.CHAT_TEMPLATES) == (["rag"] if "rag" in templates else None)
        assert metadata.get(Keys.Tokenizer.CHAT_TEMPLATE_N.format(name="rag")) == templates.get("rag")
    with pytest.raises(TokenizerError, match=r"tokenizer.chat_template.rag: input should be a valid string"):
        tokenizer_from_gguf(metadata | {"tokenizer.chat_template.rag": 3})


def test_tokenizer_that_gguf_cannot_represent_raises_error():
    for tokenizer, message in (
        (train_tokenizer([CORPUS], kind="word", vocab_size=300), "WordLevel"),
        (Tokenizer(SentencePieceTokenizer(trained("bpe"))), "normalizes text"),
        (Tokenizer(SentencePieceTokenizer(trained("bpe-suffix"))), "spaces after words"),
        (train_tokenizer([CORPUS], vocab_size=300, pattern="cl100k"), "no name for this pre-tokenizer"),
    ):
        with pytest.raises(TokenizerError, match=message):
            tokenizer_to_gguf(tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "rwkv"}, "model is 'rwkv'; supported are llama, t5, gpt2, bert"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": "abc"}, "tokens: input should be a valid list"),
        ({"tokens": []}, "tokens is empty"),
        ({"tokens": [3]}, r"tokens: \[0\]: input should be a valid string"),
        ({"token_type": ["a"]}, r"token_type: \[0\]: input should be a valid integer"),
        ({"precompiled_charsmap": [300]}, r"precompiled_charsmap: \[0\]: input should be less than"),
        ({"pre": 3}, "pre: input should be a valid string"),
        ({"eos_token_id": "2"}, "eos_token_id: input should be a valid integer"),
        ({"scores": [1.0]}, "scores has 1 entries"),
        ({"token_type": [1]}, "token_type has 1 entries"),
        ({"bos_token_id": 10**6}, "bos_token_id is 1000000, but there are"),
        ({"model": "gpt2", "pre": "new"}, "pre is 'new'.* known: gpt-2"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["q w"]}, r"'q w' \(number 0\) must be two tokens"),
        ({"model": "gpt2", "pre": "gpt-2"}, "merges is missing"),
    ],
)
def test_invalid_metadata_raises_error(change, message):
    metadata = tokenizer_to_gguf(Tokenizer(SentencePieceTokenizer(trained("bpe-llama"))))
    for name, value in change.items():
        metadata[KEY + name] = value
        if value is None:
            del metadata[KEY + name]
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_gguf(metadata)


def test_mixtures_of_pieces_have_the_same_ids():
    tokenizer = Tokenizer(SentencePieceTokenizer(trained("bpe-llama")))
    imported, rng = tokenizer_from_gguf(tokenizer_to_gguf(tokenizer)), random.Random(0)
    pieces = [p.text.replace("▁", " ") for p in both("bpe-llama")[0].model.pieces]
    for _ in range(200):
        text = "".join(rng.choices(pieces, k=8))
        assert imported.encode(text) == tokenizer.encode(text) == [1, *both("bpe-llama")[1].encode(text)]


# ---- what GGUF cannot represent, and what files leave out


def test_gemma_tokenizer_json_round_trip():
    """Gemma's pre-tokenizer splits at spaces, of which the normalizer leaves none."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)] + list("▁abcdet")
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", "<s>", "<unk>", *alphabet, "at", "▁c", "▁cat", "▁▁"])}
    merges = [("a", "t"), ("▁", "c"), ("▁c", "at"), ("▁", "▁")]
    core = Core(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    tokenizer = Tokenizer(
        core.to_str(), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    )
    metadata = assert_round_trip(tokenizer, ["</s>"])
    assert metadata[KEY + "add_space_prefix"] is False
    assert lost_in_gguf(tokenizer) == []
    core.pre_tokenizer = pre_tokenizers.Split("a", "isolated")
    with pytest.raises(TokenizerError, match="GGUF cannot represent this normalizer and pre-tokenizer"):
        tokenizer_to_gguf(Tokenizer(core.to_str()))


@pytest.mark.parametrize(
    ("flags", "normalizer", "lost"),
    [
        ({}, None, []),
        ({"lstrip": True}, None, ["lstrip of <m>"]),
        ({"rstrip": True, "single_word": True}, None, ["rstrip of <m>", "single_word of <m>"]),
        ({"normalized": True}, None, []),
        ({"normalized": True}, normalizers.NFC(), ["normalized of <m>", "NFC normalization"]),
    ],
)
def test_lost_flags_are_reported(flags, normalizer, lost):
    core = Core.from_str(train_tokenizer([CORPUS], vocab_size=300).backend.json)
    core.normalizer = normalizer
    core.add_tokens([AddedToken("<m>", **{"normalized": False, **flags})])
    tokenizer = Tokenizer(core.to_str())
    assert lost_in_gguf(tokenizer) == lost
    with pytest.warns(UserWarning, match=f"GGUF cannot store {lost[0]}") if lost else nullcontext():
        warn_of_losses(tokenizer)
    if flags and not normalizer:
        texts = ("a <m> b", "a<m>b", "<m>  b")
        imported = tokenizer_from_gguf(tokenizer_to_gguf(tokenizer))
        pairs = [
            (imported.encode(text, parse_special=True), tokenizer.encode(text, parse_special=True)) for text in texts
        ]
        assert all(a == b for a, b in pairs) == (lost == [])


def test_mask_of_roberta_keeps_its_flag():
    core = Core.from_str(
        train_tokenizer([CORPUS], vocab_size=300, special_tokens=("<s>", "</s>", "<mask>")).backend.json
    )
    core.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    ids = {name: core.token_to_id(name) for name in ("<s>", "</s>")}
    core.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    names = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    tokenizer = Tokenizer(core.to_str(), names)
    imported = tokenizer_from_gguf(tokenizer_to_gguf(tokenizer))
    assert lost_in_gguf(tokenizer) == []
    assert imported.encode_masked("the <mask> sat") == tokenizer.encode_masked("the <mask> sat")


def test_metaspace_is_reported_to_add_no_second_space():
    vocab = {token: i for i, token in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"])}
    core = Core(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer(core.to_str())
    imported = tokenizer_from_gguf(tokenizer_to_gguf(tokenizer))
    assert imported.encode("a a") == tokenizer.encode("a a")
    assert imported.encode(" a") != tokenizer.encode(" a")
    assert lost_in_gguf(tokenizer) == ["no second space before a text that begins with one"]


@pytest.mark.parametrize(("architecture", "pre"), [("gptneox", "gpt-2"), ("qwen2", "qwen2"), ("falcon", "falcon")])
@pytest.mark.parametrize("default", [True, False])
def test_file_without_pre_tokenizer_uses_that_of_its_architecture(architecture, pre, default):
    metadata = tokenizer_to_gguf(tokenizer_with_pre(pre))
    expected = tokenizer_from_gguf(metadata).encode(CORPUS)
    metadata[KEY + "pre"] = "default"
    if not default:
        del metadata[KEY + "pre"]
    assert tokenizer_from_gguf(metadata | {"general.architecture": architecture}).encode(CORPUS) == expected
    for other in ({}, {"general.architecture": "llama"}):
        with pytest.raises(TokenizerError, match=r"does not name its pre-tokenizer .*gguf-new-metadata"):
            tokenizer_from_gguf(metadata | other)


def test_damaged_byte_token_raises_error():
    metadata = tokenizer_to_gguf(Tokenizer(SentencePieceTokenizer(trained("bpe-llama"))))
    metadata[KEY + "tokens"][metadata[KEY + "tokens"].index("<0x42>")] = "<0x>"
    with pytest.raises(TokenizerError, match="requires 256 byte pieces"):
        tokenizer_from_gguf(metadata)


def test_absent_ids_are_no_tokens():
    """llama.cpp's own training tools store 4294967295 for a token that does not exist."""
    tokenizer = Tokenizer(SentencePieceTokenizer(trained("bpe-llama")))
    metadata = tokenizer_to_gguf(tokenizer)
    for name in ("padding_token_id", "mask_token_id"):
        metadata[KEY + name] = 2**32 - 1
    imported = tokenizer_from_gguf(metadata)
    assert (imported.mask_id, imported.config.get("pad_token")) == (None, None)
    assert imported.encode("the cat") == tokenizer.encode("the cat")


def test_unused_end_token_raises_error():
    metadata = tokenizer_to_gguf(train_tokenizer([CORPUS], vocab_size=300, special_tokens=("</s>",)))
    metadata |= {KEY + "add_eos_token": True, KEY + "eos_token_id": 0}
    metadata[KEY + "token_type"][0] = 5
    with pytest.raises(TokenizerError, match=r"'</s>' begins or ends a text, but its .*token_type is 5"):
        tokenizer_from_gguf(metadata)


def test_byte_pair_encoding_without_merges_is_not_exported():
    core = Core(models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    with pytest.raises(TokenizerError, match="without merges"):
        tokenizer_to_gguf(Tokenizer(core.to_str()))

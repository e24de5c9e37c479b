"""Tokens that the files beside a vocabulary add, their flags, the tokens around a text, and decoders."""

import io
import json
import random
import tracemalloc

import pytest
import sentencepiece
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from glassformer.errors import TokenizerError
from glassformer.text.files.load import load_tokenizer
from glassformer.text.hf_tokenizer import HFTokenizer
from glassformer.text.special_tokens import MAX_ID, SpecialTokenSplitter
from glassformer.text.special_tokens import AddedToken as OurToken
from glassformer.text.tokenizer import Tokenizer

NEW = "<|new|>"
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(*added):
    core = Core(models.BPE(vocab={char: i for i, char in enumerate(LETTERS)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_tokens(list(added))
    return core


def write_json(folder, **files):
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents))


def json_folder(folder, core, config, **files):
    core.save(str(folder / "tokenizer.json"))
    write_json(folder, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **config}, **files)
    return load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


def entry(content, **flags):
    return {"content": content, **dict.fromkeys(FLAGS, False), **flags}


# ---- tokens beside tokenizer.json


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"added_tokens_decoder": {"256": entry(NEW, special=True)}}, {}),
        ({"added_tokens_decoder": {"256": {"content": "<a>"}, "257": entry(NEW, lstrip=True)}, "eos_token": NEW}, {}),
        ({"additional_special_tokens": [NEW, "<x>"]}, {}),
        ({"extra_special_tokens": ["<x>", NEW]}, {}),
        ({"extra_special_tokens": {"image_token": NEW}, "audio_token": "<x>"}, {}),
        ({"eos_token": NEW, "pad_token": NEW, "unk_token": "<u>"}, {}),
        ({}, {"added_tokens": {NEW: 257, "<x>": 256}}),
        ({"eos_token": NEW}, {"added_tokens": {NEW: 256}}),
        ({"eos_token": "<x>"}, {"special_tokens_map": {"eos_token": NEW}}),
        ({}, {"special_tokens_map": {"eos_token": entry(NEW, rstrip=True), "additional_special_tokens": ["<x>"]}}),
        ({"added_tokens_decoder": {}}, {"special_tokens_map": {"eos_token": NEW}, "added_tokens": {"<x>": 256}}),
        ({"added_tokens_decoder": {"64": entry("a", special=True)}, "bos_token": "b"}, {}),
    ],
)
def test_tokens_beside_tokenizer_json_equal_transformers(config, files, tmp_path):
    ours, theirs = json_folder(tmp_path, byte_level(), config, **files)
    for text in (NEW, f"a {NEW} <x> b", f"<u>{NEW}", "<a>ab"):
        assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"]
    assert ours.vocab_size == len(theirs)
    assert (ours.eos_id, ours.bos_id) == (theirs.eos_token_id, theirs.bos_token_id)
    assert {ours.token_bytes(index).decode() for index in theirs.all_special_ids} <= set(ours.special_tokens)
    assert max(ours.encode(f"a {NEW}")) < 256  # plain text does not become a special token
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode(f"a {NEW} b", parse_special=True) == theirs(f"a {NEW} b")["input_ids"]


def test_random_flags_equal_transformers(tmp_path):
    """Flags of added_tokens_decoder replace those of tokenizer.json."""
    rng = random.Random(0)
    for case in range(20):
        folder = tmp_path / str(case)
        folder.mkdir()

        def flags():
            return {name: rng.random() < 0.4 for name in FLAGS}

        core = byte_level(*(AddedToken(token, **flags()) for token in ("<m>", "new", "<z>")))
        config: dict = {"mask_token": "<m>", "eos_token": "<z>", "pad_token": "<p>"}
        config["added_tokens_decoder"] = {
            str(256 + i): {"content": token, **flags()} for i, token in enumerate(("<m>", "new", "<z>", "<k>", "word"))
        }
        ours, theirs = json_folder(folder, core, config)
        for _ in range(40):
            text = "".join(rng.choices(["<m>", "new", "<z>", "<k>", "word", "<p>", " ", "a", ".", "é"], k=8))
            assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"], (config, text)


def test_token_beyond_the_models_rows_is_not_added(tmp_path):
    """Many folders name a padding token that the model has no row for."""
    config = {"pad_token": "[PAD]", "eos_token": "b"}
    write_json(tmp_path, config={"vocab_size": 256})
    tokenizer, _ = json_folder(tmp_path, byte_level(), config)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (256, LETTERS.index("b"))
    write_json(tmp_path, config={"text_config": {"vocab_size": 257}})
    assert load_tokenizer(tmp_path).vocab_size == 257


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"300": entry(NEW)}, "has the id 300, but with tokenizer.json its id would be 256"),
        ({"3": entry("a")}, "'a' has the id 3, but with tokenizer.json its id would be 64"),
        ({"900000000": entry(NEW)}, "added_tokens_decoder has the id '900000000'; allowed are 0 to"),
        ({"-1": entry(NEW)}, "added_tokens_decoder has the id '-1'"),
    ],
)
def test_contradicting_id_raises_error(decoder, message, tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


# ---- older files


def spm():
    out = io.BytesIO()
    lines = ["the cat sat on the mat", "a dog ran to the red house"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, minloglevel=2, vocab_size=40, model_type="bpe"
    )
    return out.getvalue()


def gpt2_files(folder, *special):
    vocab = {token: i for i, token in enumerate([*special, *LETTERS])}
    write_json(folder, vocab=vocab)
    (folder / "merges.txt").write_text("#version: 0.2\n")


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>"}
ROLES |= {"cls_token": "<s>"}


@pytest.mark.parametrize("where", ["special_tokens_map", "tokenizer_config", "added_tokens_decoder"])
def test_flags_of_older_files_equal_transformers(where, tmp_path):
    gpt2_files(tmp_path, *ROBERTA)
    mask = entry("<mask>", lstrip=True, special=True)
    files: dict[str, dict] = {"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}, "special_tokens_map": ROLES}
    if where == "added_tokens_decoder":
        files["tokenizer_config"] |= {where: {"4": mask}, "mask_token": "<mask>"}
    else:
        files[where] = files[where] | {"mask_token": {**mask, "__type": "AddedToken"}}
    write_json(tmp_path, **files)
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The cat <mask>.", "<mask> a", "a <s> b  <mask>"):
        assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"]
    assert ours.encode_masked("The cat <mask>.") == theirs("The cat <mask>.")["input_ids"]


def test_mask_of_roberta_absorbs_the_space_by_default(tmp_path):
    gpt2_files(tmp_path, *ROBERTA)
    write_json(tmp_path, tokenizer_config={"tokenizer_class": "RobertaTokenizer"})
    ours = load_tokenizer(tmp_path)
    assert ours.encode_masked("a <mask>") == [0, ours.backend.vocab["a"], 4, 2]
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode_masked("a <mask>") == ours.encode_masked("a <mask>")


@pytest.mark.parametrize("files", [
    {"added_tokens": {NEW: 40}},
    {"tokenizer_config": {"added_tokens_decoder": {"40": entry(NEW, special=True, rstrip=True)}}},
    {"special_tokens_map": {"pad_token": entry(NEW, lstrip=True)}},
    {"special_tokens_map": {"additional_special_tokens": [NEW]}},
])  # fmt: skip
def test_tokens_beside_a_sentencepiece_model(files, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(spm())
    write_json(tmp_path, **files)
    ours = load_tokenizer(tmp_path)
    lstrip, rstrip = 'lstrip": true' in json.dumps(files), 'rstrip": true' in json.dumps(files)
    token = next(token for token in ours.backend.added_tokens if token.text == NEW)
    assert (token.id, token.lstrip, token.rstrip) == (40, lstrip, rstrip)
    before = ours.encode("cat" if lstrip else "cat ", bare=True)
    after = ours.backend.encode_continuations(["dog" if rstrip else " dog"])[0]
    assert ours.encode(f"cat {NEW} dog", parse_special=True, bare=True) == [*before, 40, *after]
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    for text in (f"cat {NEW} dog", f"{NEW}{NEW} a"):
        assert again.encode(text, parse_special=True) == ours.encode(text, parse_special=True)


def test_wordpiece_tokens_equal_transformers(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "<", "e", ">", "new"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    decoder = {"12": entry("<e>", special=True, lstrip=True), "13": entry("[X]", normalized=True)}
    decoder |= {str(i): entry(words[i], special=True) for i in range(5)}
    write_json(tmp_path, tokenizer_config={"tokenizer_class": "BertTokenizer", "added_tokens_decoder": decoder})
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the <e> cats", "the [X] cat [MASK]", "<e>the"):
        assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"]


def test_single_word_tokens_are_split_as_by_tokenizers():
    rng = random.Random(0)
    flags = {"lstrip": True, "rstrip": True}
    for strip in ({}, flags):
        core = byte_level(AddedToken("new", single_word=True, normalized=False, **strip))
        split = SpecialTokenSplitter([OurToken(256, "new", single_word=True, **strip)])
        for _ in range(300):
            text = "".join(rng.choices(["new", " ", "a", "_", "é", ".", "9"], k=7))
            found = [text[start:end] for start, end, index in split(text) if index == 256]
            encoding = core.encode(text)
            offsets = [span for span, index in zip(encoding.offsets, encoding.ids, strict=True) if index == 256]
            assert found == [text[start:end] for start, end in offsets], text


# ---- the tokens around a text


def dna(post_processor):
    core = Core(models.BPE(vocab={"<s>": 0, "</s>": 1, "A": 2, "C": 3, "G": 4, "T": 5}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    core.add_special_tokens(["<s>", "</s>"])
    core.post_processor = post_processor
    return core


IDS = [("<s>", 0), ("</s>", 1)]


@pytest.mark.parametrize("processor", [
    processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=IDS),
    processors.TemplateProcessing(single="<s> <s> $A", special_tokens=IDS),
    processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
    processors.BertProcessing(("</s>", 1), ("<s>", 0)),
    processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(single="$A </s>", special_tokens=IDS)]),
    processors.ByteLevel(),
])  # fmt: skip
def test_frame_does_not_depend_on_the_vocabulary(processor):
    """The model has no token for the letter "a"."""
    core = dna(processor)
    ours = Tokenizer(core.to_str())
    for text in ("GATTACA", "C", ""):
        assert ours.encode(text) == core.encode(text).ids


@pytest.mark.parametrize(
    ("single", "message"),
    [("<s> </s>", "contain the text once"), ("$A <s> $A", "contain the text once"), ("<x> $A", "adds the id 77")],
)
def test_frame_without_the_text_raises_error(single, message):
    processor = processors.TemplateProcessing(single=single, special_tokens=[*IDS, ("<x>", 77)])
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(dna(processor).to_str())


# ---- decoders


def word_level(decoder):
    core = Core(
        models.WordLevel(vocab={"[UNK]": 0, "the": 1, "cat": 2, "lo": 3, "w</w>": 4, "er</w>": 5}, unk_token="[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoder
    return core


@pytest.mark.parametrize("decoder", [None, decoders.BPEDecoder(), decoders.BPEDecoder(suffix="w>")])
def test_decoding_equals_tokenizers(decoder):
    core = word_level(decoder) if decoder else word_level(decoders.Fuse())
    text = core.to_str() if decoder else json.dumps(json.loads(core.to_str()) | {"decoder": None})
    core, ours, rng = Core.from_str(text), Tokenizer(text), random.Random(0)
    for length in range(7):
        ids = rng.choices(range(6), k=length)
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids) == core.decode(ids)


def test_byte_level_with_strip_equals_tokenizers():
    core = byte_level()
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    ours = Tokenizer(core.to_str())
    for text in (" the cat", "the  cat ", "é"):
        assert ours.decode(ours.encode(text)) == core.decode(core.encode(text).ids) == text.removeprefix(" ")


# ---- damaged files


FORMATS = ("json", "sentencepiece", "bpe", "wordpiece", "ranks")
BAD_CONFIG = {
    "chat_template": [3, {"default": 3}, [{"name": "a"}], [3]],
    "bos_token": [3, {"a": 1}, {"content": 1}, ["<s>"]],
    "mask_token": [3, {"content": "<mask>", "lstrip": "yes"}],
    "added_tokens_decoder": [
        [],
        {"0": "a"},
        {"0": {"lstrip": True}},
        {"0": {"content": None}},
        {"a": {"content": "a"}},
    ],
    "additional_special_tokens": ["<x>", [1], {"a": "b"}],
    "extra_special_tokens": [3, [None], {"a": 1}],
    "tokenizer_class": [3, ["T5Tokenizer"]],
    "add_bos_token": ["yes", 1],
    "extra_ids": [10**9, -1, "many", 1.5],
    "do_lower_case": ["no"],
}


def save_format(folder, name):
    match name:
        case "json":
            byte_level().save(str(folder / "tokenizer.json"))
        case "sentencepiece":
            (folder / "tokenizer.model").write_bytes(spm())
        case "bpe":
            gpt2_files(folder, *ROBERTA)
        case "wordpiece":
            (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
        case "ranks":
            import base64

            lines = [base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256)]
            (folder / "a.tiktoken").write_bytes(b"".join(lines))


@pytest.mark.parametrize("name", FORMATS)
def test_wrong_types_in_the_config_raise_one_error(name, tmp_path):
    save_format(tmp_path, name)
    for key, values in BAD_CONFIG.items():
        for value in values:
            write_json(tmp_path, tokenizer_config={"pattern": r"\s+|\S+", key: value})
            with pytest.raises(TokenizerError, match=rf"tokenizer_config\.json: .*{key}"):
                load_tokenizer(tmp_path)
    write_json(tmp_path, tokenizer_config={"pattern": r"\s+|\S+", "chat_template": {"default": "{{ messages }}"}})
    assert load_tokenizer(tmp_path).config["chat_template"] == [{"name": "default", "template": "{{ messages }}"}]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": "\xff"}', b"[]", b'{"a": NaN', b"\0"])
def test_damaged_json_beside_a_vocabulary_raises_one_error(name, content, tmp_path):
    save_format(tmp_path, name)
    write_json(tmp_path, tokenizer_config={"pattern": r"\s+|\S+"})
    load_tokenizer(tmp_path)
    for file in ("special_tokens_map.json", "added_tokens.json", "config.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(TokenizerError, match=file.replace(".", r"\.")):
            load_tokenizer(tmp_path)
        (tmp_path / file).unlink()
        write_json(tmp_path, tokenizer_config={"pattern": r"\s+|\S+"})


@pytest.mark.parametrize("name", FORMATS)
def test_large_ids_raise_error_before_a_table_is_built(name, tmp_path):
    save_format(tmp_path, name)
    write_json(tmp_path, tokenizer_config={"pattern": r"\s+|\S+"}, added_tokens={"<|q|>": 900_000_000})
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError, match=r"added_tokens\.json: <\|q\|>: .* less than or equal to"):
            load_tokenizer(tmp_path)
        (tmp_path / "added_tokens.json").unlink()
        for file, contents in (
            ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {"a": 4000000000}, "unk_token": "a"}}'),
            ("vocab.json", '{"a": 4000000000}'),
            ("a.tiktoken", "YQ== 4000000000\n"),
        ):
            if (tmp_path / file).exists():
                (tmp_path / file).write_text(contents)
                with pytest.raises(TokenizerError, match=str(MAX_ID)):
                    load_tokenizer(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_panic_of_the_library_is_an_error():
    """The template uses a second text where there is one: the library panics, which is no Exception."""
    core = json.loads(dna(processors.TemplateProcessing(single="<s> $A", special_tokens=IDS)).to_str())
    core["post_processor"]["single"].append({"Sequence": {"id": "B", "type_id": 0}})
    with pytest.raises(TokenizerError, match="the tokenizers library cannot"):
        HFTokenizer(json.dumps(core))


def test_error_of_the_library_while_encoding_is_an_error():
    core = Core(models.WordLevel(vocab={"a": 0}, unk_token="[UNK]"))
    core.decoder = decoders.Fuse()
    tokenizer = Tokenizer(core.to_str())
    assert tokenizer.encode("a") == [0]
    continuation = lambda text: tokenizer.backend.encode_continuations([text])  # noqa: E731
    for encode in (tokenizer.encode, tokenizer.encode_offsets, continuation):
        with pytest.raises(TokenizerError, match="cannot encode a text"):
            encode("b")

"""Tokenizers of encoder-decoders (Marian, T5, BART): ids equal `transformers` and `sentencepiece`."""

import copy
import io
import json
import pickle
from dataclasses import replace

import pytest
import sentencepiece
import torch
import transformers
from test_tokenizer_formats import assert_same_ids, gpt2_folder
from tiny import randomise_sharp
from tiny_translators import CONFIGS
from tokenizers import AddedToken

from glassformer.cli import main
from glassformer.errors import TokenizerError
from glassformer.formats import save_model
from glassformer.models.translator import Translator
from glassformer.nn.model import EncoderDecoder
from glassformer.text.files.load import load_tokenizer

TARGET = """Die Katze saß auf der Matte; es ist 12:30, und der Hund ist nicht da. „Wer ist das?“ Größe, Straße, süß
der die das, Katze Katzen, neu neuer neueste, weit weiter, Fuß Füße ≈ ∑ ∞
"""
SENTENCES = (
    "The cat sat on the mat.", "  two  spaces \n and\ta tab ", "It's 12:30!", ">>fra<< the dog", ">>xyz<< the dog",
    "a >>fra<< b", ">>", "<<", ">><<", ">> the cat << sat", "Straße ≈ ∑", "</s>", "the </s> cat <pad><unk>",
    "▁the ▁cat", "", " ", "猫 и ё 👩‍👩‍👧",
)  # fmt: skip


def spm(text, **options) -> bytes:
    out = io.BytesIO()
    lines = [line for line in text.splitlines() for _ in range(3)]
    common = {"hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1, "model_type": "unigram"}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **common | options)
    return out.getvalue()


def pieces_of(data: bytes) -> list[str]:
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    return [model.IdToPiece(i) for i in range(model.GetPieceSize())]


# ---- Marian


def marian_folder(folder, source: bytes, target: bytes, config=None):
    """Create a folder as OPUS-MT has it: </s>, <unk>, interleaved pieces of both sides, languages, <pad>."""
    interleaved = dict.fromkeys(
        piece for pair in zip(reversed(pieces_of(target)), pieces_of(source) * 9, strict=False) for piece in pair
    )
    pieces = [piece for piece in interleaved if piece not in ("<s>", "</s>", "<unk>")]
    pieces = pieces[:-3]  # some pieces are missing from the vocabulary
    vocab = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, ">>fra<<", ">>deu<<", "<pad>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"source_lang": "en", "target_lang": "de"} | (config or {}))
    )
    return folder


def assert_equals_marian(folder, examples=80):
    ours, theirs = load_tokenizer(folder), transformers.MarianTokenizer.from_pretrained(folder)
    assert (ours.eos_id, ours.special_tokens["<pad>"]) == (theirs.eos_token_id, theirs.pad_token_id)
    target = ours.target_tokenizer()
    plain = {"split_special_tokens": True}
    assert_same_ids(ours.encode, lambda text: theirs(text, **plain)["input_ids"], examples)
    assert_same_ids(target.encode, lambda text: theirs(text_target=text, **plain)["input_ids"], examples)
    for text in SENTENCES:
        assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"], text
        ids = ours.encode(text)
        assert ours.decode(ids, skip_special=True).strip() == theirs.decode(ids, skip_special_tokens=True), text
        found = ours.encode_offsets(text)
        assert found.ids == ids
        assert all(0 <= start <= end <= len(text) for start, end in found.offsets)
    return ours


def test_marian_ids_equal_transformers(corpus, tmp_path):
    """Each side has its SentencePiece model, both share a vocabulary; saving and copying preserve ids and files."""
    source, target = spm(corpus, vocab_size=230), spm(TARGET, vocab_size=120)
    folder = marian_folder(tmp_path / "a", source, target)
    ours = assert_equals_marian(folder)
    assert ours.encode("Straße") != ours.target_tokenizer().encode("Straße")
    vocab = json.loads((folder / "vocab.json").read_text())
    assert ours.encode(">>fra<< the cat")[0] == vocab[">>fra<<"]
    assert ours.encode("the cat")[-1] == vocab["</s>"]
    assert vocab["</s>"] not in ours.encode("the </s> cat", bare=True)
    ours.save(tmp_path / "b")
    for name in ("source.spm", "target.spm", "vocab.json"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
    again = load_tokenizer(tmp_path / "b")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    for copied in (again, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert copied.encode(corpus) == ours.encode(corpus) == theirs(corpus)["input_ids"]
    target_copy = pickle.loads(pickle.dumps(ours.target_tokenizer()))
    assert target_copy.encode(TARGET) == ours.target_tokenizer().encode(TARGET)


@pytest.mark.parametrize("name", ["test_model.model", "llama2.model"])
def test_marian_with_a_published_model_equals_transformers(name, shared_file, corpus, tmp_path):
    """The model may have byte fallback."""
    published = shared_file(f"sentencepiece/{name}").read_bytes()
    assert_equals_marian(marian_folder(tmp_path / "a", published, spm(TARGET, vocab_size=120)), examples=20)


def test_invalid_marian_folder_raises_error(corpus, tmp_path):
    source = spm(corpus, vocab_size=230)
    folder = marian_folder(tmp_path / "a", source, source, {"separate_vocabs": True})
    with pytest.raises(TokenizerError, match="separate_vocabs"):
        load_tokenizer(folder)
    folder = marian_folder(tmp_path / "b", source, source)
    for text, message in (("{", "is not valid JSON"), ('{"a": 0}', "lacks '</s>', '<unk>', '<pad>'"),
                          ("[]", "a valid dictionary"),
                          ('{"</s>": 0, "<unk>": 0, "<pad>": 1}', "the same id")):  # fmt: skip
        (folder / "vocab.json").write_text(text)
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(TokenizerError, match=r"vocab\.json is missing, but source\.spm exists"):
        load_tokenizer(folder)
    folder = marian_folder(tmp_path / "c", source, source)
    (folder / "source.spm").write_bytes(source[:-9])
    with pytest.raises(TokenizerError, match=r"source\.spm: not a SentencePiece model"):
        load_tokenizer(folder)


# ---- T5


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"}
SENTINEL_TEXTS = (
    "The <extra_id_0> sat on <extra_id_1>.",
    "<extra_id_99>a<extra_id_0><extra_id_1> b",
    "a</s>b",
    "<extra_id_100>",
)


def assert_equals_t5(folder, n=100):
    ours, theirs = load_tokenizer(folder), transformers.T5Tokenizer.from_pretrained(folder, extra_ids=n)
    assert ours.vocab_size == len(theirs)
    assert (ours.eos_id, ours.bos_id) == (theirs.eos_token_id, None)
    assert [ours.special_tokens[f"<extra_id_{i}>"] for i in range(n)] == [
        theirs.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(n)
    ]
    for text in (*SENTENCES, *SENTINEL_TEXTS):
        assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"], text
    sentinel = ours.special_tokens["<extra_id_0>"]
    assert sentinel in ours.encode(SENTINEL_TEXTS[0], parse_special=True)
    assert sentinel not in ours.encode(SENTINEL_TEXTS[0]), "text became a special token"
    assert ours.encode("the cat")[-1] == ours.eos_id
    return ours, theirs


def test_t5_ids_eos_and_sentinels_equal_transformers(corpus, tmp_path):
    """Test `spiece.model` alone, as the original folders have it; then saved again; then as `tokenizer.json`."""
    data, folder = spm(corpus, vocab_size=230, **T5), tmp_path / "a"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(data)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    ours, theirs = assert_equals_t5(folder)
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert_same_ids(ours.encode, lambda text: [*library.encode(text), 1])
    ours.save(tmp_path / "b")
    assert (tmp_path / "b/spiece.model").read_bytes() == data
    assert_equals_t5(tmp_path / "b")
    theirs.save_pretrained(tmp_path / "c")
    assert (tmp_path / "c/tokenizer.json").exists()
    fast = load_tokenizer(tmp_path / "c")
    for text in (*SENTENCES, *SENTINEL_TEXTS, corpus):
        assert fast.encode(text, parse_special=True) == theirs(text)["input_ids"], text
        assert not set(fast.special_tokens.values()) & set(fast.encode(text, bare=True)) - {
            fast.special_tokens["<unk>"]
        }, text


def test_extra_ids_sets_the_number_of_sentinels(corpus, tmp_path):
    (tmp_path / "spiece.model").write_bytes(spm(corpus, vocab_size=230, **T5))
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 7, "eos_token": "</s>", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert_equals_t5(tmp_path, 7)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"extra_ids": "many"}))
    with pytest.raises(TokenizerError, match="extra_ids: input should be a valid integer"):
        load_tokenizer(tmp_path)


# ---- BART


def test_bart_vocab_and_merges_equal_transformers(corpus, tmp_path):
    """The model_type of config.json adds <s> before and </s> after a text."""
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    folder = gpt2_folder(tmp_path, corpus, special=special)
    (folder / "config.json").write_text('{"model_type": "bart"}')
    mask = AddedToken("<mask>", lstrip=True)  # a default of BART's class that transformers 5 lacks
    ours, theirs = load_tokenizer(folder), transformers.BartTokenizer.from_pretrained(folder, mask_token=mask)
    assert_same_ids(ours.encode, lambda text: theirs(text, split_special_tokens=True)["input_ids"])
    ids = ours.encode("the cat")
    assert (ids[0], ids[-1]) == (theirs.bos_token_id, theirs.eos_token_id) == (ours.special_tokens["<s>"], ours.eos_id)
    assert ours.encode("the <mask> sat", parse_special=True) == theirs("the <mask> sat")["input_ids"]
    assert ours.special_tokens["<mask>"] not in ours.encode("the <mask> sat")


# ---- with a model


def save_tiny_model(family, folder, size, special):
    """Save a tiny model into a folder with a tokenizer, and load it with `transformers`."""
    config = CONFIGS[family]()
    config = replace(config, vocab_size=size, encoder=replace(config.encoder, vocab_size=size))
    save_model(randomise_sharp(EncoderDecoder(config)), folder, extra=special)
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def test_marian_translations_equal_transformers(corpus, tmp_path, capsys):
    folder = marian_folder(tmp_path, spm(corpus, vocab_size=230), spm(TARGET, vocab_size=120))
    pad = max(json.loads((folder / "vocab.json").read_text()).values())
    special = {"eos_token_id": 0, "pad_token_id": pad, "decoder_start_token_id": pad, "bad_words_ids": [[pad]]}
    hf, theirs = save_tiny_model("marian", folder, pad + 1, special), transformers.AutoTokenizer.from_pretrained(folder)
    translator = Translator.load(folder)
    for text in ("The cat sat on the mat.", ">>fra<< Who's that?"):
        out = hf.generate(**theirs(text, return_tensors="pt"), max_new_tokens=9, do_sample=False, num_beams=1)[0]
        (found,) = translator.translate(text, max_tokens=9)
        assert list(found.targets[0].ids) == [t for t in out[1:].tolist() if t != 0]
        assert found.text.strip() == theirs.decode(out, skip_special_tokens=True)
        main(["translate", str(folder), text, "--max-tokens", "9"])
        assert capsys.readouterr().out.strip() == found.text.strip()
    target = "Die Katze"
    aligned = translator.align("the cat", target)
    assert len(aligned.target_tokens) == len(theirs(text_target=target)["input_ids"])


def test_t5_infilling_equals_transformers(corpus, tmp_path, capsys):
    """With --special, <extra_id_0> is a special token in the prompt and is shown in the output."""
    (tmp_path / "spiece.model").write_bytes(spm(corpus, vocab_size=230, **T5))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    tokenizer = load_tokenizer(tmp_path)
    size = tokenizer.vocab_size + 3  # embeddings are padded
    special = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    hf = save_tiny_model("flan", tmp_path, size, special)
    text, translator = "The <extra_id_0> sat.", Translator.load(tmp_path)
    ids = torch.tensor([tokenizer.encode(text, parse_special=True)])
    out = hf.generate(
        ids, max_new_tokens=9, do_sample=False, num_beams=1, suppress_tokens=[size - 3, size - 2, size - 1]
    )
    (found,) = translator.translate(text, max_tokens=9, special=True)
    assert list(found.targets[0].ids) == [t for t in out[0, 1:].tolist() if t != 1]
    assert found.text == tokenizer.decode(found.targets[0].ids)
    (plain,) = translator.translate(text, max_tokens=9)
    assert plain.targets != found.targets
    main(["translate", str(tmp_path), text, "--max-tokens", "9", "--special", "--align"])
    output = capsys.readouterr().out
    assert output.startswith(found.text)
    assert "<extra_id_0>" in output

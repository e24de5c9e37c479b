"""Marian with separate source and target vocabularies: model, tokenizers and translations equal `transformers`."""

import json

import pytest
import torch
import transformers
from test_sentencepiece import CORPUS
from test_source_target_tokenizers import SENTENCES, TARGET, marian_folder, pieces_of, spm
from tiny import assert_near

from glassformer.cli import main
from glassformer.errors import CheckpointError, ConfigError, RequestError, TokenizerError
from glassformer.families import read_config
from glassformer.formats import load_seq2seq, save_model
from glassformer.models.translator import Translator
from glassformer.nn.step import Step
from glassformer.text.files.load import load_tokenizer

TIED = pytest.mark.parametrize("tied", [True, False])
SIZES = {
    "d_model": 48, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 3,
    "encoder_ffn_dim": 56, "decoder_ffn_dim": 72, "max_position_embeddings": 64, "scale_embedding": True,
    "activation_function": "swish", "pad_token_id": 2, "eos_token_id": 0, "decoder_start_token_id": 2,
    "forced_eos_token_id": None, "bos_token_id": 0,
}  # fmt: skip


def save_reference(folder, tied, vocab_size=131, target_vocab_size=97):
    """Save a Marian model of `transformers` with random weights, and return it."""
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=vocab_size, decoder_vocab_size=target_vocab_size, share_encoder_decoder_embeddings=False,
        tie_word_embeddings=tied, **SIZES,
    )  # fmt: skip
    hf = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, p in hf.named_parameters():
            if "positions" not in name:
                std = 1.0 if "layer_norm.weight" in name else 0.2
                p.normal_(0.0, std if p.ndim == 1 else 2 * p.shape[-1] ** -0.5)  # avoids endless repetition
        hf.final_logits_bias.normal_(0.0, 0.2)
        hf.final_logits_bias[0, 0] = -9.0  # makes EOS rare
    hf.save_pretrained(folder)
    return hf


def reference_logits(hf, source, target):
    with torch.no_grad():
        return hf(input_ids=source, decoder_input_ids=target).logits


def our_logits(model, source, target):
    with torch.no_grad():
        return model(target, Step.of(target, source=model.encode(source, Step.of(source))))


def random_ids(high, length, seed):
    return torch.randint(3, high, (2, length), generator=torch.Generator().manual_seed(seed))


@TIED
def test_logits_equal_transformers(tied, tmp_path):
    """Each library loads the other's folder; either side may have the larger vocabulary."""
    for sizes in ((131, 97), (97, 131)):
        hf = save_reference(tmp_path / "hf", tied, *sizes)
        model = load_seq2seq(tmp_path / "hf")
        assert (model.encoder.embed.weight.shape[0], model.embed.weight.shape[0]) == sizes
        assert (model.config.tied_head, model.config.shared_embedding) == (tied, False)
        source, target = random_ids(sizes[0], 20, 1), random_ids(sizes[1], 15, 2)
        expected = reference_logits(hf, source, target)
        assert expected.std() > 0.3
        assert_near(our_logits(model, source, target), expected)
        save_model(model, tmp_path / "ours")
        again = transformers.MarianMTModel.from_pretrained(tmp_path / "ours").eval()
        assert_near(our_logits(model, source, target), reference_logits(again, source, target))
        assert load_seq2seq(tmp_path / "ours").config == model.config


def test_missing_or_wrong_embedding_raises_error(tmp_path):
    save_reference(tmp_path, tied=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"missing: (model\.)?lm_head.weight|missing: lm_head.weight"):
        load_seq2seq(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_vocab_size": 96}))
    with pytest.raises(
        CheckpointError, match=r"decoder.embed_tokens.weight is \[97, 48\], the config needs \[96, 48\]"
    ):
        load_seq2seq(tmp_path)
    with pytest.raises(ConfigError, match="tie_word_embeddings = False is not supported, only True"):
        read_config(config | {"share_encoder_decoder_embeddings": True, "tie_word_embeddings": False}, "x")


# ---- tokenizers


def separate_vocabs_folder(folder):
    """Create a folder whose two vocabularies share the ids of special tokens and differ in pieces."""
    source, target = spm(CORPUS, vocab_size=230), spm(TARGET, vocab_size=120)
    marian_folder(folder, source, target, {"separate_vocabs": True})
    for name, model in (("vocab.json", source), ("target_vocab.json", target)):
        pieces = [p for p in pieces_of(model) if p not in ("<s>", "</s>", "<unk>")][::-1][:-2]
        names = ["</s>", "<unk>", "<pad>", *([">>fra<<"] if name == "vocab.json" else []), *pieces]
        (folder / name).write_text(json.dumps({piece: i for i, piece in enumerate(names)}))
    return folder


def test_ids_equal_transformers(tmp_path):
    folder = separate_vocabs_folder(tmp_path / "a")
    ours, hf = load_tokenizer(folder), transformers.MarianTokenizer.from_pretrained(folder)
    target = ours.target_tokenizer()
    assert ours.vocab_size != target.vocab_size
    for text in (*SENTENCES, *TARGET.splitlines(), *CORPUS.splitlines()[:9]):
        plain = {"split_special_tokens": True}
        assert ours.encode(text) == hf(text, **plain)["input_ids"]
        assert target.encode(text) == hf(text_target=text, **plain)["input_ids"]
        ids = target.encode(text)
        assert target.decode(ids, skip_special=True).strip() == hf.decode(ids, skip_special_tokens=True)
    ours.save(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert again.target_tokenizer().encode(TARGET) == target.encode(TARGET)
    assert transformers.MarianTokenizer.from_pretrained(tmp_path / "b")(TARGET)["input_ids"] == ours.encode(TARGET)


def test_invalid_vocabulary_files_raise_errors(tmp_path):
    folder = separate_vocabs_folder(tmp_path / "a")
    (folder / "target_vocab.json").write_text('{"</s>": 0}')
    with pytest.raises(TokenizerError, match=r"target_vocab.json lacks '<unk>', '<pad>'"):
        load_tokenizer(folder).target_tokenizer()
    (folder / "target_vocab.json").unlink()
    with pytest.raises(TokenizerError, match=r"separate_vocabs is true .*target_vocab.json is missing"):
        load_tokenizer(folder)
    (folder / "target_vocab.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"separate_vocabs is false .*target_vocab.json exists"):
        load_tokenizer(folder)


# ---- translations


@TIED
def test_translations_equal_transformers(tied, tmp_path, capsys):
    """Greedy decoding and alignments equal `transformers`, also after conversion; tracing raises an error."""
    folder = separate_vocabs_folder(tmp_path / "a")
    tokenizer = load_tokenizer(folder)
    hf = save_reference(folder, tied, tokenizer.vocab_size, tokenizer.target_tokenizer().vocab_size)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            p.mul_(0 if name.endswith("bias") else 0.2 if "encoder_attn.out_proj" in name else 1)
        hf.final_logits_bias[0, 1:] = 0
    hf.save_pretrained(folder)
    ours, hf_tokenizer = Translator.load(folder), transformers.MarianTokenizer.from_pretrained(folder)
    texts, seen = [text for text in SENTENCES if text.strip()], set()
    for text, found in zip(texts, ours.translate(texts, max_tokens=12), strict=True):
        ids = torch.tensor([ours.encode(text)])
        assert ids[0].tolist() == hf_tokenizer(text, split_special_tokens=True)["input_ids"]
        with torch.no_grad():
            output_ids = hf.generate(ids, num_beams=1, do_sample=False, max_new_tokens=12, bad_words_ids=None)[
                0, 1:
            ].tolist()
        seen |= set(output_ids)
        assert list(found.targets[0].ids) == [token for token in output_ids if token != 0]
        assert found.text.strip() == hf_tokenizer.decode(output_ids, skip_special_tokens=True)
        alignment = ours.align(text, found.targets[0].ids, ended=False)
        token_texts = [ours.target_tokenizer.token_bytes(token).decode() for token in found.targets[0].ids]
        assert list(alignment.target_tokens) == token_texts
    assert len(seen) > 5
    with pytest.raises(RequestError, match="a model with separate vocabularies cannot be traced"):
        ours.trace("The cat")
    main(["convert", str(folder), str(tmp_path / "b")])
    assert Translator.load(tmp_path / "b").translate(texts, max_tokens=12) == ours.translate(texts, max_tokens=12)
    capsys.readouterr()
    main(["verify", str(tmp_path / "b")])
    assert "equal: " in capsys.readouterr().out

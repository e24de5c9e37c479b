"""The verbs show, convert and verify."""

import json
import re
from dataclasses import replace

import pytest
import torch
from cli.test_cli import run_error, run_ok
from generate.scripted import make_tokenizer
from tiny import randomise_sharp, tiny, tiny_encoder_decoder
from tiny_gguf import gguf_model
from tiny_translators import CONFIGS, SEQ2SEQ_FAMILIES

from glassformer.formats import load_seq2seq, save_model
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load
from glassformer.models.translator import Translator
from glassformer.nn.model import EncoderDecoder

GREEDY = {"max_tokens": 12, "temperature": 0.0}


@pytest.fixture(scope="module")
def lm():
    tokenizer = make_tokenizer()
    return LanguageModel(tiny("llama", vocab_size=tokenizer.vocab_size + 2), tokenizer)


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    lm.save(path)
    return path


def test_show(capfd, lm, folder, tmp_path):
    lm.save_gguf(tmp_path / "a.gguf", "F16")
    shown = [json.loads(run_ok(capfd, "show", path, "--json").out) for path in (folder, tmp_path / "a.gguf")]
    n = sum(p.numel() for p in lm.model.parameters())
    for facts in shown:
        assert facts["parameters"] == sum(facts["parts"].values()) == n
        assert facts["parts"]["embedding"] == lm.model.embed.weight.numel()
        assert facts["parts"].keys() == {"embedding", "attention", "feed-forward", "norms"}
        assert facts["memory"] == {"float32": 4 * n, "bfloat16": 2 * n}
        assert facts["cache"]["bytes_per_token"] == 3 * 2 * 1 * 12 * 2
        assert facts["tokenizer"]["vocab_size"] == 300
    assert shown[0]["config"] == shown[1]["config"]
    assert shown[0]["stored"].keys() == {"F32"}
    assert shown[1]["stored"].keys() == {"F32", "F16"}
    text = run_ok(capfd, "show", folder).out
    assert f"{n:,}" in text
    assert "feed-forward" in text


def test_convert_round_trip(capfd, lm, folder, tmp_path):
    """Folder -> GGUF -> folder preserves every weight and every token."""
    report = json.loads(run_ok(capfd, "convert", folder, tmp_path / "a.gguf", "--json").out)
    assert report["files"] == {str(tmp_path / "a.gguf"): (tmp_path / "a.gguf").stat().st_size}
    run_ok(capfd, "convert", tmp_path / "a.gguf", tmp_path / "back", "--shard-gb", "0.0001")
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    back = load(tmp_path / "back")
    assert all(torch.equal(back.model.get_parameter(name), p) for name, p in lm.model.named_parameters())
    assert back.config == lm.config
    assert back.generate("the c", **GREEDY) == lm.generate("the c", **GREEDY)
    run_ok(capfd, "convert", folder, tmp_path / "half", "--to", "BF16")
    run_ok(capfd, "convert", tmp_path / "half", tmp_path / "half.gguf")
    facts = json.loads(run_ok(capfd, "show", tmp_path / "half.gguf", "--json").out)
    assert facts["stored"].keys() == {"F32", "BF16"}, "auto is the dtype of most stored numbers"
    run_ok(capfd, "convert", tmp_path / "half.gguf", tmp_path / "again")
    ours, again = (load(tmp_path / name, dtype="float32").model.state_dict() for name in ("half", "again"))
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_convert_to_mixed_types(capfd, tmp_path):
    """A file of Q4_K_M; matrices with rows of 64 numbers do not fit its blocks and are reported."""
    tokenizer = make_tokenizer()
    model = gguf_model("llama", vocab_size=tokenizer.vocab_size, **{"*.mlp.d_ff": 256})
    LanguageModel(model, tokenizer).save(tmp_path / "model")
    report = json.loads(
        run_ok(capfd, "convert", tmp_path / "model", tmp_path / "a.gguf", "--to", "Q4_K_M", "--json").out
    )
    assert report["other_types"]["blk.0.attn_q.weight"] == "Q5_0"
    assert not [name for name in report["other_types"] if "ffn_down" in name]
    said = run_ok(capfd, "convert", tmp_path / "model", tmp_path / "a.gguf", "--to", "Q6_K", "--overwrite").err
    n = len(report["other_types"])
    assert f"matrices stored as Q8_0 because their rows do not fit the blocks of Q6_K: {n}, the first is" in said
    facts = json.loads(run_ok(capfd, "show", tmp_path / "a.gguf", "--json").out)
    assert facts["stored"].keys() == {"F32", "Q8_0", "Q6_K"}
    assert run_ok(capfd, "generate", tmp_path / "a.gguf", "the c", "--max-tokens", "4").out


def test_convert_errors(capfd, folder, tmp_path):
    assert "needs a DST that ends in .gguf" in run_error(capfd, "convert", folder, tmp_path / "a", "--to", "Q8_0")
    assert "is the same as SRC" in run_error(capfd, "convert", folder, folder, "--overwrite")
    assert "shard-gb must be above 0" in run_error(capfd, "convert", folder, tmp_path / "a", "--shard-gb", "0")
    (tmp_path / "a.gguf").write_text("mine")
    assert "exists already" in run_error(capfd, "convert", folder, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    run_ok(capfd, "convert", folder, tmp_path / "a.gguf", "--overwrite")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "exists already" in run_error(capfd, "convert", folder, tmp_path / "full")
    assert "has no config.json" in run_error(capfd, "convert", tmp_path / "full", tmp_path / "b")


def test_verify(capfd, lm, folder, tmp_path):
    facts = json.loads(run_ok(capfd, "verify", folder, "--json", "--tolerance", "1e-5").out)
    assert facts["first_difference"] is None
    assert facts["logits"] <= 1e-5
    assert facts["tokens"] == 64
    assert len(facts["points"]) > 20
    lm.save_gguf(tmp_path / "a.gguf", "Q8_0")
    assert "equal:" in run_ok(capfd, "verify", tmp_path / "a.gguf", "--text", "the cat").out
    config = json.loads((folder / "config.json").read_text())
    lm.save(tmp_path / "other")
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "rope_theta": 90.0, "rope_wobble": 1}))
    assert "rope_wobble" in run_error(capfd, "verify", tmp_path / "other")
    assert "tolerance above 0" in run_error(capfd, "verify", folder, "--tolerance", "0")


def test_verify_reports_the_first_difference(capfd, tmp_path):
    """GPT-2 in transformers multiplies transposed matrices, so the results are not bitwise equal."""
    save_model(tiny("gpt2"), tmp_path)
    assert run_ok(capfd, "verify", tmp_path, "--tolerance", "1e-5").out
    error = run_error(capfd, "verify", tmp_path, "--tolerance", "1e-30")
    assert "GPT2LMHeadModel of transformers" in error
    assert "differ at blocks.0." in error


@pytest.fixture(scope="module", params=SEQ2SEQ_FAMILIES)
def seq2seq(request, tmp_path_factory):
    """The folder of a translator with a separate generation_config.json, as other tools write it."""
    folder, config, tokenizer = tmp_path_factory.mktemp("seq2seq"), CONFIGS[request.param](), make_tokenizer()
    size = tokenizer.vocab_size
    config = replace(config, vocab_size=size, encoder=replace(config.encoder, vocab_size=size))
    save_model(
        randomise_sharp(EncoderDecoder(config)), folder, extra={"num_beams": 3, "eos_token_id": tokenizer.eos_id}
    )
    tokenizer.save(folder)
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 7, "max_length": 20}))
    return folder


def test_show_of_a_translator(capfd, seq2seq):
    facts = json.loads(run_ok(capfd, "show", seq2seq, "--json").out)
    model = load_seq2seq(seq2seq)
    assert facts["family"] == model.config.family
    assert facts["parameters"] == sum(facts["parts"].values()) == sum(p.numel() for p in model.parameters())
    parts = {"embedding", "attention", "cross-attention", "feed-forward", "norms"}
    assert parts | {"encoder: attention", "encoder: feed-forward", "encoder: norms"} <= facts["parts"].keys()
    assert not {name for name in facts["parts"] if "_" in name}, facts["parts"]
    assert "cross-attention" in run_ok(capfd, "show", seq2seq).out


def test_convert_of_a_translator(capfd, seq2seq, tmp_path):
    """Weights and generation settings are preserved; GGUF cannot express this model."""
    run_ok(capfd, "convert", seq2seq, tmp_path / "b", "--shard-gb", "0.0001")
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 1
    ours, again = load_seq2seq(seq2seq), load_seq2seq(tmp_path / "b")
    assert again.config == ours.config
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in ours.named_parameters())
    generation, config = (
        json.loads((tmp_path / "b" / name).read_text()) for name in ("generation_config.json", "config.json")
    )
    own = {
        "eos_token_id": Translator.load(seq2seq).end_id,
        "num_beams": 3,
        "max_length": 20,
        "decoder_start_token_id": 7,
    }
    assert generation.items() >= own.items()
    assert generation.keys() <= own.keys() | {"pad_token_id"}
    assert config["decoder_start_token_id"] == 7
    a, b = (Translator.load(folder).translate("the cat", max_tokens=9) for folder in (seq2seq, tmp_path / "b"))
    ids_a, ids_b = ([target.ids for one in found for target in one.targets] for found in (a, b))
    assert ids_a == ids_b
    assert re.search(
        "cannot be stored as GGUF|GGUF's t5 cannot describe",
        run_error(capfd, "convert", seq2seq, tmp_path / "a.gguf"),
    )
    run_ok(capfd, "convert", seq2seq, tmp_path / "half", "--to", "BF16")
    assert load_seq2seq(tmp_path / "half").embed.weight.dtype == torch.bfloat16


def test_verify_of_a_translator(capfd, seq2seq, tmp_path):
    facts = json.loads(run_ok(capfd, "verify", seq2seq, "--json", "--tolerance", "5e-5").out)
    assert facts["first_difference"] is None
    assert facts["tokens"] == 64
    names = [point["point"] for point in facts["points"]]
    assert {"encoder.blocks.2.attn.q", "blocks.1.cross.v", "final.logits"} <= set(names)
    text = run_ok(capfd, "verify", seq2seq, "--text", "the cat").out
    assert "equal:" in text
    assert "encoder.blocks.0.resid_post" in text
    assert run_ok(capfd, "verify", seq2seq / "model.safetensors", "--tokens", "9").out


def test_wrong_verb_error_names_the_right_one(capfd, seq2seq, folder):
    assert "glassformer translate" in run_error(capfd, "generate", seq2seq, "the cat")
    assert "glassformer generate" in run_error(capfd, "translate", folder, "the cat")


def test_verify_rejects_families_without_a_transformers_model(capfd, tmp_path):
    save_model(tiny_encoder_decoder("post", family="pair"), tmp_path)
    assert "belongs to Glassformer's own family pair" in run_error(capfd, "verify", tmp_path)

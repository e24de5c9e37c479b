"""show, convert and verify, as a person uses them."""

import json

import pytest
import torch
from cli.test_cli import refused, said
from generate.writers import make_tokenizer
from tiny import tiny

from glassformer.lm import LanguageModel, load
from glassformer.weights import save_model

GREEDY = {"max_tokens": 12, "temperature": 0.0}


@pytest.fixture(scope="module")
def lm():
    tokenizer = make_tokenizer()
    return LanguageModel(tiny("llama", vocab_size=tokenizer.vocab_size + 2), tokenizer)


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "whole"
    lm.save(path)
    return path


def test_show(capfd, lm, folder, tmp_path):
    lm.save_gguf(tmp_path / "a.gguf", "F16")
    shown = [json.loads(said(capfd, "show", path, "--json").out) for path in (folder, tmp_path / "a.gguf")]
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
    text = said(capfd, "show", folder).out
    assert f"{n:,}" in text
    assert "feed-forward" in text


def test_convert_there_and_back(capfd, lm, folder, tmp_path):
    """Folder -> GGUF -> folder keeps every bit and every token."""
    told = json.loads(said(capfd, "convert", folder, tmp_path / "a.gguf", "--json").out)
    assert told["files"] == {str(tmp_path / "a.gguf"): (tmp_path / "a.gguf").stat().st_size}
    said(capfd, "convert", tmp_path / "a.gguf", tmp_path / "back", "--shard-gb", "0.0001")
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    back = load(tmp_path / "back")
    assert all(torch.equal(back.model.get_parameter(name), p) for name, p in lm.model.named_parameters())
    assert back.config == lm.config
    assert back.generate("the c", **GREEDY) == lm.generate("the c", **GREEDY)
    said(capfd, "convert", folder, tmp_path / "half", "--to", "BF16")
    said(capfd, "convert", tmp_path / "half", tmp_path / "half.gguf")
    facts = json.loads(said(capfd, "show", tmp_path / "half.gguf", "--json").out)
    assert facts["stored"].keys() == {"F32", "BF16"}, "auto is what most numbers are stored in"
    said(capfd, "convert", tmp_path / "half.gguf", tmp_path / "again")
    ours, again = (load(tmp_path / name, dtype="float32").model.state_dict() for name in ("half", "again"))
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_what_convert_refuses(capfd, folder, tmp_path):
    assert "needs a DST that ends in .gguf" in refused(capfd, "convert", folder, tmp_path / "a", "--to", "Q8_0")
    assert "is what SRC is read from" in refused(capfd, "convert", folder, folder, "--overwrite")
    assert "shard-gb must be above 0" in refused(capfd, "convert", folder, tmp_path / "a", "--shard-gb", "0")
    (tmp_path / "a.gguf").write_text("mine")
    assert "is there already" in refused(capfd, "convert", folder, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    said(capfd, "convert", folder, tmp_path / "a.gguf", "--overwrite")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "is there already" in refused(capfd, "convert", folder, tmp_path / "full")
    assert "is a translator" not in refused(capfd, "convert", tmp_path / "full", tmp_path / "b")


def test_verify(capfd, lm, folder, tmp_path):
    facts = json.loads(said(capfd, "verify", folder, "--json", "--tolerance", "1e-5").out)
    assert facts["first_difference"] is None
    assert facts["logits"] <= 1e-5
    assert facts["tokens"] == 64
    assert len(facts["places"]) > 20
    lm.save_gguf(tmp_path / "a.gguf", "Q8_0")
    assert "the same:" in said(capfd, "verify", tmp_path / "a.gguf", "--text", "the cat").out
    config = json.loads((folder / "config.json").read_text())
    lm.save(tmp_path / "other")
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "rope_theta": 90.0, "rope_wobble": 1}))
    assert "rope_wobble" in refused(capfd, "verify", tmp_path / "other")
    assert "tolerance above 0" in refused(capfd, "verify", folder, "--tolerance", "0")


def test_verify_says_where_they_part(capfd, tmp_path):
    """GPT-2's products are of transposed matrices there: no two numbers are the same to the last bit."""
    save_model(tiny("gpt2"), tmp_path)
    assert said(capfd, "verify", tmp_path, "--tolerance", "1e-5").out
    told = refused(capfd, "verify", tmp_path, "--tolerance", "1e-30")
    assert "GPT2LMHeadModel of transformers" in told
    assert "part at blocks.0." in told

"""`--quantize`: quantization at load, in Python and in commands."""

import json

import pytest
import torch
from cli.test_cli import run_error, run_ok
from generate.scripted import TEXTS, make_tokenizer
from tiny_encoders import embedder
from tiny_gguf import gguf_model

import glassformer
from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import save_model
from glassformer.kernels.packed_linear import PackedEmbedding, PackedLinear, PackedTiedLinear
from glassformer.models.language_model import LanguageModel

TEXT = " ".join(TEXTS)[:80]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, tokenizer = tmp_path_factory.mktemp("model") / "model", make_tokenizer()
    LanguageModel(gguf_model("llama", vocab_size=tokenizer.vocab_size), tokenizer).save(path)
    return path


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_load(folder, kind):
    lm = glassformer.load(folder, quantize=kind)
    original = glassformer.load(folder, device="cpu", dtype="float32")
    assert isinstance(lm.model.embed, PackedEmbedding)
    assert isinstance(lm.model.blocks[0].mlp.down, PackedLinear)
    assert isinstance(lm.model.head, PackedLinear | PackedTiedLinear)
    assert lm.n_parameters == original.n_parameters
    assert {one.name for one in lm.quantization.matrices} == {
        n for n, p in original.model.named_parameters() if p.ndim > 1
    }
    for one in lm.quantization.matrices:
        ours, theirs = (m.model.get_submodule(one.name.removesuffix(".weight")).weight for m in (lm, original))
        off = ((ours - theirs).norm() / theirs.norm()).item()
        assert one.error == pytest.approx(off, rel=1e-3)
        assert off < (0.01 if one.format == "q8" else 0.12)
    assert {choice.what: choice.value for choice in lm.choices}["weights"] == kind
    scores = [one.score(TEXT).logprob for one in (lm, original)]
    assert scores[0] != scores[1]
    assert abs(scores[0] - scores[1]) < (0.05 if kind == "int8" else 0.5) * abs(scores[1])
    assert lm.trace(TEXT)["blocks.0.attn.heads"].isfinite().all()  # slices of a decoded matrix


def test_a_checkpoint_in_bfloat16_runs_in_float32(folder, tmp_path):
    save_model(glassformer.load(folder).model, tmp_path, dtype=torch.bfloat16)
    lm = glassformer.load(tmp_path, quantize="int8")
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert lm.score([1, 2, 3]).logprob < 0


def test_an_encoder(tmp_path):
    original = embedder("bert")
    original.save(tmp_path)
    ours = glassformer.load(tmp_path, quantize="int8")
    assert (ours.embed("the cat") - original.embed("the cat")).norm() < 0.1 * original.embed("the cat").norm()


def test_errors(folder, tmp_path):
    with pytest.raises(ConfigError, match="quantize must be int8 or int4, got 'int3'"):
        glassformer.load(folder, quantize="int3")
    with pytest.raises(ConfigError, match="quantize int8 runs on a CPU only, got device 'cuda'"):
        glassformer.load(folder, quantize="int8", device="cuda")
    with pytest.raises(ConfigError, match="quantize int8 computes in float32, got dtype 'bfloat16'"):
        glassformer.load(folder, quantize="int8", dtype="bfloat16")
    glassformer.load(folder).save_gguf(tmp_path / "a.gguf", "Q8_0")
    with pytest.raises(CheckpointError, match=r"is quantized already \(Q8_0\): load it as it is"):
        glassformer.load(tmp_path / "a.gguf", quantize="int8")


def test_commands(capfd, folder, tmp_path):
    shown = run_ok(
        capfd, "generate", folder, "the cat", "--max-tokens", "3", "--temperature", "0", "--quantize", "int8"
    )
    assert "int8: " in shown.err
    assert "int8 weights and float32 activations on cpu" in shown.err
    assert "8.5 bits per weight, relative error 0." in shown.err
    facts = json.loads(run_ok(capfd, "show", folder, "--quantize", "int4", "--json").out)
    matrices = {one["name"]: one for one in facts["quantization"]["matrices"]}
    assert matrices["blocks.0.attn.q.weight"].keys() == {"name", "shape", "format", "error"}
    lm = glassformer.load(folder, quantize="int4")
    assert facts["memory"]["int4"] == sum(tensor.nbytes for tensor in lm.model.state_dict().values())
    assert facts["memory"]["int4"] < facts["memory"]["float32"] / 3
    text = run_ok(capfd, "show", folder, "--quantize", "int4").out
    assert "q4" in text
    assert "MB in int4" in text
    assert "quantization" not in json.loads(run_ok(capfd, "show", folder, "--json").out)
    (tmp_path / "a.txt").write_text(TEXT)
    for verb in (["eval", folder, tmp_path / "a.txt"], ["inspect", folder, "the cat"]):
        run_ok(capfd, *verb, "--quantize", "int8")
    assert "Unknown option: --quantize" in run_error(
        capfd, "train", "--out", tmp_path / "run", "--quantize", "int8", status=2
    )

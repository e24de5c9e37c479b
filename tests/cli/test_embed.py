"""`glassformer embed` and `fill` as a person uses them, and what other verbs do with an encoder."""

import io
import json
from dataclasses import replace

import pytest
import torch
from tiny import wake
from tiny_encoders import CONFIGS, wordpieces

from glassformer.cli import common, main
from glassformer.config import PoolingConfig
from glassformer.formats.save import save_model
from glassformer.models.embedder import Embedder
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.pooling import Sentence

TEXTS = ["the cat sat", "the cats sat.", "a dog, a hat?"]


@pytest.fixture(scope="module")
def embedder():
    config = replace(CONFIGS["bert"], pooler=False, next_sentence=False)
    sentence = PoolingConfig(after=("normalize",), prompts={"query": "query: ", "document": ""})
    return Embedder(wake(TextEncoder(config)), wordpieces(), Sentence(sentence))


@pytest.fixture(scope="module")
def folder(embedder, tmp_path_factory):
    path = tmp_path_factory.mktemp("embedder")
    embedder.save(path)
    return path


def said(capsys, *arguments, stdin=None, monkeypatch=None):
    if stdin is not None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
    main([str(argument) for argument in arguments])
    return capsys.readouterr()


def refused(capsys, *arguments, status=1):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == status
    return capsys.readouterr().err


def test_texts_are_compared_each_with_each(embedder, folder, capsys):
    output = said(capsys, "embed", folder, *TEXTS)
    lines = output.out.splitlines()
    vectors = embedder.embed(TEXTS)
    assert "cosine similarity" in lines[0]
    for i, (line, text) in enumerate(zip(lines[1:], TEXTS, strict=True)):
        words = line.split()
        assert words[0] == str(i + 1)
        assert [float(word) for word in words[1:4]] == pytest.approx((vectors @ vectors[i]).tolist(), abs=0.006)
        assert line.endswith(text)
    assert "parameters" in output.err


def test_one_text_is_told_by_its_first_numbers(embedder, folder, capsys):
    line = said(capsys, "embed", folder, TEXTS[0]).out.splitlines()[0]
    numbers = [float(word) for word in line.split(": ")[1].split()[:-1]]
    assert line.startswith("48 dimensions, norm 1.0000: ")
    assert numbers == pytest.approx(embedder.embed(TEXTS[0])[0, :8].tolist(), abs=6e-5)


def test_many_texts_are_each_shown_with_the_nearest(embedder, folder, capsys, monkeypatch):
    monkeypatch.setattr("glassformer.cli.embed.LINES", 5)  # several blocks of the matrix
    words = ["cat", "dog", "hat", "mat", "kitten"]
    texts = [f"{a} {b}" for a in words for b in words if a != b]
    output = said(capsys, "embed", folder, "-", stdin="\n".join(texts).encode(), monkeypatch=monkeypatch)
    vectors = embedder.embed(texts)
    near = vectors @ vectors.T - 2 * torch.eye(len(texts))
    lines = output.out.splitlines()[1:]
    assert len(lines) == len(texts)
    for line, text, row in zip(lines, texts, near, strict=True):
        value, *rest = line.split()
        assert float(value) == pytest.approx(row.max().item(), abs=6e-4)
        assert " ".join(rest) == f"{text} {texts[row.argmax()]}"


@pytest.mark.parametrize("block", [2, 1024])
def test_json_is_one_object_a_text(embedder, folder, capsys, monkeypatch, block):
    monkeypatch.setattr("glassformer.cli.embed.LINES", block)
    stdin = b"the cat sat\r\n\na dog\n"
    out = said(capsys, "embed", folder, "-", "--json", stdin=stdin, monkeypatch=monkeypatch).out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["the cat sat", "", "a dog"]
    for row in rows:
        assert row["embedding"] == pytest.approx(embedder.embed(row["text"])[0].tolist(), abs=1e-5)


def test_prompts_and_cuts(embedder, folder, capsys):
    (line,) = said(capsys, "embed", folder, "a cat", "--prompt", "query", "--json").out.splitlines()
    assert json.loads(line)["embedding"] == pytest.approx(embedder.embed("query: a cat")[0].tolist(), abs=1e-5)
    long = "the cat " * 60
    (line,) = said(capsys, "embed", folder, long, "--truncate", "--json").out.splitlines()
    assert json.loads(line)["embedding"] == pytest.approx(embedder.embed(long, truncate=True)[0].tolist(), abs=1e-5)
    assert "no prompt 'odd'; it has: query, document" in refused(capsys, "embed", folder, "a", "--prompt", "odd")


def test_what_cannot_be_embedded_is_told(folder, capsys, monkeypatch):
    assert "there is no text: give one" in refused(capsys, "embed", folder)
    assert "text 2 of 2: the text has 122 tokens" in refused(capsys, "embed", folder, "a", "the cat " * 60)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b""), "utf-8"))
    assert "no text on stdin" in refused(capsys, "embed", folder, "-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n"), "utf-8"))
    assert "stdin is not UTF-8" in refused(capsys, "embed", folder, "-")
    monkeypatch.setattr("glassformer.cli.embed.LINES", 2)
    lines = b"a\nb\nc\n" + b"the cat " * 60
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8"))
    assert "after the first 2: text 2 of 2" in refused(capsys, "embed", folder, "-", "--json")
    assert "is a decoder-only language model" in refused(capsys, "embed", "stories", "a")


def test_hidden_places_are_filled(embedder, folder, capsys):
    text = "the [MASK] sat on [MASK]"
    (first, second) = embedder.fill(text, top=3)
    lines = said(capsys, "fill", folder, text, "--top", "3").out.splitlines()
    assert [lines[0], lines[4]] == ["mask 1", "mask 2"]
    for line, guess in zip(lines[1:4] + lines[5:], first + second, strict=True):
        assert line == f"{100 * guess.probability:6.2f}%  {guess.text.strip()}"
    found = json.loads(said(capsys, "fill", folder, text, "--top", "3", "--json").out)
    assert [guess["id"] for guess in found["masks"][1]] == [guess.id for guess in second]
    assert len(said(capsys, "fill", folder, "the [MASK]").out.splitlines()) == 5
    assert "has no mask token: put [MASK]" in refused(capsys, "fill", folder, "the cat")


def test_progress_is_told_in_plain_lines(embedder, folder, capsys, monkeypatch):
    monkeypatch.setattr("glassformer.models.embedder.BATCH_TOKENS", 12)
    plain = common.plain_progress
    monkeypatch.setattr(common, "plain_progress", lambda: plain(0.0))
    err = said(capsys, "embed", folder, *TEXTS, *TEXTS).err
    assert "embedding: 100%" in err
    assert "embedding: 17%" in err


# ---- other verbs


def test_show_tells_what_an_encoder_is(folder, capsys):
    facts = json.loads(said(capsys, "show", folder, "--json").out)
    assert facts["family"] == "bert"
    assert facts["cache"] is None
    assert facts["parts"]["token types"] == 3 * 48
    assert facts["parts"]["head"] == 48 * 48 + 48 + 97
    assert facts["sentence"]["after"] == ["normalize"]
    assert facts["config"]["n_token_types"] == 3
    text = said(capsys, "show", folder).out
    assert "after: ['normalize']" in text
    assert sum(facts["parts"].values()) == facts["parameters"]


@pytest.mark.parametrize("dtype", ["auto", "F16"])
def test_convert_keeps_all_that_an_embedder_is(embedder, folder, tmp_path, capsys, dtype):
    out = tmp_path / "out"
    facts = json.loads(said(capsys, "convert", folder, out, "--to", dtype, "--json").out)
    assert f"{out}/1_Pooling/config.json" in facts["files"]
    again = Embedder.load(out)
    assert again.sentence.config == embedder.sentence.config
    if dtype == "auto":
        assert all(
            torch.equal(a, b) for a, b in zip(again.model.parameters(), embedder.model.parameters(), strict=True)
        )
    else:
        assert (out / "model.safetensors").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    assert "cannot describe this bert model" in refused(capsys, "convert", folder, tmp_path / "x.gguf")


def test_convert_of_a_plain_encoder_says_nothing_of_sentences(embedder, tmp_path, capsys):
    save_model(embedder.model, tmp_path / "plain")
    said(capsys, "convert", tmp_path / "plain", tmp_path / "out", "--json")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("text", ["", "the cat sat"])
def test_verify_compares_an_encoder(folder, capsys, text):
    facts = json.loads(said(capsys, "verify", folder, "--json", *(["--text", text] if text else [])).out)
    assert facts["first_difference"] is None
    assert facts["points"][-1]["point"] == "final.logits"
    assert {"blocks.2.attn.q", "embed.types"} <= {place["point"] for place in facts["points"]}
    assert facts["tokens"] == (5 if text else 64)


def test_verify_reads_no_padding(tmp_path, capsys):
    """Random tokens may hit the number of padding, at which one side would stop counting positions."""
    config = replace(CONFIGS["roberta"], pooler=False, head=None, vocab_size=5)
    save_model(wake(TextEncoder(config)), tmp_path)
    facts = json.loads(said(capsys, "verify", tmp_path, "--json").out)
    assert facts["first_difference"] is None
    assert facts["points"][-1]["point"] == "final.norm"


@pytest.mark.parametrize("verb", ["generate", "translate", "bench", "chat"])
def test_verbs_that_write_refuse_an_encoder(folder, capsys, verb):
    more = ["a"] if verb in ("generate", "translate") else []
    err = refused(capsys, verb, folder, *more)
    assert "is an encoder-only model: use `glassformer embed`" in err

"""The verbs embed and fill, and other verbs with an encoder-only model."""

import io
import json
from dataclasses import replace

import pytest
import torch
from tiny import randomise_sharp
from tiny_encoders import CONFIGS, wordpieces

from glassformer.cli import common, main
from glassformer.config import PoolingConfig
from glassformer.formats.save import save_model
from glassformer.models.embedder import Embedder
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.pooling import SentencePooling

TEXTS = ["the cat sat", "the cats sat.", "a dog, a hat?"]


@pytest.fixture(scope="module")
def embedder():
    config = replace(CONFIGS["bert"], pooler=False, next_sentence=False)
    sentence = PoolingConfig(after=("normalize",), prompts={"query": "query: ", "document": ""})
    return Embedder(randomise_sharp(TextEncoder(config)), wordpieces(), SentencePooling(sentence))


@pytest.fixture(scope="module")
def folder(embedder, tmp_path_factory):
    path = tmp_path_factory.mktemp("embedder")
    embedder.save(path)
    return path


def run_ok(capsys, *arguments, stdin=None, monkeypatch=None):
    if stdin is not None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
    main([str(argument) for argument in arguments])
    return capsys.readouterr()


def run_error(capsys, *arguments, status=1):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == status
    return capsys.readouterr().err


def test_few_texts_are_compared_pairwise(embedder, folder, capsys):
    output = run_ok(capsys, "embed", folder, *TEXTS)
    lines = output.out.splitlines()
    vectors = embedder.embed(TEXTS)
    assert "cosine similarity" in lines[0]
    for i, (line, text) in enumerate(zip(lines[1:], TEXTS, strict=True)):
        words = line.split()
        assert words[0] == str(i + 1)
        assert [float(word) for word in words[1:4]] == pytest.approx((vectors @ vectors[i]).tolist(), abs=0.006)
        assert line.endswith(text)
    assert "parameters" in output.err


def test_one_text_shows_its_first_numbers(embedder, folder, capsys):
    line = run_ok(capsys, "embed", folder, TEXTS[0]).out.splitlines()[0]
    numbers = [float(word) for word in line.split(": ")[1].split()[:-1]]
    assert line.startswith("48 dimensions, norm 1.0000: ")
    assert numbers == pytest.approx(embedder.embed(TEXTS[0])[0, :8].tolist(), abs=6e-5)


def test_many_texts_are_shown_with_their_nearest_neighbour(embedder, folder, capsys, monkeypatch):
    monkeypatch.setattr("glassformer.cli.embed.LINES", 5)  # several blocks of the matrix
    words = ["cat", "dog", "hat", "mat", "kitten"]
    texts = [f"{a} {b}" for a in words for b in words if a != b]
    output = run_ok(capsys, "embed", folder, "-", stdin="\n".join(texts).encode(), monkeypatch=monkeypatch)
    vectors = embedder.embed(texts)
    near = vectors @ vectors.T - 2 * torch.eye(len(texts))
    lines = output.out.splitlines()[1:]
    assert len(lines) == len(texts)
    for line, text, row in zip(lines, texts, near, strict=True):
        value, *rest = line.split()
        assert float(value) == pytest.approx(row.max().item(), abs=6e-4)
        assert " ".join(rest) == f"{text} {texts[row.argmax()]}"


@pytest.mark.parametrize("block", [2, 1024])
def test_json_is_one_object_per_text(embedder, folder, capsys, monkeypatch, block):
    monkeypatch.setattr("glassformer.cli.embed.LINES", block)
    stdin = b"the cat sat\r\n\na dog\n"
    out = run_ok(capsys, "embed", folder, "-", "--json", stdin=stdin, monkeypatch=monkeypatch).out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["the cat sat", "", "a dog"]
    for row in rows:
        assert row["embedding"] == pytest.approx(embedder.embed(row["text"])[0].tolist(), abs=1e-5)


def test_prompt_and_truncate(embedder, folder, capsys):
    (line,) = run_ok(capsys, "embed", folder, "a cat", "--prompt", "query", "--json").out.splitlines()
    assert json.loads(line)["embedding"] == pytest.approx(embedder.embed("query: a cat")[0].tolist(), abs=1e-5)
    long = "the cat " * 60
    (line,) = run_ok(capsys, "embed", folder, long, "--truncate", "--json").out.splitlines()
    assert json.loads(line)["embedding"] == pytest.approx(embedder.embed(long, truncate=True)[0].tolist(), abs=1e-5)
    assert "no prompt 'odd'; it has: query, document" in run_error(capsys, "embed", folder, "a", "--prompt", "odd")


def test_invalid_input_raises_error(folder, capsys, monkeypatch):
    assert "there is no text: pass one" in run_error(capsys, "embed", folder)
    assert "text 2 of 2: the text has 122 tokens" in run_error(capsys, "embed", folder, "a", "the cat " * 60)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b""), "utf-8"))
    assert "no text on stdin" in run_error(capsys, "embed", folder, "-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n"), "utf-8"))
    assert "stdin is not UTF-8" in run_error(capsys, "embed", folder, "-")
    monkeypatch.setattr("glassformer.cli.embed.LINES", 2)
    lines = b"a\nb\nc\n" + b"the cat " * 60
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8"))
    assert "after the first 2: text 2 of 2" in run_error(capsys, "embed", folder, "-", "--json")
    assert "is a decoder-only language model" in run_error(capsys, "embed", "stories", "a")


def test_fill(embedder, folder, capsys):
    text = "the [MASK] sat on [MASK]"
    (first, second) = embedder.fill(text, top=3)
    lines = run_ok(capsys, "fill", folder, text, "--top", "3").out.splitlines()
    assert [lines[0], lines[4]] == ["mask 1", "mask 2"]
    for line, candidate in zip(lines[1:4] + lines[5:], first + second, strict=True):
        assert line == f"{100 * candidate.probability:6.2f}%  {candidate.text.strip()}"
    found = json.loads(run_ok(capsys, "fill", folder, text, "--top", "3", "--json").out)
    assert [candidate["id"] for candidate in found["masks"][1]] == [candidate.id for candidate in second]
    assert len(run_ok(capsys, "fill", folder, "the [MASK]").out.splitlines()) == 5
    assert "has no mask token: put [MASK]" in run_error(capsys, "fill", folder, "the cat")


def test_progress_without_terminal_is_plain_lines(embedder, folder, capsys, monkeypatch):
    monkeypatch.setattr("glassformer.models.embedder.BATCH_TOKENS", 12)
    plain = common.plain_progress
    monkeypatch.setattr(common, "plain_progress", lambda: plain(0.0))
    err = run_ok(capsys, "embed", folder, *TEXTS, *TEXTS).err
    assert "embedding: 100%" in err
    assert "embedding: 17%" in err


# ---- other verbs


def test_show_of_an_encoder(folder, capsys):
    facts = json.loads(run_ok(capsys, "show", folder, "--json").out)
    assert facts["family"] == "bert"
    assert facts["cache"] is None
    assert facts["parts"]["token types"] == 3 * 48
    assert facts["parts"]["head"] == 48 * 48 + 48 + 97
    assert facts["sentence"]["after"] == ["normalize"]
    assert facts["config"]["n_token_types"] == 3
    text = run_ok(capsys, "show", folder).out
    assert "after: ['normalize']" in text
    assert sum(facts["parts"].values()) == facts["parameters"]


@pytest.mark.parametrize("dtype", ["auto", "F16"])
def test_convert_preserves_an_embedder(embedder, folder, tmp_path, capsys, dtype):
    out = tmp_path / "out"
    facts = json.loads(run_ok(capsys, "convert", folder, out, "--to", dtype, "--json").out)
    assert f"{out}/1_Pooling/config.json" in facts["files"]
    again = Embedder.load(out)
    assert again.sentence.config == embedder.sentence.config
    if dtype == "auto":
        assert all(
            torch.equal(a, b) for a, b in zip(again.model.parameters(), embedder.model.parameters(), strict=True)
        )
    else:
        assert (out / "model.safetensors").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    assert "cannot describe this bert model" in run_error(capsys, "convert", folder, tmp_path / "x.gguf")


def test_convert_of_a_plain_encoder_writes_no_pooling(embedder, tmp_path, capsys):
    save_model(embedder.model, tmp_path / "plain")
    run_ok(capsys, "convert", tmp_path / "plain", tmp_path / "out", "--json")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("text", ["", "the cat sat"])
def test_verify_of_an_encoder(folder, capsys, text):
    facts = json.loads(run_ok(capsys, "verify", folder, "--json", *(["--text", text] if text else [])).out)
    assert facts["first_difference"] is None
    assert facts["points"][-1]["point"] == "final.logits"
    assert {"blocks.2.attn.q", "embed.types"} <= {point["point"] for point in facts["points"]}
    assert facts["tokens"] == (5 if text else 64)


def test_verify_uses_no_padding_tokens(tmp_path, capsys):
    """With random tokens, the padding id could occur, where `transformers` assigns no position."""
    config = replace(CONFIGS["roberta"], pooler=False, head=None, vocab_size=5)
    save_model(randomise_sharp(TextEncoder(config)), tmp_path)
    facts = json.loads(run_ok(capsys, "verify", tmp_path, "--json").out)
    assert facts["first_difference"] is None
    assert facts["points"][-1]["point"] == "final.norm"


@pytest.mark.parametrize("verb", ["generate", "translate", "bench", "chat"])
def test_generating_verbs_reject_an_encoder(folder, capsys, verb):
    more = ["a"] if verb in ("generate", "translate") else []
    err = run_error(capsys, verb, folder, *more)
    assert "is an encoder-only model: use `glassformer embed`" in err

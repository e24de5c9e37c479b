"""The verb translate."""

import io
import json

import pytest
import torch
from generate.scripted import END, make_tokenizer
from tiny import randomise, tiny

from glassformer.cli import main
from glassformer.cli.translate import draw
from glassformer.config import RecurrentConfig
from glassformer.families.common.shape import Seq2SeqShape
from glassformer.models.language_model import LanguageModel
from glassformer.models.translator import TranslationAlignment, Translator
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder


@pytest.fixture(scope="module")
def translator():
    tokenizer = make_tokenizer()
    config = Seq2SeqShape(d_model=32, n_layers=2, n_heads=2, context=24).expand(tokenizer.vocab_size)
    return Translator(randomise(EncoderDecoder(config)), tokenizer)


@pytest.fixture(scope="module")
def folder(translator, tmp_path_factory):
    path = tmp_path_factory.mktemp("translate") / "model"
    translator.save(path)
    return path


def run_ok(capfd, *arguments):
    capfd.readouterr()
    main([str(argument) for argument in arguments])
    return capfd.readouterr()


def run_error(capfd, *arguments):
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 1
    return capfd.readouterr()


def set_stdin(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_output_is_one_line_per_text(capfd, folder, translator):
    shown = run_ok(capfd, "translate", folder, "the cat", "a dog", "--max-tokens", 6)
    want = [one.text for one in translator.translate(["the cat", "a dog"], max_tokens=6)]
    assert shown.out == "\n".join(want) + "\n"
    assert "parameters" in shown.err


def test_n_best_with_scores(capfd, folder, translator):
    shown = run_ok(capfd, "translate", folder, "the cat", "--beam", 4, "--n", 3, "--max-tokens", 5)
    (want,) = translator.translate("the cat", beam=4, n=3, max_tokens=5)
    assert shown.out == "".join(f"{one.score:9.4f}  {one.text}\n" for one in want.targets)


def test_json_with_scores_and_alignment(capfd, folder, translator):
    options = ["--beam", 3, "--n", 2, "--max-tokens", 5, "--length-penalty", 1.5, "--json"]
    lines = run_ok(capfd, "translate", folder, "the cat", "é", *options, "--align").out.splitlines()
    found = translator.translate(["the cat", "é"], beam=3, n=2, max_tokens=5, length_penalty=1.5)
    for line, want in zip(lines, found, strict=True):
        data = json.loads(line)
        assert data["source"] == want.source
        assert data["model"] == str(folder)
        for one, target in zip(data["targets"], want.targets, strict=True):
            assert one["ids"] == list(target.ids)
            assert (one["text"], one["finish"]) == (target.text, target.finish)
            assert one["score"] == pytest.approx(target.score, rel=1e-4)
        best = want.targets[0]
        alignment = translator.align(want.source, best.ids, ended=best.finish == "stop")
        assert data["alignment"]["source_tokens"] == list(alignment.source_tokens)
        assert torch.allclose(torch.tensor(data["alignment"]["probs"]), alignment.probs, atol=1e-5)
    assert "alignment" not in json.loads(run_ok(capfd, "translate", folder, "a", "--json").out)


def test_blank_lines_of_stdin_stay_blank(capfd, folder, translator, monkeypatch):
    monkeypatch.setattr("glassformer.cli.translate.LINES", 2)
    set_stdin(monkeypatch, "the cat\r\n\na dog\n  \nthe mat")
    shown = run_ok(capfd, "translate", folder, "-", "--max-tokens", 4).out
    want = [one.text for one in translator.translate(["the cat", "a dog", "the mat"], max_tokens=4)]
    assert shown == f"{want[0]}\n\n{want[1]}\n\n{want[2]}\n"
    set_stdin(monkeypatch, "the cat\n\n")
    lines = run_ok(capfd, "translate", folder, "-", "--json", "--max-tokens", 4).out.splitlines()
    assert [len(json.loads(line)["targets"]) for line in lines] == [1, 0]
    set_stdin(monkeypatch, "")
    assert run_ok(capfd, "translate", folder, "-").out == ""


def test_error_names_the_line_after_earlier_output(capfd, folder, monkeypatch):
    set_stdin(monkeypatch, "the cat\n\n" + "naive " * 30 + "\na dog\n")
    shown = run_error(capfd, "translate", folder, "-", "--max-tokens", 4)
    assert shown.out.count("\n") == 2
    assert "line 3: the text has" in shown.err
    assert "the encoder's context holds 24" in shown.err


def test_invalid_input_raises_error_that_names_it(capfd, folder, tmp_path):
    LanguageModel(tiny("qwen3", vocab_size=300), None).save(tmp_path)
    for arguments, what in (
        (["translate", folder], "there is no text"),
        (["translate", folder, ""], "glassformer: the text is empty"),
        (
            ["translate", folder, "a", "x" * 90],
            "text 2 of 2: the text has 90 tokens, and the encoder's context holds 24",
        ),
        (["translate", folder, "a", "--n", 2], "need a beam of at least 2, got 1"),
        (["translate", folder, "a", "--max-tokens", 25], "--max-tokens 25 does not fit"),
        (["translate", tmp_path, "a"], "is a decoder-only language model: use `glassformer generate`"),
        (["translate", "nowhere", "a"], "nowhere is not a folder"),
        (["generate", folder, "a"], "is an encoder-decoder: use `glassformer translate`"),
    ):
        assert what in run_error(capfd, *arguments).err


def test_align_without_attention_raises(capfd, translator, tmp_path):
    size = translator.tokenizer.vocab_size
    model = randomise(RecurrentEncoderDecoder(RecurrentConfig(size, size, 8, 8)))
    Translator(model, translator.tokenizer).save(tmp_path)
    assert "no attention" in run_error(capfd, "translate", tmp_path, "a", "--align", "--max-tokens", 3).err
    assert run_ok(capfd, "translate", tmp_path, "a", "--max-tokens", 3).out


def test_align_prints_the_drawing_after_the_text(capfd, folder, translator):
    shown = run_ok(capfd, "translate", folder, "the cat", "--align", "--max-tokens", 5).out.splitlines()
    (one,) = translator.translate("the cat", max_tokens=5)
    assert shown[0] == one.text
    assert "share of attention" in shown[1 + one.text.count("\n")]
    assert any("░" in line or "▒" in line or "▓" in line or "█" in line for line in shown[2:])


def test_draw_alignment():
    probs = torch.tensor([[[[0.7, 0.3, 0.0, 0.0], [0.04, 0.05, 0.41, 0.5], [0.0, 0.0, 0.0, 1.0]]]])
    alignment = TranslationAlignment(("ab", " c", "猫", "\n"), ("x", "yz", END), probs, 0.0, END)
    assert list(draw(alignment, 80))[1:] == [
        "       ab·c猫·",
        "    x  ██▒▒",
        "   yz    ░░▓▓▓",
        "(end)        █",
    ]
    narrow = list(draw(alignment, 11))[1:]
    assert narrow[0] == "       ab·c猫·"
    alignment = TranslationAlignment(("ab",) * 8, ("x", "yz", END), torch.eye(8)[None, None, :3], 0.0, END)
    panels = list(draw(alignment, 19))[1:]
    assert panels[::4] == ["       " + "ab" * 6, "       abab"]
    assert [line.rstrip() for line in panels[1:4]] == ["    x  ██", "   yz    ██", "(end)      ██"]
    assert [line.rstrip() for line in panels[5:]] == ["    x", "   yz", "(end)"]

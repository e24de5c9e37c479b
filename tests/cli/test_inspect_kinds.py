"""`glassformer inspect` of encoders, encoder-decoders and recurrent models: output equals their traces."""

import json
import re

import numpy as np
import pytest
from inspect_pictures import decoded
from inspect_subjects import subject
from json_close import assert_json_close

from glassformer.cli import main
from glassformer.inspect.edits.edit import from_json
from glassformer.inspect.views.result import plain

SOURCE, TARGET = "a dog ate", "the cat sat"
EDITS = {
    "pair": {"op": "knockout", "point": "blocks.0.cross.scores", "query": 1, "key": 2},
    "additive": {"op": "knockout", "point": "rnn.scores", "query": 1, "key": 2},
    "bert": {"op": "ablate", "point": "blocks.1.attn.z", "head": 2},
}
KINDS = {"pair": "encoder-decoders", "additive": "recurrent encoder-decoders", "bert": "encoders"}
KINDS["no attention"] = "recurrent encoder-decoders"


@pytest.fixture(scope="module")
def models():
    return {family: subject(kind, family)[0] for family, kind in KINDS.items()}


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    folders_by_name = {}
    for name, model in models.items():
        folders_by_name[name] = str(tmp_path_factory.mktemp("model") / "m")
        model.save(folders_by_name[name])
    return folders_by_name


@pytest.fixture
def run_inspect(folders, capfd):
    def run(name, *arguments, target=TARGET, fails=False):
        capfd.readouterr()
        target_option = ("--target", target) if name != "bert" and target is not None else ()
        if not fails:
            main(["inspect", folders[name], SOURCE, *target_option, *arguments, "--device", "cpu", "--threads", "1"])
            return capfd.readouterr().out
        with pytest.raises(SystemExit) as end:
            main(["inspect", folders[name], SOURCE, *target_option, *arguments])
        assert end.value.code == 1
        return capfd.readouterr().err

    return run


def trace_of(models, name, **options):
    return models[name].trace(SOURCE, **({} if name == "bert" else {"target": TARGET}), **options)


@pytest.mark.parametrize("name", KINDS)
def test_overview_has_the_views_of_the_model_kind(run_inspect, models, name):
    t, overview = trace_of(models, name), json.loads(run_inspect(name, "--json"))
    seq2seq_views = {"summary", "alignment"} | ({"cell", "lens"} if name == "pair" else set())
    assert overview.keys() - {"model", "focus"} == ({"tokens", "cell"} if name == "bert" else seq2seq_views)
    if name in ("pair", "additive"):
        assert_json_close(overview["alignment"], plain(t.alignment()))
    if name == "no attention":
        assert "has no attention" in overview["alignment"]["error"]
    text = run_inspect(name)
    if name in ("pair", "bert"):
        attention = {"attention": "cross"} if name == "pair" else {}
        position = {field: overview["cell"][field] for field in ("layer", "head", "query", "key")}
        assert_json_close(overview["cell"], plain(t.cell(**position, **attention)))
        assert position["key"] == np.argmax(overview["cell"]["probs"]), "the key with the largest probability"
        prob = re.search(r"softmax = .* = (\S+)\n", text)[1]
        assert float(prob) == pytest.approx(overview["cell"]["prob"], abs=6e-5)
        if name == "pair":
            assert f"key {position['key']} {t.source.tokens[position['key']].replace(' ', '·')}" in text


def test_view_and_png_of_each_attention(run_inspect, models, tmp_path):
    t, path = trace_of(models, "pair"), tmp_path / "head.png"
    for attention, name in (
        ("cross", "blocks.1.cross"),
        ("encoder", "encoder.blocks.1.attn"),
        ("attn", "blocks.1.attn"),
    ):
        options = ("--layer", "1", "--head", "2", "--query", "2", "--attention", attention)
        output = json.loads(run_inspect("pair", "--view", "cell", *options, "--json"))
        assert_json_close(
            output["data"], plain(t.cell(layer=1, head=2, query=2, key=output["data"]["key"], attention=attention))
        )
        run_inspect("pair", "--view", "cell", *options, "--out", str(path))
        [(_, drawn)] = decoded(path.read_bytes())
        assert np.abs(np.nan_to_num(drawn) - t[f"{name}.probs"].tensor[2].numpy()).max() <= 0.01
    run_inspect("additive", "--view", "alignment", "--out", str(path))
    [(_, drawn)] = decoded(path.read_bytes())
    assert np.abs(drawn - trace_of(models, "additive")["rnn.probs"].tensor.numpy()).max() <= 0.01


@pytest.mark.parametrize("name", ["pair", "additive"])
def test_edit_is_compared_with_the_unedited_text(run_inspect, models, name):
    edit = json.dumps(EDITS[name])
    comparison = json.loads(run_inspect(name, "--edit", edit, "--view", "fork", "--json"))
    t = trace_of(models, name, edit=[from_json(EDITS[name])])
    assert_json_close(comparison["data"], plain(t.fork(trace_of(models, name))))
    assert max(step["kl"] for step in comparison["data"]["steps"]) > 0
    generated = json.loads(
        run_inspect(name, "--max-tokens", "4", "--edit", edit, "--view", "summary", "--json", target=None)
    )
    assert_json_close(
        generated["data"], plain(models[name].trace(SOURCE, max_tokens=4, edit=[from_json(EDITS[name])]).summary())
    )
    other = json.loads(run_inspect(name, "--view", "fork", "--other", "a cat", "--json"))
    assert_json_close(other["data"], plain(trace_of(models, name).fork(other=models[name].trace("a cat", TARGET))))


def test_encoder_with_an_edit(run_inspect, models):
    options = ("--view", "cell", "--layer", "2", "--head", "1", "--query", "1", "--key", "3", "--json")
    output = json.loads(run_inspect("bert", "--edit", json.dumps(EDITS["bert"]), *options))
    t = trace_of(models, "bert", edit=[from_json(EDITS["bert"])])
    assert_json_close(output["data"], plain(t.cell(layer=2, head=1, query=1, key=3)))


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("bert", ("--max-tokens", "3"), ("--max-tokens", "no effect")),
        ("bert", ("--target", "a"), ("--target", "a source")),
        ("bert", ("--view", "lens"), ("predicts no next token",)),
        ("bert", ("--view", "fork"), ("predicts no next token",)),
        ("pair", ("--max-tokens", "3"), ("--max-tokens has no effect",)),
        ("pair", ("--edit", '{"op": "ablate", "point": "rnn.probs"}'), ("rnn.probs",)),
        ("pair", ("--view", "cell", "--attention", "other"), ("'attn', 'cross', 'encoder'", "'other'")),
        ("additive", ("--view", "cell"), ("no heads",)),
        ("additive", ("--layer", "1"), ("no layers and heads",)),
        ("no attention", ("--view", "alignment"), ("has no attention",)),
    ],
)
def test_unsupported_options_name_the_reason(run_inspect, name, arguments, parts):
    message = run_inspect(name, *arguments, fails=True)
    for part in parts:
        assert part in message, message

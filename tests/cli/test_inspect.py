"""`glassformer inspect`: terminal, JSON and PNG output equal the tensors; invalid options raise errors."""

import inspect
import io
import json
import re

import numpy as np
import pytest
import torch
from inspect_pictures import decoded

import glassformer
from glassformer.cli import main
from glassformer.inspect.views.registry import VIEWS
from glassformer.inspect.views.result import plain

TEXT = "Once Max got a key. Soon Ann found a shell. Max gave the key to Ann."
ABLATION = '{"op": "ablate", "point": "blocks.1.attn.z", "head": 3}'


@pytest.fixture(scope="module")
def lm():
    return glassformer.load("stories", device="cpu")


@pytest.fixture(scope="module")
def t(lm):
    return lm.trace(TEXT)


def run(capfd, *arguments):
    """Run the command; return (stdout, stderr)."""
    capfd.readouterr()
    main(["inspect", "stories", *arguments, "--device", "cpu", "--threads", "1"])
    return capfd.readouterr()


def error_of(capfd, *arguments, status=1):
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["inspect", "stories", *arguments])
    assert end.value.code == status
    return capfd.readouterr().err


def test_overview_has_the_text_a_head_a_cell_and_the_lens(capfd, t):
    text = run(capfd, TEXT).out
    assert "\x1b[" not in text  # no terminal, no colours
    layer, head, share = re.search(r"Block (\d+), head (\d+)\nwhy this head: adds (\d+\.\d\d) to ", text).groups()
    shares = torch.tensor(t.attribution().heads)
    assert float(share) == pytest.approx(shares.max().item(), abs=0.006)
    assert (int(layer), int(head)) == divmod(int(shares.argmax()), shares.shape[1])
    query, key = map(int, re.search(r"query (\d+) \S+   key (\d+) ", text).groups())
    cell = t.cell(layer=int(layer), head=int(head), query=query, key=key)
    score, largest, total, exp, _, prob = re.search(
        r"softmax = exp\((\S+) - (\S+)\) / (\S+) = (\S+) / (\S+) = (\S+)", text
    ).groups()
    for shown, real in (
        (score, cell.score),
        (largest, cell.largest),
        (total, cell.total),
        (exp, cell.exp),
        (prob, cell.prob),
    ):
        assert float(shown) == pytest.approx(real, rel=2e-3, abs=6e-5)
    summary = t.summary()
    assert f"{100 * summary.next[0].value:.1f}%" in text
    percents = [f"{100 * token.prob:.0f}%" for token in summary.tokens[1:]]
    assert re.findall(r"\d+%", text[: text.index("under each token")]) == percents
    best = t.lens(position=query).rows[-1].top[0][0]
    assert f"{best.token.replace(' ', '·')} {100 * np.exp(best.logprob):.1f}%" in text


def test_json_equals_the_view(capfd, t):
    data = json.loads(
        run(capfd, TEXT, "--view", "cell", "--layer", "1", "--head", "3", "--query", "13", "--key", "2", "--json").out
    )
    assert data["view"] == "cell"
    assert data["parameters"] == {"layer": 1, "head": 3, "query": 13, "key": 2}
    assert data["data"] == plain(t.cell(layer=1, head=3, query=13, key=2))
    overview = json.loads(run(capfd, TEXT, "--json").out)
    assert overview["summary"] == plain(t.summary())
    assert overview["cell"] == plain(
        t.cell(**{name: overview["focus"][name] for name in ("layer", "head", "query", "key")})
    )


@pytest.mark.parametrize("name", [name for name in VIEWS if name not in ("fork", "changed", "alignment")])
def test_every_view_has_default_parameters(capfd, name):
    assert json.loads(run(capfd, TEXT, "--view", name, "--json").out)["view"] == name


def test_png_equals_the_attention_of_the_head(capfd, t, tmp_path):
    path = tmp_path / "head.png"
    run(capfd, TEXT, "--view", "cell", "--layer", "1", "--head", "3", "--out", str(path))
    real = t["blocks.1.attn.probs"][3].numpy()
    [(_, drawn)] = decoded(path.read_bytes())
    marked = np.unravel_index(np.nanargmax(np.abs(drawn - real)), real.shape)
    assert np.abs(drawn - real).max() <= 0.01, marked


def test_edit_is_compared_with_the_unedited_text(capfd, lm, tmp_path):
    from glassformer.inspect.edits.edit import from_json

    before = lm.trace(TEXT, max_tokens=4, temperature=0)
    after = lm.trace(TEXT, max_tokens=4, temperature=0, edit=[from_json(json.loads(ABLATION))])
    data = json.loads(run(capfd, TEXT, "--max-tokens", "4", "--edit", ABLATION, "--view", "fork", "--json").out)
    assert data["data"] == plain(after.fork(before))
    assert any(step["kl"] for step in data["data"]["steps"])
    other = json.loads(run(capfd, TEXT, "--view", "changed", "--other", TEXT.replace("Max", "Ben"), "--json").out)
    assert other["data"]["first"] == 2
    out = tmp_path / "result.json"
    assert (
        json.loads(run(capfd, TEXT, "--edit", ABLATION, "--out", str(out), "--json").out)["bytes"] == out.stat().st_size
    )
    assert json.loads(out.read_text())["summary"] == plain(
        lm.trace(TEXT, edit=[from_json(json.loads(ABLATION))]).summary()
    )


@pytest.mark.parametrize("option", ["--target", "--target-token", "--target_token"])
def test_target_and_rival_of_a_view(capfd, t, option):
    data = json.loads(run(capfd, TEXT, "--view", "attribution", option, " Max", "--rival", " Ann", "--json").out)
    assert data["data"] == plain(t.attribution(position=-1, target=" Max", rival=" Ann"))
    assert data["data"]["target"][1] == " Max"


def test_options_of_a_view_have_hyphens(capfd, t):
    data = json.loads(run(capfd, TEXT, "--view", "sampling", "--top-k", "7", "--min-p", "0.1", "--json").out)
    assert data["data"] == plain(t.sampling(position=-1, top_k=7, min_p=0.1))


def test_no_parameter_of_a_view_is_hidden_by_an_option():
    """An option of the command takes precedence over a view parameter of the same name; `target` is handled apart."""
    from glassformer.cli.common import Machine
    from glassformer.cli.inspect import inspect as command

    options = {*inspect.signature(command).parameters, *inspect.signature(Machine).parameters} - {"parameters"}
    hidden = {name for view in VIEWS.values() for name in view.parameters if name in options}
    assert hidden == {"target", "text"}  # the view parameter is the text of the command


def test_text_comes_from_stdin(capfd, monkeypatch, t):
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert json.loads(run(capfd, "-", "--view", "summary", "--json").out)["data"] == plain(t.summary())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--view", "cel"), ("'cel'", "'cell'", "attribution", "cache_speed")),
        (("--view", "cell", "--hed", "1"), ("'hed'", "layer, head, query, key")),
        (("--view", "cell", "--layer", "99"), ("layer", "0 to 3", "99")),
        (("--view", "cell", "--head", "x"), ("--head", "'x'")),
        (("--view", "lens", "--top", "many"), ("top", "whole number", "'many'")),
        (("--view", "fork",), ("'fork'", "'other'")),
        (("--top", "3"), ("--top", "--view")),
        (("--out", "result.pdf"), (".html, .png, .json", "'result.pdf'")),
        (("--out", "/nowhere/result.png"), ("does not exist", "/nowhere")),
        (("--bake", "all"), ("--bake", ".html")),
        (("--edit", "{op}"), ("--edit", "JSON", "{op}")),
        (("--edit", '{"op": "melt", "point": "blocks.1.attn.z"}'), ("melt", "ablate")),
        (("--edit", '{"op": "ablate", "point": "blocks.9.attn.z"}'), ("blocks.9.attn.z",)),
    ],
)  # fmt: skip
def test_invalid_options_name_the_allowed_values(capfd, arguments, parts):
    message = error_of(capfd, TEXT, *arguments)
    for part in parts:
        assert part in message, message

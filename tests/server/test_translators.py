"""Served translators and encoders: traces, views, tensors, sweeps, and requests that they reject."""

import json

import httpx2
import numpy as np
import pytest
from inspect_subjects import subject
from server.conftest import assert_error, serving, tiny_lm

from glassformer.inspect.edits.edit import from_json
from glassformer.models.translator import Translator
from glassformer.server.example_text import SENTENCE, example_text
from glassformer.toys import dates_recipe as pair_recipe
from glassformer.training.config import TrainConfig
from glassformer.training.run.run_file import RunFile

SOURCE, TARGET = "a dog ate", "the cat sat"


@pytest.fixture(scope="module")
def models():
    return {
        "pair": subject("encoder-decoders", "pair")[0],
        "rnn": subject("recurrent encoder-decoders", "additive")[0],
        "blind": subject("recurrent encoder-decoders", "no attention")[0],
        "reader": subject("encoders", "bert")[0],
        "talker": tiny_lm(),
    }


@pytest.fixture(scope="module")
def http(models):
    with serving(list(models.items())) as (url, _), httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def made(http, **body):
    answer = http.post("/v1/traces", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def read(answer):
    """A tensor's answer: header and numbers."""
    assert answer.status_code == 200, answer.text
    size = int.from_bytes(answer.content[:4], "little")
    head = json.loads(answer.content[4 : 4 + size])
    return head, np.frombuffer(answer.content[4 + size :], "<f4").reshape(head["shape"])


@pytest.mark.parametrize("name", ["pair", "rnn"])
@pytest.mark.parametrize("target", [None, TARGET])
def test_trace_of_source_and_target(http, models, name, target):
    one = models[name]
    given = {"max_tokens": 5} if target is None else {"target": target}
    found = made(http, model=name, prompt=SOURCE, **given)
    t = one.trace(SOURCE, target, max_tokens=given.get("max_tokens"))
    assert found["kind"] == t.kind
    assert [token["id"] for token in found["tokens"]] == list(t.ids)
    assert [token["id"] for token in found["target"]["tokens"]] == list(t.target)
    assert [token["text"] for token in found["source"]["tokens"]] == list(t.source.tokens)
    assert found["source"]["text"] == SOURCE
    assert (found["n_prompt"], found["finish"]) == (t.n_prompt, t.finish)
    seen = http.get(f"/v1/traces/{found['id']}/views/alignment").json()
    np.testing.assert_allclose(seen["probs"], t.alignment().probs, rtol=1e-5, atol=1e-7)
    assert seen["receipt"]["error"] <= 1e-4
    point = "rnn.probs" if name == "rnn" else "blocks.1.cross.probs"
    head, numbers = read(http.get(f"/v1/traces/{found['id']}/tensors/{point}"))
    np.testing.assert_allclose(numbers, t[point].tensor, rtol=1e-5, atol=1e-7)
    head, numbers = read(http.get(f"/v1/traces/{found['id']}/tensors/{point}?slice=1,0:2"))
    np.testing.assert_allclose(numbers, t[point].tensor[1, 0:2], rtol=1e-5, atol=1e-7)
    assert head["error"] <= 1e-4
    names = {one["name"]: one["shape"] for one in http.get(f"/v1/traces/{found['id']}/names").json()["points"]}
    assert names[point] == list(t.shape(point))


def test_cells_of_each_attention(http, models):
    found, t = made(http, model="pair", prompt=SOURCE, target=TARGET), models["pair"].trace(SOURCE, TARGET)
    for which in ("attn", "cross", "encoder"):
        place = {"layer": 1, "head": 2, "query": 2, "key": 1, "attention": which}
        seen = http.get(f"/v1/traces/{found['id']}/views/cell", params=place).json()
        assert seen["prob"] == pytest.approx(t.cell(**place).prob, rel=1e-5)
        assert http.get(f"/v1/traces/{found['id']}/views/grid", params={"layer": 1, "attention": which}).is_success
    _, numbers = read(http.get(f"/v1/traces/{found['id']}/tensors/encoder.blocks.1.attn.probs?slice=2"))
    np.testing.assert_allclose(numbers, t["encoder.blocks.1.attn.probs"].tensor[2], rtol=1e-5, atol=1e-7)
    assert_error(
        http.get(f"/v1/traces/{found['id']}/views/cell?layer=1&head=2&query=2&key=1&attention=other"), 400, "attn"
    )


def test_stream_ends_with_the_trace(http):
    answer = http.post("/v1/traces", json={"model": "pair", "prompt": SOURCE, "stream": True, "edits": []})
    (said,) = [part for part in answer.text.split("\n\n") if part.startswith("event: trace")]
    assert json.loads(said.split("data: ")[1])["source"]["text"] == SOURCE


def test_encoder_trace(http, models):
    found, t = made(http, model="reader", prompt=TARGET), models["reader"].trace(TARGET)
    assert (found["kind"], found["n_prompt"]) == ("encoder", len(t))
    seen = http.get(f"/v1/traces/{found['id']}/views/cell?layer=1&head=2&query=0&key=2").json()
    assert seen["visible"]
    assert seen["prob"] == pytest.approx(t.cell(layer=1, head=2, query=0, key=2).prob, rel=1e-5)


EDITS = {
    "pair": {"op": "knockout", "point": "blocks.0.cross.scores", "head": 1, "query": 1, "key": 2},
    "rnn": {"op": "knockout", "point": "rnn.scores", "query": 1, "key": 2},
    "reader": {"op": "scale", "point": "blocks.1.mlp.out", "factor": -2.0},
}


@pytest.mark.parametrize("name", EDITS)
def test_trace_with_an_edit(http, models, name):
    one, edit, pair = models[name], EDITS[name], {"target": TARGET} if name != "reader" else {}
    found = made(http, model=name, prompt=SOURCE, edits=[edit], **pair)
    assert found["edits"] == [edit]
    t = one.trace(SOURCE, *pair.values(), edit=[from_json(edit)])
    _, numbers = read(http.get(f"/v1/traces/{found['id']}/tensors/final.logits"))
    np.testing.assert_allclose(numbers, t["final.logits"].tensor, rtol=1e-4, atol=1e-5)
    assert np.abs(numbers - one.trace(SOURCE, *pair.values())["final.logits"].tensor.numpy()).max() > 1e-5
    if name != "reader":
        written = made(http, model=name, prompt=SOURCE, max_tokens=5, edits=[edit])["target"]["tokens"]
        assert [token["id"] for token in written] == list(
            one.trace(SOURCE, max_tokens=5, edit=[from_json(edit)]).target
        )
        plain = made(http, model=name, prompt=SOURCE, **pair)["id"]
        steps = http.get(f"/v1/traces/{plain}/views/fork", params={"other": found["id"]}).json()["steps"]
        assert max(step["kl"] for step in steps) > 0


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("pair", {"over": "heads", "attention": "cross", "target": 5, "rival": 9, "position": 1}),
        ("pair", {"over": "cells", "attention": "encoder", "op": "knockout"}),
        ("rnn", {"over": "positions", "op": "knockout"}),
        ("reader", {"over": "heads"}),
    ],
)
def test_sweeps_of_each_kind_of_model(http, models, name, how):
    pair = {"target": TARGET} if name != "reader" else {}
    found, t = made(http, model=name, prompt=SOURCE, **pair), models[name].trace(SOURCE, *pair.values())
    said = [part.split("\n") for part in http.post("/v1/sweeps", json={"trace": found["id"], **how}).text.split("\n\n")]
    events = [
        (one[0].removeprefix("event: "), json.loads(one[1].removeprefix("data: "))) for one in said if len(one) > 1
    ]
    rows = [data for event, data in events if event == "row"]
    want = list(models[name].sweep(t, **how))
    assert [row["edit"] for row in rows] == [row.edit.json for row in want]
    assert [row["value"] for row in rows] == pytest.approx([row.value for row in want], abs=1e-6)
    assert (events[0][0], events[-1][0]) == ("begin", "done")
    assert max(abs(row["change"]) for row in rows) > 0


def test_models_report_their_kind(http):
    kinds = {one["id"]: one["kind"] for one in http.get("/v1/models").json()["data"]}
    assert kinds == {
        "pair": "encoder-decoder", "rnn": "recurrent", "blind": "recurrent", "reader": "encoder", "talker": "decoder",
    }  # fmt: skip
    assert http.get("/v1/models/rnn").json()["context_length"] is None
    assert http.get("/health").json()["status"] == "ok"
    seen = http.get("/v1/models/pair/views/anatomy").json()
    assert (len(seen["layers"]), len(seen["encoder"])) == (2, 2)
    assert http.get("/v1/models/rnn/views/anatomy").json()["shares"].keys() >= {"encoder", "decoder", "attention"}


@pytest.mark.parametrize("name", ["pair", "rnn", "reader"])
def test_models_that_do_not_generate_are_rejected(http, name):
    what = f"the model '{name}' does not continue text"
    answer = http.post("/v1/completions", json={"model": name, "prompt": SOURCE})
    assert_error(answer, 400, what, "/v1/traces", param="model", code="not_a_language_model")
    answer = http.post("/v1/chat/completions", json={"model": name, "messages": [{"role": "user", "content": "a"}]})
    assert_error(answer, 400, what, param="model", code="not_a_language_model")


@pytest.mark.parametrize(
    ("name", "body", "param", "word"),
    [
        ("pair", {"temperature": 0.5}, "temperature", "greedily"),
        ("pair", {"seed": 1}, "seed", "no effect"),
        ("pair", {"edits": [{"op": "ablate", "point": "rnn.probs"}]}, "edit", "no point"),
        ("pair", {"edits": [{"op": "melt", "point": "blocks.0.attn.z"}]}, "edits[0].op", "ablate"),
        ("rnn", {"edits": [{"op": "ablate", "point": "blocks.0.attn.z"}]}, "edit", "no point"),
        ("reader", {"edits": [{"op": "ablate", "point": "embed.out", "position": -1}]}, "edit", "from 0 to"),
        ("pair", {"target": TARGET, "max_tokens": 3}, "max_tokens", "no effect"),
        ("pair", {"messages": [{"role": "user", "content": "a"}]}, "messages", "no effect"),
        ("pair", {"capture": ["blocks.77.attn.z"]}, None, "no point"),
        ("pair", {"prompt": ""}, "prompt", "empty"),
        ("pair", {"prompt": [999]}, "prompt", "out of range"),
        ("pair", {"prompt": [3] * 500}, "prompt", "context"),
        ("pair", {"prompt": None}, "prompt", "prompt is missing"),
        ("reader", {"max_tokens": 3}, "max_tokens", "does not generate"),
        ("reader", {"target": TARGET}, "target", "does not generate"),
        ("talker", {"target": TARGET}, "target", "is a decoder"),
    ],
)
def test_fields_without_effect_are_rejected(http, name, body, param, word):
    assert_error(http.post("/v1/traces", json={"model": name, "prompt": SOURCE} | body), 400, word, param=param)


def test_cache_and_embedding_views_of_the_source(http):
    pair = made(http, model="pair", prompt=SOURCE, target=TARGET)
    found = http.get(f"/v1/traces/{pair['id']}/views/cache?layer=1").json()
    assert found["layers"][0]["source"]["slots"] == len(pair["source"]["tokens"]) == len(found["source_mass"][0])
    receipts = {}
    for table in ("input", "source", "output"):
        one = http.get(f"/v1/models/blind/views/embedding?token=3&table={table}").json()
        receipts[table] = one["receipt"]["python"]
        assert one["tables"] == ["input", "source", "output"]
    assert receipts["source"] == "lm.model.source_embed.weight[3]"
    assert receipts["input"] == "lm.model.target_embed.weight[3]"


def test_unsupported_views_and_sweeps_are_rejected(http):
    blind = made(http, model="blind", prompt=SOURCE, target=TARGET)["id"]
    assert_error(http.get(f"/v1/traces/{blind}/views/alignment"), 400, "has no attention", param="view")
    assert_error(http.get(f"/v1/traces/{blind}/views/lens"), 400, "no blocks", param="view")
    assert_error(http.get(f"/v1/traces/{blind}/tensors/blocks.0.attn.z"), 400, "no point")
    assert_error(http.get(f"/v1/traces/{blind}/views/cache"), 400, "caches no past tokens", param="view")
    assert_error(http.get("/v1/models/talker/views/embedding?token=3&table=source"), 400, "'input'", param="table")
    pair = made(http, model="pair", prompt=SOURCE, target=TARGET)["id"]
    for body, why in (
        ({"over": "heads", "op": "knockout"}, "over='cells'"),
        ({"over": "words"}, "over must be one of"),
    ):
        assert why in http.post("/v1/sweeps", json={"trace": pair} | body).text
    assert "over='positions'" in http.post("/v1/sweeps", json={"trace": blind, "over": "heads"}).text
    talker = made(http, model="talker", prompt=SOURCE)["id"]
    assert_error(http.get(f"/v1/traces/{talker}/views/alignment"), 400, "has no source", param="view")


# ---- the example text


def test_example_text_of_each_kind_of_model(http, models):
    examples = {one["id"]: one["example_text"] for one in http.get("/v1/models").json()["data"]}
    assert examples["talker"] is None
    assert examples["pair"] == examples["rnn"] == SENTENCE
    assert made(http, model="reader", prompt=examples["reader"])["tokens"], "the model must accept it"


def test_example_text_of_a_run_is_its_sample_prompt(models, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    one = Translator(models["pair"].model, models["pair"].tokenizer, path=str(checkpoint))
    assert example_text(one) == SENTENCE
    RunFile(TrainConfig(sample_prompt="the third of May"), {}).write(tmp_path / "run")
    assert example_text(one) == "the third of May"
    RunFile(TrainConfig(), {}).write(tmp_path / "run")
    assert example_text(one) == SENTENCE
    (tmp_path / "run" / "run.json").write_text("{")
    assert example_text(one) == SENTENCE


def test_demo_runs_sample_from_an_example_of_their_task():
    for task in ("dates", "numbers", "reverse", "copy"):
        config = pair_recipe.train_config("transformer", task, "x", steps=5)
        assert config.sample_prompt == pair_recipe.sample_example(task).source

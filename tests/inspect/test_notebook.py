"""A trace in a notebook: messages over a real comm get the server's responses; a static picture is displayed too."""

import base64
import io
import json
import subprocess
import sys

import comm
import pytest
import torch
from comm.base_comm import BaseComm
from inspect_subjects import subject
from PIL import Image
from server.conftest import tiny_lm

from glassformer.errors import RequestError
from glassformer.inspect.edits.edit import add, from_json
from glassformer.inspect.present.router import LocalRouter
from glassformer.inspect.present.slices import read
from glassformer.inspect.present.web_build import DIST
from glassformer.inspect.views.registry import VIEWS
from glassformer.inspect.views.result import plain

TEXT = "a cat sat, a cat ran"
CELL = "layer=0&head=0&query=1&key=0"
KINDS = {"pair": "encoder-decoders", "additive": "recurrent encoder-decoders", "bert": "encoders"}
EDITS = {
    "pair": {"op": "knockout", "point": "blocks.0.cross.scores", "query": 1, "key": 2},
    "additive": {"op": "knockout", "point": "rnn.scores", "query": 1, "key": 2},
    "bert": {"op": "ablate", "point": "blocks.1.attn.z", "head": 2},
}


@pytest.fixture(scope="module")
def t():
    return tiny_lm("llama").trace(TEXT, max_tokens=4, temperature=0)


class RecordingComm(BaseComm):
    """A comm that records what is sent."""

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        self.__dict__.setdefault("sent", []).append((msg_type, data, buffers))


@pytest.fixture
def show(t, monkeypatch):
    if not (DIST / "index.html").is_file():
        pytest.fail("the page is not built: run `make page`")
    monkeypatch.setattr(comm, "create_comm", RecordingComm)
    return t.show


def ask(widget, message):
    """Return what the kernel sends in reply to the page's message."""
    sent = widget.comm.sent
    begin = len(sent)
    widget._handle_msg({"content": {"data": {"method": "custom", "content": message}}, "buffers": []})
    return [(data["content"], [bytes(one) for one in buffers or []]) for _, data, buffers in sent[begin:]]


def test_replies_equal_the_views_and_tensors(show, t):
    widget = show("cell", layer=1, head=2, query=6, key=3)
    path = "/v1/traces/t0/views/cell?layer=1&head=2&query=6&key=3"
    [(content, [data])] = ask(widget, {"id": 7, "kind": "get", "path": path})
    assert content == {"id": 7, "done": True}
    assert json.loads(data) == plain(VIEWS["cell"].function(t, layer=1, head=2, query=6, key=3))
    path = "/v1/traces/t0/tensors/blocks.1.attn.probs?slice=2,:,:&dtype=f32"
    [(_, [data])] = ask(widget, {"id": 8, "kind": "get", "path": path})
    length = int.from_bytes(data[:4], "little")
    real = read(t, "blocks.1.attn.probs", "2,:,:").tensor
    assert torch.equal(torch.frombuffer(bytearray(data[4 + length :]), dtype=torch.float32).view(real.shape), real)
    assert json.loads(data[4 : 4 + length])["shape"] == list(real.shape)


def test_view_with_stream_sends_rows(show, t):
    widget = show("cell")
    path = "/v1/traces/t0/views/lens?top=2&position=3%2C1&stream=true"
    *sent, last = ask(widget, {"id": 9, "kind": "post", "path": path})
    assert last == ({"id": 9, "done": True}, [])
    assert [content["event"] for content, _ in sent] == ["row"] * (t.config.n_layers + 1) + ["done"]
    full = t.lens(top=2, position=(3, 1))
    assert [json.loads(data) for _, [data] in sent] == [*plain(full.rows), plain(full)]
    [(content, _)] = ask(widget, {"id": 10, "kind": "post", "path": f"/v1/traces/t0/views/cell?{CELL}"})
    assert "no events" in content["error"]["message"]


def test_errors_are_replies_with_a_message(show):
    widget = show("cell")
    for path, word in (
        ("/v1/traces/t0/views/cell?layer=99&head=0&query=0&key=0", "layer"),
        ("/v1/traces/t9/views/summary", "unknown trace"), ("/v1/traces/t0/views/nothing", "no view"),
        ("/elsewhere", "unknown path"),
        ("/v1/traces/t0/tensors/blocks.0.attn.probs?dtype=u9", "dtype"),
    ):  # fmt: skip
        [(content, buffers)] = ask(widget, {"id": 1, "kind": "get", "path": path})
        assert word in content["error"]["message"]
        assert buffers == []


def test_same_request_reuses_the_trace_and_an_edit_makes_a_new_one(show, t):
    widget = show("cell")
    body = {"model": "m", "prompt": TEXT, "max_tokens": 4, "edits": [], "temperature": 0, "stream": True}
    (first, [data]), (last, _) = ask(widget, {"id": 1, "kind": "post", "path": "/v1/traces", "body": body})
    assert (first["event"], last["done"]) == ("trace", True)
    assert json.loads(data)["id"] == "t0"
    edit = {"op": "ablate", "point": "blocks.0.attn.z", "head": 1}
    *tokens, (_, [data]), _ = ask(
        widget, {"id": 2, "kind": "post", "path": "/v1/traces", "body": body | {"edits": [edit]}}
    )
    assert [content["event"] for content, _ in tokens] == ["token"] * 4
    other = json.loads(data)
    assert other["id"] == "t1"
    from glassformer.inspect.edits.edit import from_json

    again = t.lm.trace(TEXT, max_tokens=4, temperature=0.0, edit=[from_json(edit)])
    assert [one["id"] for one in other["tokens"]] == list(again.ids)
    [(_, [data])] = ask(widget, {"id": 3, "kind": "get", "path": "/v1/traces/t0/views/fork?other=t1"})
    assert json.loads(data) == plain(t.fork(again))


def test_sweep_sends_rows(show, t):
    widget = show("cell")
    sent = ask(widget, {"id": 1, "kind": "post", "path": "/v1/sweeps", "body": {"trace": "t0", "over": "layers"}})
    events = [(content.get("event"), json.loads(data[0]) if data else None) for content, data in sent]
    assert [name for name, _ in events] == ["begin", *["row"] * events[0][1]["total"], "done", None]
    for (_, row), real in zip(events[1:-2], t.lm.sweep(t, over="layers"), strict=True):
        assert row["change"] == plain(real.change)


def test_points_are_listed_and_vectors_are_stored(show, t):
    widget = show("fork")
    [(_, [data])] = ask(widget, {"id": 1, "kind": "get", "path": "/v1/traces/t0/names"})
    assert [(one["name"], tuple(one["shape"])) for one in json.loads(data)["points"]] == [
        (name, t.shape(name)) for name in t.names()
    ]
    vector = [0.5] * t.config.d_model
    (_, [data]), _ = ask(widget, {"id": 2, "kind": "post", "path": "/v1/vectors", "body": {"values": vector}})
    edit = {"op": "add", "point": "blocks.0.resid_post", "vector": json.loads(data)["vector"], "factor": 2.0}
    body = {"prompt": TEXT, "max_tokens": 4, "temperature": 0, "edits": [edit]}
    *_, (_, [data]), _ = ask(widget, {"id": 3, "kind": "post", "path": "/v1/traces", "body": body})
    steered = t.lm.trace(TEXT, max_tokens=4, temperature=0, edit=[add("blocks.0.resid_post", vector, scale=2.0)])
    assert [one["id"] for one in json.loads(data)["tokens"]] == list(steered.ids)


@pytest.mark.parametrize("family", KINDS)
def test_traces_of_other_model_kinds_are_shown_and_edited(show, family):
    """`show` works for each kind of model, and an edit of the page makes a new trace."""
    one = subject(KINDS[family], family)[0]
    inputs = () if family == "bert" else ("the cat sat",)
    trace, edit = one.trace("a dog ate", *inputs), EDITS[family]
    widget = trace.show("cell" if family == "bert" else "alignment")
    assert widget.address["options"] == ({"target": "the cat sat"} if inputs else {})
    body = {"model": "m", "prompt": "a dog ate", "max_tokens": 0, "temperature": 0, "edits": [], "stream": True}
    target = {"target": inputs[0]} if inputs else {}
    sent = ask(widget, {"id": 1, "kind": "post", "path": "/v1/traces", "body": body | target})
    assert json.loads(sent[0][1][0])["id"] == "t0", "the existing trace"
    sent = ask(widget, {"id": 2, "kind": "post", "path": "/v1/traces", "body": body | target | {"edits": [edit]}})
    found = json.loads(sent[0][1][0])
    assert (found["id"], found["edits"]) == ("t1", [edit])
    logits = widget.channel.router.trace("t1")["final.logits"].tensor
    assert torch.equal(logits, one.trace("a dog ate", *inputs, edit=[from_json(edit)])["final.logits"].tensor)


def test_static_picture_is_displayed_with_the_live_one(show, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append(data))
    show("head_grid")._ipython_display_()
    still, live = shown
    assert "application/vnd.jupyter.widget-view+json" in live
    image = Image.open(io.BytesIO(base64.b64decode(still["image/png"])))
    assert json.loads(image.text["glassformer"])["matrices"]
    assert still["image/png"] in still["text/html"]


def test_show_accepts_views_and_pictures(show, t):
    for name in VIEWS:
        if name not in ("changed", "alignment"):  # which need a second text or a source
            assert show(name).address["view"]
    with pytest.raises(RequestError, match="has no source"):
        show("alignment")
    assert show("map").address["view"] == "map"
    with pytest.raises(RequestError, match="head_grid"):
        show("nothing")
    with pytest.raises(RequestError, match="'dim'"):
        show("cell", dim=3)
    with pytest.raises(RequestError, match="layer"):
        show("cell", layer=99)


def test_notebook_packages_are_imported_on_demand():
    code = (
        "import sys, glassformer.models.language_model, glassformer.inspect.trace.trace, glassformer.cli.inspect; "
        "print(*{m.split('.')[0] for m in sys.modules} & {'anywidget', 'ipywidgets', 'IPython', 'PIL'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_local_router_equals_the_views(t):
    router = LocalRouter(t.lm, "a/b")
    id = router.add(t)
    assert router.add(t) == id
    assert json.loads(router.get("/v1/models/a%2Fb/views/anatomy")) == plain(VIEWS["anatomy"].function(t.lm))
    assert json.loads(router.get(f"/v1/traces/{id}"))["n_prompt"] == t.n_prompt

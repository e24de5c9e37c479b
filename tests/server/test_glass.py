"""Test that the inspection routes return the same numbers as the same model without a server."""

import json
import struct

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from json_close import assert_json_close
from server.conftest import assert_error, serving, tiny_lm

from glassformer.inspect.edits.edit import ablate, patch
from glassformer.inspect.sweep.sweep import sweep
from glassformer.inspect.trace.offsets import spans
from glassformer.inspect.views.focus import focus
from glassformer.inspect.views.registry import VIEWS
from glassformer.inspect.views.result import plain
from glassformer.server import trace_store
from glassformer.server.app import Settings

PROMPT = "the cat sat on the mat."
ABLATE = {"op": "ablate", "point": "blocks.1.attn.z", "head": 1}
KINDS = {"f32": "<f4", "f16": "<f2", "u8": "u1"}


def create_trace(http, **body):
    response = http.post("/v1/traces", json={"model": "talker", "prompt": PROMPT} | body)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/v1/traces/{response.json()['id']}"
    return response.json()


def events(response):
    """Return the (name, data) of each event of a stream."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n")[:-1]:
        head, data = block.split("\n")
        found.append((head.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def tensor(http, path):
    """Return the header and the numbers of a tensor."""
    response = http.get(path)
    assert response.status_code == 200, response.text
    (size,) = struct.unpack("<I", response.content[:4])
    head = json.loads(response.content[4 : 4 + size])
    assert (4 + size) % 8 == 0
    numbers = np.frombuffer(response.content[4 + size :], KINDS[head["dtype"]]).reshape(head["shape"])
    return head, numbers.astype(np.float64) * (head["scale"] or 1.0) + (head["zero"] or 0.0)


@pytest.fixture(scope="module")
def traces(http, lms):
    """Return a trace of the server as JSON, and the same trace without a server."""
    return create_trace(http, max_tokens=6, seed=4), lms["talker"].trace(PROMPT, max_tokens=6, seed=4)


def test_trace_equals_lm_trace(traces, lms):
    reply, t = traces
    assert [token["id"] for token in reply["tokens"]] == list(t.ids)
    assert (reply["n_prompt"], reply["finish"], reply["seed"]) == (t.n_prompt, t.finish, 4)
    assert reply["text"].startswith(PROMPT)
    assert reply["bytes"] >= t.bytes
    generated = lms["talker"].generate(PROMPT, max_tokens=6, seed=4, logprobs=0).continuations[0]
    assert reply["text"] == PROMPT + generated.text
    found = [token["logprob"] for token in reply["tokens"]][t.n_prompt :]
    assert found == pytest.approx([token.logprob for token in generated.tokens], abs=1e-5)
    for token in reply["tokens"]:
        data = bytes(token["bytes"])
        assert token["text"] in (data.decode("utf-8", "replace"), f"<{data.hex(' ').upper()}>")
        if token["text"].encode() == data:
            assert reply["text"][token["start"] : token["end"]] == token["text"]


@pytest.mark.parametrize("text", ["", "a", "é", "🙂 naïve", "吾輩は猫", " two  spaces"])
def test_spans_equal_the_tokenizers_offsets(lms, text):
    tokenizer = lms["talker"].tokenizer
    expected = tokenizer.encode_offsets(text)
    assert spans(tokenizer, expected.ids) == (text, [tuple(one) for one in expected.offsets])


def test_spans_of_invalid_utf8(lms):
    tokenizer = lms["talker"].tokenizer
    part = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    ids = [part[b"a"], part[b"\xf0"], part[b"\x9f"], part[b"b"], part[b"\xff"], 0, part[b"c"], part[b"\xc3"]]
    text, offsets = spans(tokenizer, ids)
    assert text == tokenizer.decode(ids, skip_special=True) == "a�b�c�"
    assert offsets == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4), (4, 4), (4, 5), (5, 6)]


def test_stream_has_token_events_and_then_the_trace(http, traces):
    reply, _ = traces
    body = {"model": "talker", "prompt": PROMPT, "max_tokens": 6, "seed": 4, "stream": True, "top": 3}
    *tokens, (last, trace) = events(http.post("/v1/traces", json=body))
    assert {name for name, _ in tokens} == {"token"}
    assert last == "trace"
    assert trace["id"] != reply["id"]
    same = ("n_prompt", "finish", "seed", "text", "tokens", "edits", "model")
    assert {name: trace[name] for name in same} == {name: reply[name] for name in same}
    generated = reply["tokens"][reply["n_prompt"] :]
    assert [(t["id"], t["position"]) for _, t in tokens] == [
        (one["id"], reply["n_prompt"] + i) for i, one in enumerate(generated)
    ]
    for _, token in tokens:
        assert len(token["top"]) == 3
        assert token["top"][0]["logprob"] >= token["logprob"]


def test_traces_are_listed_fetched_and_deleted(http):
    one, two = create_trace(http), create_trace(http, prompt=[5, 6, 7])
    listed = http.get("/v1/traces").json()
    assert [entry["id"] for entry in listed["data"]][:2] == [two["id"], one["id"]]
    assert http.get("/v1/traces").json() == listed, "listing does not mark a trace as used"
    assert listed["count"] == len(listed["data"])
    again = http.get(f"/v1/traces/{one['id']}").json()
    assert again == one, "a reloaded page gets the same trace"
    assert http.delete(f"/v1/traces/{one['id']}").json() == {"id": one["id"], "deleted": True}
    assert_error(http.get(f"/v1/traces/{one['id']}"), 404, "was dropped", "it was deleted", code="trace_gone")
    assert_error(http.delete(f"/v1/traces/{one['id']}"), 404, "it was deleted")
    assert_error(http.get("/v1/traces/nothing"), 404, "the trace 'nothing' does not exist", code="trace_not_found")


def test_the_least_recently_used_trace_is_evicted(lms):
    size = lms["talker"].trace(PROMPT).bytes
    with (
        serving([("m", tiny_lm())], Settings(trace_bytes=int(2.5 * size))) as (url, _),
        httpx2.Client(base_url=url) as http,
    ):
        one, two = (create_trace(http, model="m")["id"] for _ in range(2))
        http.get(f"/v1/traces/{one}")
        create_trace(http, model="m")
        assert http.get(f"/v1/traces/{one}").status_code == 200, "it was used"
        assert_error(http.get(f"/v1/traces/{two}"), 404, "was full", "least recently used", code="trace_gone")
        health = http.get("/health").json()["traces"]
        assert health["count"] == 2
        assert size < health["bytes"] <= health["limit"] == int(2.5 * size)
        long = {"model": "m", "prompt": "the cat sat on the mat " * 6}
        assert_error(http.post("/v1/traces", json=long), 400, "budget")


def test_the_number_of_traces_is_bounded(monkeypatch):
    monkeypatch.setattr(trace_store, "MAX_TRACES", 3)
    with serving([("m", tiny_lm())]) as (url, _), httpx2.Client(base_url=url) as http:
        ids = [create_trace(http, model="m")["id"] for _ in range(5)]
        assert http.get("/health").json()["traces"]["count"] == 3
        assert [http.get(f"/v1/traces/{id}").status_code for id in ids] == [404, 404, 200, 200, 200]


# ---- tensors


@pytest.mark.parametrize(
    ("name", "part", "index"),
    [
        ("blocks.1.attn.q", "", ...),
        ("blocks.1.attn.q", "3", 3),
        ("blocks.1.attn.q", "3,1", (3, 1)),
        ("blocks.1.attn.q", "-1,:,0:4", (-1, slice(None), slice(0, 4))),
        ("blocks.1.attn.q", "2:5,0", (slice(2, 5), 0)),
        ("blocks.0.attn.probs", "", ...),
        ("blocks.0.attn.probs", "2", 2),
        ("blocks.0.attn.probs", "2,5", (2, 5)),
        ("blocks.0.attn.probs", ":,5", (slice(None), 5)),
        ("blocks.0.attn.probs", "0:2,3:6,1:4", (slice(0, 2), slice(3, 6), slice(1, 4))),
        ("blocks.0.attn.probs", "1,5,2", (1, 5, 2)),
        ("blocks.2.resid_post", ":,7", (slice(None), 7)),
        ("final.logits", "-1", -1),
        ("embed.out", "0:1000", slice(0, 1000)),
    ],
)
def test_slice_equals_the_tensor(http, traces, name, part, index):
    reply, t = traces
    head, numbers = tensor(http, f"/v1/traces/{reply['id']}/tensors/{name}?slice={part}")
    value = t[name]
    expected = value.tensor[index].double().numpy()
    assert numbers.shape == expected.shape
    assert len(head["axes"]) == numbers.ndim
    assert head["bound"] == 0
    np.testing.assert_allclose(numbers, expected, atol=1e-6)
    assert head["identity"] == value.identity
    assert head["error"] == pytest.approx(value.error, abs=1e-5)
    assert len(set(numbers.ravel().tolist())) > 1 or numbers.size == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["blocks.0.attn.probs", "blocks.1.mlp.act"])
def test_quantization_error_is_within_the_bound(http, traces, kind, name):
    reply, _ = traces
    path = f"/v1/traces/{reply['id']}/tensors/{name}"
    _, exact = tensor(http, path)
    head, numbers = tensor(http, f"{path}?dtype={kind}")
    off = np.abs(numbers - exact).max()
    assert off <= head["bound"] * (1 + 1e-6)
    assert (off > 0) == (kind != "f32")
    assert head["bound"] < 0.01 * np.ptp(exact)


@pytest.mark.parametrize("pool", [1, 4, 7, 100])
@pytest.mark.parametrize(
    ("name", "part"), [("blocks.0.attn.probs", ""), ("blocks.1.attn.q", ":,1"), ("embed.out", "3")]
)
def test_pooled_number_is_the_maximum_of_its_cells(http, traces, pool, name, part):
    reply, _ = traces
    path = f"/v1/traces/{reply['id']}/tensors/{name}?slice={part}"
    _, exact = tensor(http, path)
    head, numbers = tensor(http, f"{path}&pool={pool}")
    axes = min(exact.ndim, 2)
    assert max(numbers.shape[-axes:]) <= pool
    assert len(head["pool"]) == axes
    for index in np.ndindex(numbers.shape):
        fixed = index[: exact.ndim - axes]
        tile = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index[exact.ndim - axes :], head["pool"], strict=True))
        assert numbers[index] == exact[(*fixed, *tile)].max()


def test_infinite_scores_need_f32(http, traces):
    reply, t = traces
    path = f"/v1/traces/{reply['id']}/tensors/blocks.0.attn.scores?slice=0"
    _, numbers = tensor(http, path)
    assert np.isneginf(numbers).any()
    np.testing.assert_allclose(numbers, t["blocks.0.attn.scores"][0].numpy(), atol=1e-5)
    assert_error(http.get(f"{path}&dtype=u8"), 400, "not finite", "f32", param="dtype")


def test_tensor_has_an_etag(http, traces):
    reply, _ = traces
    path = f"/v1/traces/{reply['id']}/tensors/blocks.0.attn.q?slice=1"
    one, other = http.get(path), http.get(f"{path}&dtype=f16")
    assert one.headers["etag"] != other.headers["etag"]
    assert "immutable" in one.headers["cache-control"]
    assert "private" in one.headers["cache-control"]
    again = http.get(path, headers={"if-none-match": one.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get(path, headers={"if-none-match": other.headers["etag"]}).status_code == 200


@pytest.mark.parametrize(
    ("path", "param", "words"),
    [
        ("blocks.9.attn.q", "point", ["no point 'blocks.9.attn.q'", "closest name is"]),
        ("frob", "point", ["closest"]),
        ("embed.out?slice=99", "slice", ["axis T", "0 to", "got 99"]),
        ("blocks.0.attn.probs?slice=9", "slice", ["axis H", "0 to 3", "got 9"]),
        ("embed.out?slice=1,2,3", "slice", ["3 parts", "2 axes: T, D"]),
        ("embed.out?slice=a", "slice", ["'a'"]),
        ("embed.out?slice=5:2", "slice", ["is empty on axis T"]),
        ("embed.out?slice=1:2:3", "slice", ["1:2:3"]),
        ("embed.out?dtype=f64", "dtype", ["one of f32, f16, u8", "'f64'"]),
        ("embed.out?pool=0", "pool", ["1 to 4096", "got 0"]),
        ("embed.out?pool=x", "pool", ["whole number", "got x"]),
        ("embed.out?frob=1", "frob", ["unknown parameter", "known: slice, pool, dtype"]),
        ("embed.out?pool=1&pool=2", "pool", ["twice"]),
    ],
)
def test_invalid_tensor_requests(http, traces, path, param, words):
    assert_error(http.get(f"/v1/traces/{traces[0]['id']}/tensors/{path}"), 400, *words, param=param)


def test_slice_too_large(http, traces, monkeypatch):
    monkeypatch.setattr("glassformer.inspect.present.slices.MAX_NUMBERS", 100)
    path = f"/v1/traces/{traces[0]['id']}/tensors/blocks.0.attn.q"
    assert_error(http.get(path), 400, "at most 100 are allowed", param="slice")
    assert http.get(f"{path}?slice=0,0").status_code == 200


# ---- views


def parameter_value(name, t):
    """Return a value for a parameter without default."""
    return {"layer": 1, "head": 2, "position": 5, "query": 5, "key": 3, "token": 60, "tokens": "60,61,62", "n": 3}.get(
        name, {"text": PROMPT, "word": "the"}.get(name, t)
    )


@pytest.mark.parametrize("name", sorted(VIEWS.keys() - {"alignment"}))  # alignment needs a seq2seq model
def test_every_view_equals_its_function(http, traces, lms, name):
    reply, t = traces
    view = VIEWS[name]
    needed = {p.name: parameter_value(p.name, reply["id"]) for p in view.parameters.values() if p.default is p.empty}
    base = f"/v1/traces/{reply['id']}" if view.of == "trace" else "/v1/models/talker"
    response = http.get(f"{base}/views/{name}", params=needed)
    assert response.status_code == 200, response.text
    found = response.json()
    given = view.read({key: str(value) for key, value in needed.items()}, lambda _: t)
    expected = plain(view.function(t if view.of == "trace" else lms["talker"], **given))
    assert found["receipt"]["python"]
    if name in ("times", "cache_speed"):  # measured times differ between calls
        assert found.keys() == expected.keys()
        return
    assert_json_close(found, expected)


def test_focus_equals_its_function(http, traces):
    reply, t = traces
    path = f"/v1/traces/{reply['id']}/focus"
    assert http.get(path).json() == plain(focus(t))
    assert http.get(path, params={"layer": 1, "head": 2, "query": 4, "key": 1}).json()["because"] == "selected"
    assert_error(http.get(path, params={"layer": 99}), 400, "layer", "99", param="layer")


@pytest.mark.parametrize(("name", "given"), [("lens", {"position": "3,1", "top": "2"}), ("roles", {})])
def test_view_streams_rows(http, traces, name, given):
    reply, t = traces
    path = f"/v1/traces/{reply['id']}/views/{name}"
    response = http.get(path, params={**given, "stream": "true"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [one.split("\n") for one in response.text.strip().split("\n\n")]
    names, values = zip(*((head[7:], json.loads(data[6:])) for head, data in events), strict=True)
    view = VIEWS[name]
    real = view.read(given)
    assert names == ("row",) * (len(names) - 1) + ("done",)
    assert_json_close(list(values[:-1]), [plain(one) for one in view.rows(t, **real)])
    assert_json_close(values[-1], plain(view.function(t, **real)))
    assert_json_close(http.get(path, params=given).json(), values[-1])


def test_errors_of_streamed_views_have_a_status(http, traces):
    base = f"/v1/traces/{traces[0]['id']}/views"
    assert_error(http.get(f"{base}/lens?position=99&stream=true"), 400, "position", "99", param="position")
    assert_error(http.get(f"{base}/lens?stream=maybe"), 400, "true or false", param="stream")
    assert_error(http.get(f"{base}/cell?layer=0&head=0&query=2&key=1&stream=true"), 400, "no parameter 'stream'")


def test_invalid_view_requests(http, traces):
    base = f"/v1/traces/{traces[0]['id']}/views"
    assert_error(http.get(f"{base}/cel"), 404, "no view 'cel'", "nearest is 'cell'", code="view_not_found")
    assert_error(http.get(f"{base}/tokens"), 404, "is a view of a model")
    assert_error(http.get("/v1/models/talker/views/cell"), 404, "is a view of a trace")
    assert_error(http.get("/v1/models/nobody/views/tokens?text=a"), 404, "available: talker, other")
    assert_error(http.get("/v1/traces/nothing/views/cell"), 404, "does not exist")
    assert_error(http.get(f"{base}/cell"), 400, "needs the parameter", "'layer'")
    assert_error(http.get(f"{base}/cell?layer=0&head=0&query=2&key=1&frob=1"), 400, "no parameter 'frob'", param="frob")
    assert_error(http.get(f"{base}/cell?layer=x&head=0&query=2&key=1"), 400, "whole number", "'x'", param="layer")
    assert_error(http.get(f"{base}/cell?layer=0&head=0&query=2&query=3&key=1"), 400, "twice", param="query")
    for query in ("layer=9&head=0&query=2&key=1", "layer=0&head=9&query=2&key=1", "layer=0&head=0&query=99&key=1"):
        assert_error(http.get(f"{base}/cell?{query}"), 400)


WORDS = st.one_of(
    st.integers(-3, 400).map(str),
    st.floats().map(str),
    st.text(max_size=6),
    st.sampled_from(["true", "1,2,3", "input"]),
)


@pytest.mark.parametrize("name", VIEWS)
def test_random_parameters_never_cause_a_server_error(http, traces, name):
    reply, _ = traces
    other = create_trace(http, model="other", prompt="a dog", max_tokens=2, seed=1)["id"]
    view = VIEWS[name]
    base = f"/v1/traces/{reply['id']}" if view.of == "trace" else "/v1/models/talker"
    needed = {p.name: parameter_value(p.name, other) for p in view.parameters.values() if p.default is p.empty}
    names = [*view.parameters, "frob"]

    @settings(max_examples=15)
    @given(st.dictionaries(st.sampled_from(names), WORDS, max_size=3))
    def check(change):
        response = http.get(f"{base}/views/{name}", params=needed | change)
        assert response.status_code in (200, 400, 404), (change, response.text)
        if response.status_code != 200:
            assert_error(response, response.status_code)

    check()


# ---- edits and sweeps


def test_edits_change_generation_and_traces(http, lms):
    lm, edit = lms["talker"], ablate("blocks.1.attn.z", head=1)
    reply = create_trace(http, max_tokens=6, seed=4, edits=[ABLATE])
    t = lm.trace(PROMPT, max_tokens=6, seed=4, edit=[edit])
    assert [token["id"] for token in reply["tokens"]] == list(t.ids)
    assert reply["edits"] == [ABLATE]
    _, numbers = tensor(http, f"/v1/traces/{reply['id']}/tensors/blocks.1.attn.out")
    np.testing.assert_allclose(numbers, t["blocks.1.attn.out"].tensor.numpy(), atol=1e-5)
    plain_one = create_trace(http, max_tokens=6, seed=4)
    _, without = tensor(http, f"/v1/traces/{plain_one['id']}/tensors/blocks.1.attn.out?slice=3")
    assert np.abs(numbers[3] - without).max() > 1e-3
    body = {"model": "talker", "prompt": PROMPT, "max_tokens": 12, "seed": 4, "edits": [ABLATE]}
    found = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert found == lm.generate(PROMPT, max_tokens=12, seed=4, edit=[edit]).text
    assert found != lm.generate(PROMPT, max_tokens=12, seed=4).text
    scored = body | {"max_tokens": 0, "echo": True, "logprobs": 0}
    found = http.post("/v1/completions", json=scored).json()["choices"][0]["logprobs"]["token_logprobs"]
    expected = [token.logprob for token in lm.score(PROMPT, edit=[edit]).tokens]
    assert found[1:] == pytest.approx(expected[1:], abs=1e-4)


def test_patch_from_another_trace(http, lms):
    lm, other = lms["talker"], "the dog ate on the hat."
    source = create_trace(http, prompt=other)
    edit = {"op": "patch", "point": "blocks.1.resid_pre", "from_trace": source["id"], "position": 3}
    reply = create_trace(http, edits=[edit])
    t = lm.trace(PROMPT, edit=[patch("blocks.1.resid_pre", lm.trace(other), position=3)])
    _, numbers = tensor(http, f"/v1/traces/{reply['id']}/tensors/blocks.2.resid_post?slice=-1")
    np.testing.assert_allclose(numbers, t["blocks.2.resid_post"][-1].numpy(), atol=1e-5)
    assert reply["edits"][0]["from_trace"] == source["id"]
    assert_error(
        http.post("/v1/traces", json={"model": "talker", "prompt": "a", "edits": [edit | {"from_trace": "x"}]}),
        404, "the trace 'x' does not exist",
    )  # fmt: skip


def test_trace_of_another_model_is_a_client_error(http):
    """A patch, a sweep and a fork with a trace of a model of another width do not cause a server error."""
    other = create_trace(http, model="other", prompt="a dog ate")["id"]
    reply = create_trace(http)
    edit = {"op": "patch", "point": "blocks.1.resid_pre", "from_trace": other, "position": 1}
    responses = [
        http.post("/v1/traces", json={"model": "talker", "prompt": PROMPT, "edits": [edit]}),
        http.post("/v1/sweeps", json={"trace": reply["id"], "over": "cells", "op": "patch", "source": other}),
        http.get(f"/v1/traces/{reply['id']}/views/fork?other={other}"),
    ]
    for response in responses:
        assert response.status_code < 500, response.text


def test_stored_vector_can_be_used_in_edits(http, lms):
    width = lms["talker"].config.d_model
    values = torch.linspace(-3, 3, width).tolist()
    response = http.post("/v1/vectors", json={"values": values})
    assert response.status_code == 201
    edit = {"op": "add", "point": "blocks.0.resid_post", "vector": response.json()["vector"], "factor": 2.0}
    reply, bare = create_trace(http, edits=[edit]), create_trace(http)
    after, before = (tensor(http, f"/v1/traces/{one['id']}/tensors/blocks.0.resid_post")[1] for one in (reply, bare))
    np.testing.assert_allclose(after - before, np.broadcast_to(2 * np.array(values), after.shape), atol=1e-4)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"op": "frob", "point": "blocks.0.attn.z"}, ["edits[0].op", "'ablate', 'scale'"]),
        ({"op": "ablate"}, ["point is missing"]),
        ({"op": "ablate", "point": "blocks.0.attn.zz"}, ["closest"]),
        ({"op": "ablate", "point": "blocks.0.attn.z", "head": 99}, ["99"]),
        ({"op": "ablate", "point": "blocks.0.attn.z", "position": 99}, ["99"]),
        ({"op": "scale", "point": "blocks.0.attn.z"}, ["needs factor"]),
        (
            {"op": "scale", "point": "blocks.0.attn.z", "factor": "much"},
            ["edits[0].factor must be a valid number, or 'NaN'"],
        ),
        ({"op": "add", "point": "blocks.0.attn.z", "vector": "f00"}, ["no tensor has the SHA-256"]),
        ({"op": "replace", "point": "blocks.0.attn.z", "value": 1e39}, ["value must be at most 3.40282e+38", "1e+39"]),
        ({"op": "add", "point": "blocks.0.attn.scores", "value": -1e300}, ["value must be at most 3.40282e+38"]),
        ({"op": "scale", "point": "blocks.0.attn.z", "factor": 10**40}, ["factor must be at most 3.40282e+38"]),
        ({"op": "ablate", "point": "blocks.0.attn.z", "frob": 1}, ["unknown field 'frob'"]),
        ({"op": ["ablate"], "point": "blocks.0.attn.z"}, ["edits[0].op"]),
        ({"op": "ablate", "point": {"a": 1}}, ["edits[0].point"]),
        ({"op": "ablate", "point": "blocks.0.attn.z", "head": {"a": 1}}, ["edits[0].head"]),
    ],
)
def test_invalid_edits(http, edit, words):
    for path in ("/v1/traces", "/v1/completions"):
        body = {"model": "talker", "prompt": "the", "max_tokens": 2, "edits": [edit]}
        assert_error(http.post(path, json=body), 400, *words)


def test_numbers_beyond_float32_are_rejected(http, traces):
    assert_error(http.post("/v1/vectors", json={"values": [1.0, -1e39]}), 400, "at most 3.40282e+38", param="values")
    body = {"trace": traces[0]["id"], "over": "heads", "op": "scale", "factor": 1e300}
    assert_error(http.post("/v1/sweeps", json=body), 400, "factor must be at most 3.40282e+38")
    assert http.post("/v1/vectors", json={"values": [3.4e38]}).status_code == 201


def test_edit_that_produces_nan(http):
    edit = {"op": "replace", "point": "blocks.1.resid_post", "value": "NaN"}
    reply = create_trace(http, edits=[edit])
    _, numbers = tensor(http, f"/v1/traces/{reply['id']}/tensors/blocks.1.resid_post?slice=2")
    assert np.isnan(numbers).all()
    body = {"model": "talker", "prompt": "the", "max_tokens": 2, "edits": [edit]}
    assert_error(http.post("/v1/completions", json=body), 400, "NaN")
    generated = create_trace(http, max_tokens=3, edits=[edit])
    assert generated["finish"] == "nan"
    assert len(generated["tokens"]) == generated["n_prompt"]


@pytest.mark.parametrize(
    "how",
    [
        {"over": "heads"},
        {"over": "layers", "op": "scale", "factor": 0.5, "target": " cat", "rival": " dog"},
        {"over": "positions", "position": 4},
        {"over": "cells", "op": "patch", "source": "other", "target": 60},
    ],
)
def test_sweep_equals_the_function(http, lms, how):
    lm = lms["talker"]
    if isinstance(how.get("target"), str):
        how = how | {"target": 60, "rival": 61}
    reply, other = create_trace(http), create_trace(http, prompt="the dog ate on the hat")
    body = how | ({"source": other["id"]} if "source" in how else {})
    first, *rows, last = events(http.post("/v1/sweeps", json={"trace": reply["id"]} | body))
    ours = how | ({"source": lm.trace("the dog ate on the hat")} if "source" in how else {})
    expected = sweep(lm.trace(PROMPT), **ours)
    assert (first[0], last) == ("begin", ("done", {}))
    assert first[1]["metric"] == expected.metric
    assert first[1]["total"] == len(rows) == len(expected)
    for (name, row), one in zip(rows, expected, strict=True):
        assert name == "row"
        assert (row["layer"], row["head"], row["position"], row["done"]) == (
            one.layer,
            one.head,
            one.position,
            one.done,
        )
        assert row["value"] == pytest.approx(one.value, abs=1e-4)
        assert row["change"] == pytest.approx(one.change, abs=1e-4)
    assert len({round(row["value"], 6) for _, row in rows}) > 1


def test_invalid_sweeps(http, traces):
    def post(**how):
        return http.post("/v1/sweeps", json={"trace": traces[0]["id"], "over": "heads"} | how)

    assert_error(post(over="frob"), 400, "heads, layers", param="over")
    assert_error(post(op="frob"), 400, "ablate", param="op")
    assert_error(post(op="patch"), 400, "op 'patch' needs source", param="source")
    assert_error(post(position=99), 400, "99")
    assert_error(post(target="no such token at all"), 400)
    assert_error(post(frob=1), 400, "unknown field 'frob'")
    assert_error(post(trace="x"), 404, "does not exist")
    assert_error(post(over=7), 400, "valid string")


# ---- invalid traces


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": None}, ["either a prompt or messages"]),
        ({"messages": [{"role": "user", "content": "hi"}]}, ["either a prompt or messages"]),
        ({"prompt": "the cat " * 200}, ["256"]),
        ({"prompt": [1, 2, 10**6]}, ["out of range"]),
        ({"max_tokens": -1}, ["max_tokens"]),
        ({"max_tokens": 9999}, ["256"]),
        ({"temperature": 0.5}, ["no effect without max_tokens"]),
        ({"capture": ["blocks.99.*"]}, ["blocks.99"]),
        ({"capture": "blocks"}, ["valid list"]),
        ({"n": 2}, ["unknown field 'n'"]),
        ({"top": -1, "max_tokens": 2, "stream": True}, ["logprobs"]),
        ({"model": "nobody"}, None),
    ],
)
def test_invalid_trace_requests(http, body, words):
    response = http.post("/v1/traces", json={"model": "talker", "prompt": "the"} | body)
    assert_error(response, 404 if words is None else 400, *(words or ["available"]))


def test_trace_of_a_conversation(http, lms):
    reply = create_trace(http, prompt=None, messages=[{"role": "user", "content": "the cat"}], max_tokens=3, seed=1)
    assert reply["n_prompt"] > len(lms["talker"].encode("the cat"))

"""Each edit equals an independent change: in the weights, in the reference's equations or in another run."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from reference import run as reference
from test_trace import DECODERS, known, language, near, text
from tiny import random_ids, run

from glassformer.errors import CapacityError, RequestError
from glassformer.generate import prefill
from glassformer.inspect.capture.points import points, sizes
from glassformer.inspect.edits.edit import (
    Edit,
    Store,
    ablate,
    add,
    edits_key,
    from_json,
    knockout,
    patch,
    replace,
    scale,
    sha256,
)
from glassformer.models.language_model import LanguageModel

GREEDY = {"max_tokens": 12, "temperature": 0}
NOTHING = {
    "scale 1": lambda name: scale(name, 1.0),
    "add 0": lambda name: add(name, 0.0),
    "ablate what is 0": None,
}


def generated(lm, ids, **how):
    return lm.generate(ids, **(GREEDY | how)).continuations[0].ids


def logits(lm, ids, *edits):
    return lm.trace(ids, edit=edits)["final.logits"].tensor


# ---- an edit that changes nothing


@pytest.mark.parametrize("family", DECODERS)
def test_neutral_edits_change_no_token(family):
    """Scaling by 1 at every point at once changes neither the text nor the values."""
    lm = language(family)
    recomputed = (".k", ".v", ".k_rot") if "deepseek" in family else ()
    names = [
        name for name in lm.trace([1, 2]).names() if not name.endswith((".scores", ".probs", ".heads", *recomputed))
    ]
    edits = [scale(name, 1.0) for name in names]
    assert generated(lm, text(lm), edit=edits) == generated(lm, text(lm))
    assert torch.equal(logits(lm, text(lm), *edits), logits(lm, text(lm)))
    derived = [scale(f"blocks.1.attn.{end}", 1.0) for end in ("scores", "probs", "heads")]
    assert generated(lm, text(lm), edit=derived) == generated(lm, text(lm))
    near(logits(lm, text(lm), *derived), logits(lm, text(lm)), "logits", 1e-5)


# ---- each operation, compared with the reference


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "gpt_neox"])
def test_every_operation_equals_the_reference(family):
    """Edit one head, position or dimension of each point; later values equal the edited reference."""
    lm = language(family)
    ids, plain = text(lm), known(lm, text(lm))["final.logits"]
    moved = 0
    for n, (name, point) in enumerate(points(lm.config).items()):
        if name.startswith("blocks.") and not name.startswith(("blocks.1.", "blocks.2.attn")):
            continue
        axes, size = point.axes.split()[1:], sizes(lm.config, name)
        head = {"head": n % size[axes[-2]]} if len(axes) == 3 and axes[-1] != "S" else {}
        if name.endswith(("scores", "probs")):
            edit, at = scale(name, 0.5, head=2, query=8, key=6), (2, 8, 6)
        elif n % 3 == 0:
            edit, at = replace(name, 1.5, position=(4, 9), dim=5, **head), ([4, 9], *head.values(), 5)
        elif n % 3 == 1:
            edit, at = scale(name, -0.5, position=9, **head), (9, *head.values())
        else:
            width = size[axes[-1]]
            vector = torch.linspace(-1, 1, width)
            edit, at = add(name, vector, scale=2.0, position=7, **head), (7, *head.values())

        def change(which, value, edit=edit, at=at):
            if which != edit.point:
                return value
            value_or_vector = edit.value if edit.tensor is None else edit.tensor.double().numpy()
            value[at] = {
                "scale": lambda: value[at] * edit.factor,
                "replace": lambda: value_or_vector,
                "add": lambda: value[at] + 2.0 * value_or_vector,
            }[edit.op]()
            return value

        t, want = lm.trace(ids, edit=[edit]), known(lm, ids, change=change)
        near(t["final.logits"].tensor, want["final.logits"], name)
        near(t[name].tensor, want[name], name)
        for other in ("blocks.1.attn.z", "blocks.1.mlp.out", "blocks.2.attn.probs", "blocks.1.attn.heads", "embed.out"):
            near(t[other].tensor, want[other], f"{other} under an edit of {name}")
            assert t[other].error < 1e-3, f"{other} under an edit of {name}"
        moved += np.abs(want["final.logits"] - plain).max() > 1e-3
    assert moved > 20, "too few edits change the logits"


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gpt_oss", "gemma2", "falcon"])
def test_ablated_head_equals_zero_columns_of_w_o(family):
    """Ablating a head at attn.z, before W_o, generates the text of a model without these weights."""
    lm = language(family)
    other = LanguageModel(copy.deepcopy(lm.model))
    size = lm.config.layers[1].attention.head_dim
    with torch.no_grad():
        other.model.blocks[1].attn.o.weight[:, 2 * size : 3 * size] = 0
    edit = [ablate("blocks.1.attn.z", head=2)]
    near(logits(lm, text(lm), *edit), logits(other, text(lm)), "logits", 1e-5)
    assert generated(lm, text(lm), edit=edit) == generated(other, text(lm))
    assert generated(lm, text(lm), edit=[ablate("blocks.1.attn.heads", head=2)]) == generated(other, text(lm))
    scored, want = (one.score(text(lm), **how).logprob for one, how in ((lm, {"edit": edit}), (other, {})))
    assert abs(scored - want) < 1e-3
    assert abs(lm.score(text(lm)).logprob - want) > 1e-2, "the head has no effect"


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "smollm3"])
def test_knockout_equals_a_masked_key(family):
    lm = language(family)
    ids, hidden = text(lm), {("blocks.1.attn", 8, 6), ("blocks.1.attn", 8, 8), ("blocks.0.attn", 5, 4)}
    edits = [knockout("blocks.1.attn.scores", query=8, key=[6, 8]), knockout("blocks.0.attn.scores", query=5, key=4)]
    weights = {n: p.detach().numpy() for n, p in lm.model.named_parameters()}
    want, t = reference(lm.config, weights, ids, hidden=hidden), lm.trace(ids, edit=edits)
    for name in ("blocks.1.attn.scores", "blocks.1.attn.probs", "blocks.1.attn.z", "final.logits"):
        near(t[name].tensor, want[name], name)
    near(
        t.rows("blocks.1.attn.probs", head=[1], query=[8, 7]).tensor[0], want["blocks.1.attn.probs"][1, [8, 7]], "rows"
    )
    assert t["blocks.1.attn.probs"].tensor[:, 8, [6, 8]].abs().max() == 0
    assert [(c.what, c.because) for c in t.choices] == [
        (f"blocks.{i}.attn", "its scores or probabilities are edited") for i in (0, 1)
    ]
    assert lm.trace(ids).choices == ()


@pytest.mark.parametrize("family", DECODERS)
def test_patch_at_all_positions_equals_the_source_run(family):
    """After a patch of the residual stream at every position, all later values equal those of the source run."""
    lm = language(family)
    source = lm.trace(text(lm, seed=2))
    t = lm.trace(text(lm), edit=[patch("blocks.1.resid_pre", source)])
    for name in t.names():
        if name.startswith(("blocks.1", "blocks.2", "final")):
            near(t[name].tensor, source[name].tensor, name, 1e-5)
    assert torch.equal(t["final.logits"].tensor, source["final.logits"].tensor)
    assert not torch.equal(t["blocks.0.resid_post"].tensor, source["blocks.0.resid_post"].tensor)
    one = lm.trace(text(lm), edit=[patch("blocks.1.resid_pre", source, position=p) for p in range(11)])
    assert torch.equal(one["final.logits"].tensor, source["final.logits"].tensor)
    some = [patch(f"blocks.1.attn.{end}", source) for end in ("q_rot", "k_rot", "v")]
    if "deepseek" in family:
        with pytest.raises(RequestError, match=r"in every forward pass: edit blocks.1.attn.latent"):
            lm.trace(text(lm), edit=some)
        return
    near(lm.trace(text(lm), edit=some)["blocks.1.attn.z"].tensor, source["blocks.1.attn.z"].tensor, "z", 1e-5)


def test_patch_of_selected_heads_positions_and_queries():
    """Patch one head at two positions, probabilities of one query, and the positions of a shorter text."""
    lm = language("qwen3")
    source, plain = lm.trace(text(lm, seed=2)), lm.trace(text(lm))
    t = lm.trace(text(lm), edit=[patch("blocks.1.attn.z", source, head=3, position=(9, 4))])
    want = plain["blocks.1.attn.z"].tensor.clone()
    want[[9, 4], 3] = source["blocks.1.attn.z"].tensor[[9, 4], 3]
    near(t["blocks.1.attn.z"].tensor, want, "z")
    t = lm.trace(text(lm), edit=[patch("blocks.2.attn.probs", source, head=(0, 2), query=10)])
    want = plain["blocks.2.attn.probs"].tensor.clone()
    want[[0, 2], 10] = source["blocks.2.attn.probs"].tensor[[0, 2], 10]
    near(t["blocks.2.attn.probs"].tensor, want, "probs")
    short = lm.trace(text(lm, 5, seed=2))
    t = lm.trace(text(lm), edit=[patch("blocks.1.resid_post", short)])
    assert torch.equal(t["blocks.1.resid_post"].tensor[:5], short["blocks.1.resid_post"].tensor)
    assert torch.equal(t["blocks.2.resid_pre"].tensor[5:], plain["blocks.2.resid_pre"].tensor[5:])


# ---- positions in chunked prefill and decoding


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "mistral", "phi3"])
@pytest.mark.parametrize("chunk", [512, 4])
def test_edit_positions_do_not_depend_on_chunking(family, chunk, monkeypatch):
    """Chunked prefill and decoding give the values of one forward pass over the complete text."""
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", chunk)
    lm = language(family)
    vector = torch.linspace(-2, 2, 48)
    edits = [
        add("blocks.1.resid_mid" if family != "gpt_neox" else "blocks.1.resid_post", vector, position=(3, 9, 12)),
        knockout("blocks.1.attn.scores", query=(9, 10, 13), key=8),
        ablate("blocks.2.attn.z", head=1, position=11),
        scale("final.logits", 0.5, position=(9, 12)),
        replace("embed.out", 0.25, position=6, dim=(1, 2)),
    ]
    t = lm.trace(text(lm, 10), max_tokens=6, temperature=0, edit=edits)
    full = lm.trace(t.ids, edit=edits)
    for name in t.names():
        near(t[name].tensor, full[name].tensor, name, 3e-5)
        assert t[name].error < 1e-3, name
    assert t.ids == (*text(lm, 10), *generated(lm, text(lm, 10), max_tokens=6, edit=edits))
    best = full["final.logits"].tensor.argmax(-1)
    assert tuple(best[9:15].tolist()) == t.ids[10:], "each token has the highest edited logit"


def test_position_minus_one_is_every_generating_position():
    """Position -1 selects the last prompt token and each generated token."""
    for family in ("qwen3", "gpt2"):
        lm = language(family)
        for make in (
            lambda at: knockout("blocks.1.attn.scores", query=at, key=2),
            lambda at: add("blocks.1.resid_post", torch.linspace(-3, 3, 48), position=at),
            lambda at: replace("final.logits", 99.0, position=at, dim=5),
        ):
            a, b = (generated(lm, text(lm, 10), edit=[make(at)]) for at in (-1, list(range(9, 22))))
            assert a == b
            t = lm.trace(text(lm, 10), edit=[make(-1)], **GREEDY)
            assert t.ids[10:] == a
            full = lm.trace(t.ids, edit=[make(tuple(range(9, len(t))))])
            near(t["final.logits"].tensor, full["final.logits"].tensor, "logits", 3e-5)
        assert set(generated(lm, text(lm, 10), edit=[replace("final.logits", 99.0, position=-1, dim=5)])) == {5}
        read = lm.trace(text(lm), edit=[scale("blocks.1.mlp.out", 3.0, position=-1)])
        assert torch.equal(read["blocks.1.mlp.out"].tensor[:-1], lm.trace(text(lm))["blocks.1.mlp.out"].tensor[:-1])
        assert not torch.equal(read["blocks.1.mlp.out"].tensor[-1], lm.trace(text(lm))["blocks.1.mlp.out"].tensor[-1])


def test_positions_before_an_edit_do_not_change():
    for family in ("qwen3", "gpt2", "gemma2"):
        lm = language(family)
        plain = lm.trace(text(lm))
        for edit in (scale("blocks.0.attn.k_rot", 3.0, position=6), knockout("blocks.1.attn.scores", query=6, key=3)):
            t = lm.trace(text(lm), edit=[edit])
            for name in ("blocks.1.attn.z", "blocks.2.resid_post", "final.logits"):
                near(t[name].tensor[:6], plain[name].tensor[:6], name, 1e-6)
            assert (t["final.logits"].tensor[6:] - plain["final.logits"].tensor[6:]).abs().max() > 1e-3


def test_edits_do_not_unmask_keys():
    """No edit of scores or probabilities lets a query attend to masked keys."""
    lm = language("qwen3")
    plain = lm.trace(text(lm))
    for edit in (replace("blocks.1.attn.scores", 50.0, key=9), replace("blocks.1.attn.probs", 1.0, key=9)):
        t = lm.trace(text(lm), edit=[edit])
        near(t["final.logits"].tensor[:9], plain["final.logits"].tensor[:9], "logits")
        assert (t["final.logits"].tensor[9:] - plain["final.logits"].tensor[9:]).abs().max() > 1e-3


# ---- edits of one sequence of a batch


def test_edit_of_one_continuation_does_not_change_the_others():
    """Edit one of four continuations, in its prompt too, which is then prefilled separately."""
    for family, sampling in (("qwen3", {}), ("gpt2", {"presence_penalty": 0.3})):
        lm = language(family)
        options = {"max_tokens": 14, "temperature": 1.0, "seed": 3, "n": 4} | sampling
        plain = [c.ids for c in lm.generate(text(lm), **options).continuations]
        edits = [scale("blocks.1.attn.z", -1.0, head=1, row=2), add("embed.out", 0.3, position=2, row=2)]
        some = [c.ids for c in lm.generate(text(lm), edit=edits, **options).continuations]
        every = [without_row(edit) for edit in edits]
        unrestricted = [c.ids for c in lm.generate(text(lm), edit=every, **options).continuations]
        assert [some[i] for i in (0, 1, 3)] == [plain[i] for i in (0, 1, 3)]
        assert some[2] == unrestricted[2] != plain[2]


def without_row(edit):
    from dataclasses import replace as other

    return other(edit, row=None)


def test_finished_continuations_do_not_shift_an_edit():
    """Continuations end at different tokens; an edit of the last one still applies to it alone."""
    lm = LanguageModel(language("qwen3").model, end_ids=range(0, 97, 5))
    options = {"max_tokens": 20, "temperature": 1.3, "seed": 1, "n": 6}
    plain = [c.ids for c in lm.generate(text(lm), **options).continuations]
    assert len({len(ids) for ids in plain}) > 2, "all continuations end at once"
    edited = lm.generate(
        text(lm), edit=[replace("final.logits", 50.0, dim=7, position=range(13, 30), row=5)], **options
    )
    found = [c.ids for c in edited.continuations]
    assert found[:5] == plain[:5]
    assert len(found[5]) < 3 or set(found[5][3:]) == {7}


# ---- NaN


def test_nan_is_shown_and_sampling_from_it_raises():
    """A query without visible keys gives NaN in the trace; a score and the choice of a token raise RequestError."""
    lm = language("qwen3")
    blind = knockout("blocks.1.attn.scores", query=5)
    t = lm.trace(text(lm), edit=[blind])
    assert t["blocks.1.attn.probs"].tensor[:, 5].isnan().all()
    assert math.isnan(t["blocks.1.attn.z"].error)
    assert t["final.logits"].tensor[5].isnan().all()
    assert t["blocks.1.resid_post"].tensor[:5].isfinite().all()
    with pytest.raises(RequestError, match="the edits make the logits NaN"):
        lm.score(text(lm), edit=[blind])
    for how in ({}, {"edit": [knockout("blocks.0.attn.scores", query=13)]}):
        with pytest.raises(RequestError, match="the edits make the logits NaN"):
            generated(lm, text(lm), edit=[blind, *how.get("edit", [])])
    late = [knockout("blocks.1.attn.scores", query=13)]
    t = lm.trace(text(lm), edit=late, **GREEDY)
    assert t.finish == "nan"
    assert len(t) == 14, "the trace includes the token whose logits are NaN"
    assert t.ids[11:] == generated(lm, text(lm))[:3]
    assert t["final.logits"].tensor[13].isnan().all()
    events = []
    with pytest.raises(RequestError, match="the edits make"):
        events.extend(lm.stream(text(lm), edit=late, **GREEDY))
    assert lm.trace(text(lm), edit=[replace("embed.out", math.nan, position=2)])["embed.out"].tensor[2].isnan().all()


# ---- edits as JSON


def test_edits_round_trip_through_json():
    lm = language("qwen3")
    source, store = lm.trace(text(lm, seed=2)), Store()
    edits = [
        ablate("blocks.1.attn.z", head=(1, 3)), scale("blocks.1.mlp.act", 0.5, dim=7, position=-1),
        replace("blocks.1.attn.scores", math.inf, query=4, key=2), add("embed.out", [1.0] * 48, scale=0.1, row=0),
        patch("blocks.2.resid_mid", source, position=4, name="abc"), knockout("blocks.0.attn.scores", query=-1, key=0),
        replace("blocks.1.mlp.out", torch.arange(48.0), position=3),
    ]  # fmt: skip
    for edit in edits:
        if edit.tensor is not None:
            assert store.put(edit.tensor) == edit.vector == sha256(edit.tensor)
        back = from_json(json.loads(json.dumps(edit.json)), store)
        assert back == edit
        assert hash(back) == hash(edit)
        assert back.hash == edit.hash
    assert edits[0].json == {"op": "ablate", "point": "blocks.1.attn.z", "head": [1, 3]}
    assert edits[2].json["value"] == "Infinity"
    assert len({edit.hash for edit in edits}) == len(set(edits)) == 7
    taken = from_json(
        {"op": "patch", "point": "blocks.2.resid_mid", "from_trace": "abc", "position": 4}, store, {"abc": source}.get
    )
    assert taken == edits[4]
    assert taken.json["from_trace"] == "abc"
    t = lm.trace(text(lm), edit=edits[:2] + edits[3:])
    again = lm.trace(text(lm), edit=[from_json(edit.json, store) for edit in edits[:2] + edits[3:]])
    assert torch.equal(t["final.logits"].tensor, again["final.logits"].tensor)


def test_edits_key_changes_from_the_first_edited_position():
    edits = [ablate("blocks.1.attn.z", head=1, position=(7, 5)), knockout("blocks.1.attn.scores", query=-1, key=2)]
    assert [edit.first_position(10) for edit in edits] == [5, 9]
    assert ablate("blocks.1.attn.z").first_position(10) == 0
    assert knockout("blocks.1.attn.scores", key=4).first_position(10) == 4
    assert knockout("blocks.1.attn.scores", key=4, query=(8, 6)).first_position(10) == 6
    keys = [edits_key(edits, position, 10) for position in range(12)]
    assert keys[:5] == [""] * 5
    assert len(set(keys[5:9])) == 1 != len({*keys[5:]})
    assert len(set(keys[9:])) == 1
    assert keys[9] == edits_key([from_json(edit.json) for edit in edits], 9, 10)


def test_store_evicts_the_least_recently_used():
    store = Store(500)
    ones, twos = store.put(torch.ones(60)), store.put(torch.full((60,), 2.0))
    assert store.put(torch.ones(60, dtype=torch.float64)) == ones
    threes = store.put(torch.full((60,), 3.0))
    assert sum(one.nbytes for one in store.tensors.values()) == 480
    with pytest.raises(RequestError, match="again if it was evicted"):
        store.get(twos)
    assert torch.equal(store.get(ones), torch.ones(60))
    store.put(torch.zeros(60))
    with pytest.raises(RequestError, match=threes):
        store.get(threes)
    with pytest.raises(CapacityError, match="504 bytes does not fit: at most 500"):
        store.put(torch.zeros(126))


WRONG = [
    ({"op": "ablate", "point": "blocks.9.attn.z"}, "no point 'blocks.9.attn.z'"),
    ({"op": "ablate", "point": "blocks.1.mlp.gate", "head": 0}, "has no head: it has position, dim"),
    ({"op": "ablate", "point": "blocks.1.attn.z", "head": 4}, "head must be from 0 to 3, got 4"),
    ({"op": "ablate", "point": "blocks.1.attn.v", "head": 2}, "head must be from 0 to 1, got 2"),
    ({"op": "ablate", "point": "blocks.1.attn.z", "head": -1}, "head must be from 0 to 3, got -1"),
    ({"op": "ablate", "point": "blocks.1.attn.z", "position": 11}, "position must be from 0 to 10, or -1"),
    ({"op": "ablate", "point": "blocks.1.attn.z", "position": -2}, "position must be from 0 to 10, or -1"),
    ({"op": "ablate", "point": "blocks.1.attn.z", "dim": 16}, "dim must be from 0 to 15, got 16"),
    ({"op": "ablate", "point": "blocks.1.attn.z", "row": 1}, "row must be from 0 to 0, got 1"),
    ({"op": "ablate", "point": "blocks.1.attn.scores", "position": 1}, "has no position: it has head, query, key"),
    ({"op": "ablate", "point": "blocks.1.attn.z", "query": 1}, "has no query: it has head, position, dim"),
    ({"op": "knockout", "point": "blocks.1.attn.probs"}, "a knockout edits scores, such as blocks.1.attn.scores"),
    ({"op": "knockout", "point": "blocks.1.attn.scores", "query": 2, "key": 3}, "query 2 does not see key 3"),
    ({"op": "knockout", "point": "blocks.1.attn.scores", "query": 9, "key": 3}, "query 9 does not see key 3"),
    ({"op": "knockout", "point": "blocks.0.attn.scores", "key": 11}, "key must be from 0 to 10, got 11"),
    ({"op": "scale", "point": "embed.out"}, "scale needs factor"),
    ({"op": "scale", "point": "embed.out", "factor": "2"}, "factor must be a number, got '2'"),
    ({"op": "ablate", "point": "embed.out", "factor": 2}, "factor has no effect on ablate"),
    ({"op": "replace", "point": "embed.out"}, "needs either a value, one number, or a vector"),
    ({"op": "patch", "point": "embed.out"}, "patch needs a trace to copy from"),
    ({"op": "patch", "point": "embed.out", "from_trace": "x"}, "there is no trace 'x'"),
    ({"op": "add", "point": "embed.out", "vector": "ab"}, "no tensor has the SHA-256 'ab'"),
    ({"op": "mute", "point": "embed.out"}, "op must be one of ablate, scale, .* got 'mute'"),
    ({"op": "ablate", "point": 3}, "point must be the name of a point"),
    ({"op": "ablate"}, "point is missing"),
    ({"op": "ablate", "point": "embed.out", "colour": 1}, "unknown key 'colour'; known: op, point"),
    ({"op": "ablate", "point": "embed.out", "position": "4"}, "position must be a whole number or a list of them"),
    ({"op": "ablate", "point": "embed.out", "position": []}, "position must be a whole number or a list of them"),
    ({"op": "ablate", "point": "embed.out", "position": True}, "position must be a whole number or a list of them"),
    ("ablate", "an edit is an object with op and point"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), WRONG)
def test_invalid_edits_raise_request_error(edit, message):
    lm = language("qwen3")
    for use in (lm.trace, lm.score, lm.generate, lm.stream):
        some = {"max_tokens": 1} if use in (lm.generate, lm.stream) else {}
        ids = text(lm, 10) if some else text(lm)
        with pytest.raises(RequestError, match=message):
            use(ids, edit=[from_json(edit)], **some)


def test_wrong_shapes_raise_request_error():
    lm = language("qwen3")
    source = lm.trace(text(lm, seed=2))
    for edit, message in (
        (add("embed.out", [1.0, 2.0]), r"its tensor has the shape \[2\], and the selection has \[48\]"),
        (add("blocks.1.attn.z", torch.ones(3, 16)), r"\[3, 16\], and the selection has \[4, 16\]"),
        (replace("blocks.1.attn.scores", torch.ones(3)), "needs one number"),
        (Edit("patch", "embed.out", vector="a", tensor=torch.ones(3, 4)), r"\[3, 4\], and the selection has \[48\]"),
    ):
        with pytest.raises(RequestError, match=message):
            lm.trace(text(lm), edit=[edit])
    for what, message in (
        (lambda: patch("embed.out", source, colour=1), "unknown axis 'colour'"),
        (lambda: patch("embed.out", source, position=30), "position must be a whole number from 0 to 10"),
        (lambda: patch("embed.out", source, dim=48), "out of range for an axis of length"),
        (lambda: Edit("add", "embed.out", vector="ab"), "put it into the store first"),
    ):
        with pytest.raises(RequestError, match=message):
            what()


def test_edits_of_sequences_of_different_lengths(monkeypatch):
    """In a padded batch, the positions of an edit are those of each sequence."""
    from glassformer.cache.dense import DenseCache
    from glassformer.inspect.capture.capture import CapturingTap
    from glassformer.inspect.edits.apply import Edits
    from glassformer.nn.step import Step

    for family in ("qwen3", "gpt2", "gemma2"):
        lm = language(family)
        edits = [
            knockout("blocks.1.attn.scores", query=(4, 5), key=4, row=1), add("blocks.0.resid_post", 0.7, position=5),
            scale("embed.out", 2.0, position=-1),
        ]  # fmt: skip
        lengths, new = [6, 4], [1, 2]
        ids = random_ids(lm.config, 2, 8, 3)
        cache, editor = DenseCache.of(lm.config, 2, 8), Edits(lm.config, edits, lengths, 8)
        found = []
        for counts, begins in ((lengths, [0, 0]), (new, lengths)):
            width = max(counts)
            some = torch.stack([row[b : b + width] for row, b in zip(ids, begins, strict=True)])
            step = Step(cache.extend(counts), cache=cache)
            step.tap = CapturingTap(step, (0, 1), editor, None)
            with torch.no_grad():
                found.append(lm.model(some, step))
        for row in (0, 1):
            alone = [without_row(edit) for edit in edits if edit.row in (None, row)]
            step = Step.of(ids[row : row + 1, : lengths[row] + new[row]])
            step.tap = CapturingTap(step, (0,), Edits(lm.config, alone, [lengths[row]], 8), None)
            want = run_with(lm.model, ids[row : row + 1, : lengths[row] + new[row]], step)
            got = torch.cat([part[row, : counts[row]] for part, counts in zip(found, (lengths, new), strict=True)])
            near(got, want, f"row {row}", 1e-5)
            assert (want - run(lm.model, ids[row : row + 1, : lengths[row] + new[row]])[0]).abs().max() > 1e-3


@torch.no_grad()
def run_with(model, ids, step):
    return model(ids, step)[0]

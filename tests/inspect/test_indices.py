"""Indices: in any order, negative, of NumPy and torch; each selected token gets its own row of a vector."""

import itertools

import numpy as np
import pytest
import torch
from inspect_subjects import SOURCE, subject
from test_trace import known, language, near, text

from glassformer.errors import RequestError
from glassformer.inspect.edits.edit import Edit, ablate, add, knockout, patch, replace, scale
from glassformer.inspect.views.focus import focus

GREEDY = {"max_tokens": 6, "temperature": 0, "logprobs": 3}
ORDERS = ((3, 5), (5, 3), (7, 0, 2), (-1, 3), (3, -1), (2, -1, 0))


def rows(n, *width, seed=0):
    return torch.randn(n, *width, generator=torch.Generator().manual_seed(seed)) * 3


# ---- several positions with a row each


@pytest.mark.parametrize("positions", ORDERS, ids=str)
@pytest.mark.parametrize("op", [replace, add])
def test_each_position_gets_its_row(op, positions):
    """In a trace, as in the reference; -1 is the last token of a text that is not continued."""
    lm = language("gpt2")
    ids, vectors = text(lm), rows(len(positions), 48)

    def change(name, value):
        if name == "blocks.1.resid_pre":
            for row, position in zip(vectors.double().numpy(), positions, strict=True):
                value[position] = row + (value[position] if op is add else 0)
        return value

    want = known(lm, ids, change=change)
    t = lm.trace(ids, edit=[op("blocks.1.resid_pre", vectors, position=positions)])
    for name in ("blocks.1.resid_pre", "blocks.2.attn.q", "final.logits"):
        near(t[name].tensor, want[name], name)
    logprobs = torch.tensor(want["final.logits"]).log_softmax(-1)
    found = lm.score(ids, edit=[op("blocks.1.resid_pre", vectors, position=positions)])
    own = [logprobs[i, token].item() for i, token in enumerate(ids[1:])]
    assert [one.logprob for one in found.tokens[1:]] == pytest.approx(own, abs=1e-3)


@pytest.mark.parametrize("positions", [*ORDERS, (-1, 12), (12, 4)], ids=str)
@pytest.mark.parametrize("family", ["qwen3", "phi3"])
def test_rows_equal_separate_edits_during_generation(family, positions, monkeypatch):
    """For every chunking of the prompt, generated tokens included; -1 is every token that predicts a new one."""
    from glassformer.generate import prefill

    lm = language(family)
    ids, vectors = text(lm), rows(len(positions), 48)
    together = [replace("blocks.1.resid_pre", vectors, position=positions)]
    apart = [replace("blocks.1.resid_pre", row, position=p) for row, p in zip(vectors, positions, strict=True)]
    apart = sorted(apart, key=lambda edit: edit.position)  # an explicit position wins over -1
    for chunk in (512, 4, 1):
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", chunk)
        if -1 in positions and 12 in positions:
            with pytest.raises(RequestError, match="position 12 is also one of those that -1 stands for"):
                lm.generate(ids, edit=together, **GREEDY)
            continue
        found, want = (lm.generate(ids, edit=edits, **GREEDY).continuations[0] for edits in (together, apart))
        assert found.ids == want.ids
        assert [one.logprob for one in found.tokens] == pytest.approx([one.logprob for one in want.tokens], abs=1e-4)
        events = [event.id for event in lm.stream(ids, edit=together, **GREEDY) if event.id is not None]
        assert tuple(events) == found.ids


@pytest.mark.parametrize("heads", [(2, 0), (0, 3), (3, 1, 0)], ids=str)
@pytest.mark.parametrize("dims", [None, (5, 2), 4], ids=str)
def test_heads_and_dimensions_in_any_order(heads, dims):
    lm = language("gpt2")
    width = 12 if dims is None else len(dims) if isinstance(dims, tuple) else 1
    vectors = rows(len(heads), width)
    shapes = [vectors, vectors[:, 0]] if width == 1 else [vectors]
    shapes += [torch.stack([vectors, -vectors])]  # a matrix for each of two positions
    for given in shapes:
        position = {"position": (8, 2)} if given.ndim == 3 else {}

        def change(name, value, given=given, position=position):
            if name == "blocks.1.attn.z":
                for p, (h, head) in itertools.product(range(len(value)), enumerate(heads)):
                    if not position or p in position["position"]:
                        one = given[position["position"].index(p)] if position else given
                        value[p, head, slice(None) if dims is None else dims] = one[h].double().numpy().squeeze()
            return value

        t = lm.trace(text(lm), edit=[replace("blocks.1.attn.z", given, head=heads, dim=dims, **position)])
        near(t["final.logits"].tensor, known(lm, text(lm), change=change)["final.logits"], f"{heads} {dims}")


def test_a_patch_of_several_positions_keeps_their_order():
    lm = language("qwen3")
    source, ids = lm.trace(text(lm, seed=2)), text(lm)
    name = "blocks.1.resid_pre"
    t = lm.trace(ids, edit=[patch(name, source, position=(-1, 3))])
    assert torch.equal(t.at(name, [3, -1]).tensor, source.at(name, [3, -1]).tensor)
    t = lm.trace(ids, edit=[patch(name, source, position=(2, 5), source_position=(7, 1))])
    assert torch.equal(t.at(name, [2, 5]).tensor, source.at(name, [7, 1]).tensor)
    assert torch.equal(t.at(name, 4).tensor, lm.trace(ids).at(name, 4).tensor)
    for where in ({}, {"position": 3}):
        with pytest.raises(RequestError, match="source_position needs as many positions"):
            patch(name, source, source_position=(1, 2), **where)


@pytest.mark.parametrize("queries", [(-1,), (-1, 3), (4, -1), (6, 2)], ids=str)
def test_a_patch_of_the_scores_of_the_last_query(queries):
    """The index -1 selects the last query of either text."""
    lm = language("gpt2")
    source, ids = lm.trace(text(lm, seed=2)), text(lm)
    t = lm.trace(ids, edit=[patch("blocks.1.attn.probs", source, head=(3, 1), query=queries)])
    for head in range(4):
        for query in range(len(ids)):
            patched = head in (1, 3) and (query in queries or (query == len(ids) - 1 and -1 in queries))
            expected = source if patched else lm.trace(ids)
            near(
                t.rows("blocks.1.attn.probs", head, query).tensor,
                expected.rows("blocks.1.attn.probs", head, query).tensor, f"{head} {query}",
            )  # fmt: skip


def test_an_index_may_be_named_once():
    for given in ({"position": (3, 3)}, {"head": [1, 0, 1]}, {"dim": np.array([4, 4])}, {"position": (-1, -1)}):
        ((name, indices),) = given.items()
        with pytest.raises(RequestError, match=f"{name} names {list(indices)[-1]} twice"):
            ablate("blocks.1.attn.z", **given)
    lm = language("gpt2")
    last = len(text(lm)) - 1
    both = {"position": (-1, last)}
    with pytest.raises(RequestError, match=f"position {last} is also one of those that -1 stands for"):
        lm.trace(text(lm), edit=[replace("embed.out", rows(2, 48), **both)])
    near(  # without a row for each, the selection is a set
        lm.trace(text(lm), edit=[ablate("embed.out", **both)])["final.logits"].tensor,
        lm.trace(text(lm), edit=[ablate("embed.out", position=-1)])["final.logits"].tensor, "a set",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["encoder-decoders", "encoders"])
def test_rows_of_a_source(kind):
    """Positions of an encoder: `translate`, `embed` and traces give each its row."""
    model, *_ = subject(kind, {"encoder-decoders": "pair", "encoders": "bert"}[kind])
    prefix = "encoder." if kind == "encoder-decoders" else ""
    name, vectors = f"{prefix}blocks.1.resid_pre", rows(2, 48)[:, : model.config.d_model]
    together = [replace(name, vectors, position=(2, 0))]
    apart = [replace(name, vectors[0], position=2), replace(name, vectors[1], position=0)]
    if kind == "encoders":
        found, want = (model.embed(["the cat sat", "a cat"][:1], edit=edit) for edit in (together, apart))
        assert torch.equal(found, want)
        assert not torch.allclose(found, model.embed(["the cat sat"]), atol=1e-3)
        traced = model.trace("the cat sat", edit=together)
        assert torch.equal(traced.at(name, [2, 0]).tensor, vectors)
    else:
        found, want = (model.translate(SOURCE, edit=edit, max_tokens=8)[0] for edit in (together, apart))
        assert found.targets == want.targets
        traced = model.trace(SOURCE, "the cat", edit=together)
        assert torch.equal(traced.source.at(name.removeprefix(prefix), [2, 0]).tensor, vectors)


# ---- numbers of NumPy and torch


INDICES = {
    "int": (3, [3]), "negative": (-2, [9]), "NumPy": (np.int64(3), [3]), "small": (np.uint8(3), [3]),
    "torch": (torch.tensor(3), [3]), "array": (np.array([5, 1]), [5, 1]), "tensor": (torch.tensor([5, -1]), [5, 10]),
    "list": ([np.int32(4), 2], [4, 2]), "range": (range(2, 8, 3), [2, 5]), "slice": (slice(1, 4), [1, 2, 3]),
    "open": (slice(-2, None), [9, 10]), "twice": ([3, 3], [3, 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", INDICES)
def test_a_trace_takes_every_kind_of_index(name):
    given, want = INDICES[name]
    t = language("gpt2").trace(text(language("gpt2")))
    one = name in ("int", "negative", "NumPy", "small", "torch")
    for point in ("blocks.1.attn.z", "final.logits", "blocks.1.resid_pre"):
        exact = t[point].tensor[want[0] if one else want]
        near(t.at(point, given).tensor, exact, point)
        assert t.at(point, given).axes == (t[point].axes[1:] if one else t[point].axes)
    probs = t["blocks.1.attn.probs"].tensor
    near(t.rows("blocks.1.attn.probs", query=given).tensor, probs[:, want[0] if one else want], "rows")
    assert torch.equal(t.visible("blocks.1.attn", given), t.visible("blocks.1.attn")[want[0] if one else want])


def test_wrong_indices_raise_request_error():
    t = language("gpt2").trace(text(language("gpt2")))
    for given in (11, -12, True, 1.0, "3", [0, 11], [[1]], np.array([True]), torch.tensor([1.5]), [None]):
        with pytest.raises(RequestError, match="position must be a whole number from 0 to 10"):
            t.at("blocks.1.attn.z", given)


def test_views_and_edits_take_numbers_of_numpy_and_torch():
    lm = language("gpt2")
    t = lm.trace(text(lm))
    for number in (np.int64, np.uint8, torch.tensor):
        n = number(1)
        assert ablate("blocks.1.attn.z", head=n, position=n, dim=n) == ablate(
            "blocks.1.attn.z", head=1, position=1, dim=1
        )
        assert knockout("blocks.1.attn.scores", query=number(3), key=n) == knockout(
            "blocks.1.attn.scores", query=3, key=1
        )
        assert type(t.cell(layer=n, head=n, query=n, key=n).layer) is int
        assert t.block(layer=n, position=n, top=n).position == 1
        assert t.sampling(position=n, top=n, top_k=number(5)).position == 1
        assert t.attribution(target=n, rival=number(2)).target[0] == 1
        assert t.lens(top=n, position=np.array([1, 2])).positions == (1, 2)
        assert focus(t, layer=n, head=n, query=number(4)).layer == 1
        assert lm.sweep(t, position=number(4), target=n, rival=number(2)).position == 4
        assert lm.generate(text(lm), max_tokens=n, seed=number(7)).seed == 7
        assert len(lm.score(text(lm), top=n).tokens[1].top) == 1
    for number in (np.float32, np.float64, torch.tensor):
        assert scale("embed.out", number(2.0)) == scale("embed.out", 2.0)
        assert add("embed.out", number(2.0), scale=number(0.5)) == add("embed.out", 2.0, scale=0.5)
        assert replace("embed.out", number(2.0)).value == 2.0
    assert ablate("embed.out", position=np.arange(3)) == ablate("embed.out", position=(0, 1, 2))
    assert ablate("embed.out", position=range(3)).json["position"] == [0, 1, 2]
    with pytest.raises(RequestError, match=r"head must be a whole number or a list of them, got 1\.5"):
        ablate("blocks.1.attn.z", head=np.float32(1.5))
    with pytest.raises(RequestError, match="head must be a whole number or a list of them"):
        ablate("blocks.1.attn.z", head=np.bool_(True))


def test_one_edit_needs_no_list():
    lm = language("gpt2")
    edit = ablate("blocks.1.attn.z", head=1)
    assert torch.equal(
        lm.trace(text(lm), edit=edit)["final.logits"].tensor, lm.trace(text(lm), edit=[edit])["final.logits"].tensor
    )
    assert lm.score(text(lm), edit=edit) == lm.score(text(lm), edit=[edit])
    assert lm.generate(text(lm), edit=edit, **GREEDY) == lm.generate(text(lm), edit=(edit,), **GREEDY)
    for wrong in (5, "ablate", {"op": "ablate"}, [{"op": "ablate"}], [None]):
        with pytest.raises(RequestError, match=r"an edit must be made by ablate, scale, \.\.\. or from_json"):
            lm.trace(text(lm), edit=wrong)
    assert isinstance(edit, Edit)


def test_a_point_is_in_a_trace():
    t = language("gpt2").trace(text(language("gpt2")))
    assert "blocks.1.attn.z" in t
    assert all(name in t for name in t.names())
    assert "blocks.9.attn.z" not in t
    assert 3 not in t

"""Sweeps and saved traces of encoders, encoder-decoders and recurrent models."""

import json
import shutil

import pytest
import torch
from test_seq2seq_edits import OTHER, edits_of, embedder
from test_seq2seq_trace import RECURRENT_ATTENTION, SOURCE, TARGET, TOKENIZER, TRANSLATORS, translator

from glassformer.errors import CheckpointError, RequestError
from glassformer.inspect.capture.points import points
from glassformer.inspect.edits.edit import ablate, add, patch, scale
from glassformer.inspect.record.store import tensor_file
from glassformer.models.embedder import Embedder
from glassformer.models.translator import Translator

SEQ2SEQ = ("rms", "t5")
HOW = [
    {"over": over, "attention": attention, "op": op}
    for attention in ("attn", "cross", "encoder")
    for over, op in (("heads", "ablate"), ("layers", "scale"), ("positions", "patch"), ("cells", "ablate"))
] + [{"over": "cells", "attention": attention, "op": "knockout"} for attention in ("attn", "cross", "encoder")]


def op_options(op, other):
    return {"scale": {"factor": -0.5}, "patch": {"source": other}}.get(op, {})


def count(t, over, attention, op, where):
    """Return the number of rows of a sweep of an encoder-decoder."""
    stack = t.config.encoder if attention == "encoder" else t.config
    own = attention == "attn"
    tokens = (where if op == "knockout" else where + 1) if own else len(t.source)
    heads = sum((one.cross if attention == "cross" else one.attention).n_heads for one in stack.layers)
    ends = 1 if attention == "cross" else 2
    return {"heads": heads, "layers": ends * stack.n_layers, "positions": tokens, "cells": tokens * stack.n_layers}[
        over
    ]


@pytest.mark.parametrize("name", SEQ2SEQ)
@pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(how.values()))
def test_a_sweep_row_equals_a_trace_with_that_edit(name, how):
    one = translator(name)
    other = one.trace(OTHER, TOKENIZER.encode(TARGET)[::-1])
    base = [scale("encoder.blocks.0.mlp.out", 0.7), scale("blocks.0.attn.out", 0.5)] if how["op"] == "scale" else []
    t = one.trace(SOURCE, TARGET, edit=base)
    where = len(t) - 2
    sweep = one.sweep(t, target=3, rival=7, position=-2, **how, **op_options(how["op"], other))
    rows, own = list(sweep), t["final.logits"].tensor[-2]
    assert len(rows) == len(sweep) == count(t, **how, where=where)
    assert len({(row.layer, row.head, row.position, row.edit.point) for row in rows}) == len(rows)
    assert sweep.base == pytest.approx((own[3] - own[7]).item(), abs=1e-4)
    for row in rows[:: max(1, len(rows) // 4)]:
        logits = one.trace(SOURCE, TARGET, edit=[*base, row.edit])["final.logits"].tensor[-2]
        assert row.value == pytest.approx((logits[3] - logits[7]).item(), abs=1e-4 * own.abs().max().item()), row
        assert row.change == row.value - sweep.base
    assert max(abs(row.change) for row in rows) > 1e-3


@pytest.mark.parametrize("name", RECURRENT_ATTENTION)
def test_sweep_over_the_source_of_a_recurrent_model(name):
    one = RECURRENT_ATTENTION[name]
    t, other = one.trace(SOURCE, TARGET), one.trace(OTHER, TARGET)
    for op in ("knockout", "ablate", "scale", "patch"):
        rows = list(one.sweep(t, over="positions", op=op, position=2, **op_options(op, other)))
        assert [row.position for row in rows] == list(range(len(t.source)))
        for row in rows:
            p, q = (
                x["final.logits"].tensor[2].double().log_softmax(-1)
                for x in (t, one.trace(SOURCE, TARGET, edit=[row.edit]))
            )
            assert row.value == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-6), row
        assert max(row.value for row in rows) > 1e-6
    for how, message in (
        ({"over": "heads"}, "a recurrent model needs over='positions', got 'heads'"),
        ({"over": "positions", "attention": "cross"}, "has one kind of attention"),
        ({"over": "cells", "op": "knockout"}, "needs over='positions' for this model, got 'cells'"),
    ):
        with pytest.raises(RequestError, match=message):
            one.sweep(t, **how)
    with pytest.raises(RequestError, match=r"has no point 'rnn.scores'"):
        TRANSLATORS["none"].sweep(SOURCE, over="positions", op="knockout")
    assert len(list(TRANSLATORS["none"].sweep(SOURCE, over="positions"))) == len(t.source)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("over", ["heads", "layers", "positions", "cells"])
def test_sweep_of_an_encoder_measures_its_embedding_or_its_logits(family, over):
    one, text = embedder(family), "the cat sat on a mat"
    t = one.trace(text)
    own = one.embed(text)[0].double()
    op = "knockout" if over == "cells" else "ablate"
    rows = list(one.sweep(text, over=over, op=op))
    n, layers = len(t), 3
    assert len(rows) == {"heads": 4 * layers, "layers": 2 * layers, "positions": n, "cells": layers * n}[over]
    for row in rows[:: max(1, len(rows) // 5)]:
        edited = one.embed(text, edit=[row.edit])[0].double()
        assert row.value == pytest.approx(1 - torch.cosine_similarity(own, edited, 0).item(), abs=1e-6), row
    assert max(row.value for row in rows) > 1e-4
    guesses = one.sweep(t, over=over, op=op, position=2, target=5)
    logits = t["final.logits"].tensor[2].clone()
    assert guesses.base == pytest.approx((logits[5] - logits[guesses.rival]).item(), abs=1e-4)
    for row in list(guesses)[:: max(1, len(rows) // 5)]:
        logits = one.trace(text, edit=[row.edit])["final.logits"].tensor[2]
        assert row.value == pytest.approx((logits[5] - logits[guesses.rival]).item(), abs=1e-4)


def test_sweep_errors():
    pair, reader = translator("rms"), embedder("bert")
    headless = Embedder(embedder("bert").model, reader.tokenizer)
    headless.model.config = headless.model.config.__class__(**(vars(headless.model.config) | {"head": None}))
    for one, how, message in (
        (pair, {"op": "knockout"}, "needs over='cells' for this model, got 'heads'"),
        (pair, {"over": "cells", "op": "knockout", "point": "x"}, "point has no effect with op 'knockout'"),
        (reader, {"attention": "cross"}, "has no source"), (reader, {"attention": "encoder"}, "needs an encoder"),
        (headless, {"position": 1}, "no head that predicts tokens"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            one.sweep("the cat sat", **how)
    with pytest.raises(RequestError, match="sweep the complete trace, with attention='encoder'"):
        pair.sweep(pair.trace(SOURCE, TARGET).source)


# ---- saved traces


def copy_of(one):
    return Embedder(one.model, one.tokenizer) if isinstance(one, Embedder) else Translator(one.model, one.tokenizer)


def traces(one):
    """Return a trace without edits and one with edits."""
    if isinstance(one, Embedder):
        other = one.trace("the dog sat on a mat")
        edits = [patch("blocks.1.attn.z", other, head=1), add("final.norm", 0.3, position=1)]
        return [one.trace("the cat sat on a mat"), one.trace("the cat sat on a mat", edit=edits)]
    return [one.trace(SOURCE, TARGET, capture=["*.cross.q"] if one.kind == "encoder-decoder" else ()),
            one.trace(SOURCE, max_tokens=7, edit=edits_of(one))]  # fmt: skip


@pytest.mark.parametrize("name", ["t5", *RECURRENT_ATTENTION, "bert"])
def test_a_saved_trace_loads_bitwise_equal(name, tmp_path):
    one = embedder(name) if "bert" in name else translator(name)
    for t in traces(one):
        t.save(tmp_path)
        back = copy_of(one).load_trace(tmp_path)
        assert type(back) is type(t)
        names = ["ids", "n_prompt", "finish", "edits", "choices", "tokens", "budget"]
        for attribute in names + (["target", "target_tokens"] if hasattr(t, "target") else []):
            assert getattr(back, attribute) == getattr(t, attribute), attribute
        if t.source is not None:
            assert (back.source.ids, back.source.tokens) == (t.source.ids, t.source.tokens)
            assert torch.equal(back.alignment().probs, t.alignment().probs)
        for point in t.names():
            assert torch.equal(back[point].tensor, t[point].tensor), point
            assert back[point].error == t[point].error, point


def test_loading_a_damaged_trace_raises_checkpoint_error(tmp_path):
    one, rnn = translator("pre"), translator("dot")
    one.trace(SOURCE, TARGET, edit=[ablate("blocks.0.cross.z", head=1)]).save(tmp_path / "t")
    with pytest.raises(CheckpointError, match="of another model"):
        rnn.load_trace(tmp_path / "t")
    about = json.loads((tmp_path / "t" / "trace.json").read_text())
    from safetensors.torch import load_file, save_file

    numbers = load_file(tmp_path / "t" / about["tensors"])

    def rewrite(folder, about, numbers):
        """Write a description and tensors with the digest that they have."""
        about = about | {"tensors": tensor_file(about, numbers)}
        save_file(numbers, folder / about["tensors"])
        (folder / "trace.json").write_text(json.dumps(about))

    for change, message in (
        ({"kind": "recurrent"}, "no complete trace"), ({"source": None}, "source: input should be a valid list"),
        ({"target": 3}, "target: input should be a valid list"), ({"source": []}, "source must have 1 to 64 tokens"),
        ({"target": about["target"][1:]}, "target must have"), ({"source": [10**9]}, "source must be tokens from 0"),
        ({"edits": [{"op": "ablate", "point": "rnn.probs"}]}, "no point 'rnn.probs'"),
        ({"kind": "sonnet"}, "kind: input should be 'decoder'"),
        ({"source": about["source"][:-1]}, "no complete trace"),
    ):  # fmt: skip
        shutil.rmtree(tmp_path / "u", ignore_errors=True)
        shutil.copytree(tmp_path / "t", tmp_path / "u")
        rewrite(tmp_path / "u", about | change, numbers)
        with pytest.raises(CheckpointError, match=message):
            one.load_trace(tmp_path / "u")
    for lost in ("encoder.final.norm", "blocks.1.cross.v"):
        rewrite(tmp_path / "t", about, {name: t for name, t in numbers.items() if name != lost})
        with pytest.raises(CheckpointError, match=f"no complete trace: .*{lost}"):
            one.load_trace(tmp_path / "t")
    assert lost in points(one.config)

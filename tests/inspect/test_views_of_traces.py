"""Lens, attribution, sweeps, forks and saved traces: each equals an independent computation."""

import json
import shutil

import pytest
import torch
from test_trace import DECODERS, known, language, text
from tiny import tiny

from glassformer.errors import CheckpointError, RequestError
from glassformer.inspect.edits.edit import ablate, add, patch, replace, scale
from glassformer.inspect.record.store import signature
from glassformer.inspect.sweep import sweep as sweep_module
from glassformer.inspect.views.lens import lens_rows
from glassformer.models.language_model import LanguageModel

# ---- lens


@pytest.mark.parametrize("family", DECODERS)
def test_last_row_of_the_lens_equals_the_logits(family):
    lm = language(family)
    t = lm.trace(text(lm))
    lens, logprobs = t.lens(top=4), t["final.logits"].tensor.log_softmax(-1)
    best = logprobs.topk(4, -1)
    assert [row.name for row in lens.rows] == [f"blocks.{i}.resid_pre" for i in range(3)] + ["blocks.2.resid_post"]
    for at, likely in enumerate(lens.rows[-1].top):
        assert [(one.id, one.logprob) for one in likely] == list(
            zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True)
        )
    assert lens.receipt.error == 0
    one = t.lens(top=4, position=-2)
    assert one.positions == (9,)
    for row, full in zip(one.rows, lens.rows, strict=True):
        assert [a.id for a in row.top[0]] == [a.id for a in full.top[9]]
        assert [a.logprob for a in row.top[0]] == pytest.approx([a.logprob for a in full.top[9]], rel=1e-4, abs=1e-4)
    rows = list(lens_rows(t, top=4, position=(9, 2)))
    assert t.lens(top=4, position=(9, 2)).positions == (9, 2)
    for row, full in zip(rows, lens.rows, strict=True):
        assert [[a.id for a in top] for top in row.top] == [[a.id for a in full.top[i]] for i in (9, 2)]


def test_a_row_of_the_lens_equals_a_truncated_model():
    """The row of block 2's resid_pre equals the prediction of a model without block 2."""
    lm = language("gemma2")
    t = lm.trace(text(lm))
    cut = LanguageModel(tiny("gemma2"))
    del cut.model.blocks[2]
    want = cut.model(torch.tensor([text(lm)]), _step(text(lm)))[0].log_softmax(-1)
    for at, likely in enumerate(t.lens(top=3).rows[2].top):
        for one in likely:
            assert abs(one.logprob - want[at, one.id].item()) < 1e-4


def _step(ids):
    from glassformer.nn.step import Step

    return Step.of(torch.tensor([ids]))


# ---- attribution


@pytest.mark.parametrize("family", DECODERS)
def test_contributions_sum_to_the_logit_difference(family):
    lm = language(family)
    t = lm.trace(text(lm))
    for position, target, rival in ((-1, None, None), (4, 3, 7)):
        found = t.attribution(position=position, target=target, rival=rival)
        logits = t["final.logits"].tensor[position]
        one, other = found.target[0], found.rival[0]
        assert abs(found.capped - (logits[one] - logits[other]).item()) < 1e-6 * max(10, logits.abs().max().item())
        total = sum(map(sum, found.heads)) + sum(found.attention_bias) + sum(found.mlp)
        total += found.embedding + found.constant + found.edits
        assert abs(total - found.difference) < 1e-4 * max(1, logits.abs().max().item())
        assert abs(found.receipt.error - abs(total - found.difference)) < 1e-9
        assert found.edits == 0
        if lm.config.logit_softcap is None:
            assert found.difference == found.capped
        assert len(found.heads) == 3
        assert {len(row) for row in found.heads} == {4}


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "olmo2"])
def test_contribution_equals_numpy_with_frozen_norm(family):
    """With the statistic of the final norm frozen, a contribution is linear in its part."""
    lm = language(family)
    ids = text(lm)
    t, want = lm.trace(ids), known(lm, ids)
    found = t.attribution(target=3, rival=7)
    c, x = lm.config, want["blocks.2.resid_post"][-1]
    w = {n: p.detach().double().numpy() for n, p in lm.model.named_parameters()}
    table = w["embed.weight" if c.tied_head else "head.weight"]
    size = (((x - x.mean()) ** 2).mean() if c.final_norm.kind == "layer" else (x**2).mean()) + c.final_norm.eps
    gain = w["norm.weight"] + (c.final_norm.scale == "float32 1+")

    def share(part):
        part = part - part.mean() if c.final_norm.kind == "layer" else part
        return (table[3] - table[7]) @ (part * gain) / size**0.5

    for i in range(3):
        assert abs(found.mlp[i] - share(want[f"blocks.{i}.mlp.add"][-1])) < 1e-4
        heads = want[f"blocks.{i}.attn.heads"][-1]
        if "out" in c.layers[i].norm_at:
            out = want[f"blocks.{i}.attn.out"][-1]
            norm = f"blocks.{i}.attn_out_norm.weight"
            inner = ((out**2).mean() + c.layers[i].norm.eps) ** 0.5
            heads = heads * (w[norm] + (c.layers[i].norm.scale == "float32 1+")) / inner
        for h in range(4):
            assert abs(found.heads[i][h] - share(heads[h])) < 1e-4
    assert abs(found.embedding - share(want["embed.out"][-1])) < 1e-4


def test_edits_of_the_residual_stream_have_their_own_contribution():
    for family in ("qwen3", "gpt2", "gpt_neox"):
        lm = language(family)
        vector = torch.linspace(-2, 2, 48)
        for edits, shown in (
            ([ablate("blocks.1.attn.z", head=2), scale("blocks.0.mlp.act", 2.0)], False),
            ([add("blocks.1.resid_post", vector)], True), ([add("blocks.2.resid_pre", vector)], True),
            ([scale("blocks.1.attn.out", 0.0, position=10)], True), ([add("embed.out", vector)], False),
        ):  # fmt: skip
            found = lm.trace(text(lm), edit=edits).attribution(target=3, rival=7)
            assert found.receipt.error < 1e-4
            assert (abs(found.edits) > 1e-3) == shown
        with pytest.raises(RequestError, match=r"final.logits is edited"):
            lm.trace(text(lm), edit=[scale("final.logits", 2.0)]).attribution()


def test_attribution_errors():
    lm = LanguageModel(tiny("llama", **{f"layers.{i}.norm_at": ("post",) for i in range(3)}))
    with pytest.raises(RequestError, match=r"block 0 normalizes the residual stream itself \(norm_at \['post'\]\)"):
        lm.trace(text(lm)).attribution()
    t = language("gpt2").trace(text(language("gpt2")))
    for how, message in (
        ({"target": 97}, "target must be a token's text, or its id from 0 to 96, got 97"),
        ({"target": 5, "rival": 5}, "target and rival are the same token, 5"),
        ({"target": "cat"}, "no tokenizer"), ({"position": 11}, "position must be a whole number from 0 to 10"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            t.attribution(**how)


# ---- sweeps


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "gpt_oss", "phi"])
@pytest.mark.parametrize("over", ["heads", "layers", "positions", "cells"])
def test_a_sweep_row_equals_a_trace_with_that_edit(family, over, monkeypatch):
    """Edits in one batch, from the lowest edited block on, give the results of separate forward passes."""
    monkeypatch.setattr(sweep_module, "MAX_BATCH", 5)
    lm = language(family)
    base = [scale(f"blocks.{i}.mlp.out", 0.5) for i in (0, 1)] + [add("blocks.2.resid_pre", 0.1, position=3)]
    source = lm.trace(text(lm, 9, seed=2))
    patching = {"op": "patch", "source": source, "align": "start"}
    for how in ({"op": "ablate"}, {"op": "scale", "factor": -0.5}, patching):
        t = lm.trace(text(lm), edit=base if how["op"] == "scale" else [])
        sweep = lm.sweep(t, over=over, target=3, rival=7, position=-2, **how)
        rows = list(sweep)
        n = {"heads": 12, "layers": 6, "positions": 10, "cells": 30}[over]
        n = n * 9 // 10 if how["op"] == "patch" and over in ("positions", "cells") else n
        assert len(rows) == len(sweep) == n
        assert [(row.done, row.total) for row in rows] == [(i + 1, n) for i in range(n)]
        assert len({(row.layer, row.head, row.position, row.edit.point) for row in rows}) == n
        own = t["final.logits"].tensor[-2]
        assert abs(sweep.base - (own[3] - own[7]).item()) < 1e-4
        size = own.abs().max().item()
        for row in rows[:: max(1, n // 6)]:
            logits = lm.trace(text(lm), edit=[*t.edits, row.edit])["final.logits"].tensor[-2]
            assert abs(row.value - (logits[3] - logits[7]).item()) < 1e-4 * size, row
            assert row.change == row.value - sweep.base
        assert max(abs(row.change) for row in rows) > 1e-2


def test_sweep_includes_the_edits_of_its_trace():
    """Ablating a head that the trace already ablates changes nothing, in block 0 too."""
    lm = language("qwen3")
    for layer in range(lm.config.n_layers):
        base = [ablate(f"blocks.{layer}.attn.z", head=2), scale(f"blocks.{layer}.mlp.out", 0.5)]
        t = lm.trace(text(lm), edit=base)
        for row in lm.sweep(t):
            logits = [one["final.logits"].tensor[-1].double().log_softmax(-1)
                      for one in (t, lm.trace(text(lm), edit=[*base, row.edit]))]  # fmt: skip
            want = torch.nn.functional.kl_div(logits[1], logits[0], reduction="sum", log_target=True).item()
            assert abs(row.value - want) < 1e-5
            assert ((row.layer, row.head) == (layer, 2)) == (row.value < 1e-9)


def test_without_a_target_a_sweep_measures_kl():
    lm = language("qwen3")
    t = lm.trace(text(lm))
    for row in lm.sweep(text(lm)):
        p, q = (
            one["final.logits"].tensor[-1].double().log_softmax(-1) for one in (t, lm.trace(text(lm), edit=[row.edit]))
        )
        want = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True).item()
        assert abs(row.value - want) < 1e-5
        assert row.change == row.value
    assert [row.value for row in lm.sweep(t, op="scale", factor=1.0)] == pytest.approx([0] * 12, abs=1e-9)
    chosen = lm.sweep(t, target=5)
    logits = t["final.logits"].tensor[-1].clone()
    logits[5] = -1e9
    assert chosen.rival == logits.argmax().item()


def test_sweep_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(sweep_module, "MAX_TOKENS", 11 * 3)
    lm, seen = language("gpt2"), []
    handle = lm.model.blocks[2].register_forward_pre_hook(lambda _m, a: seen.append(tuple(a[0].shape[:2])))
    try:
        rows = iter(lm.sweep(text(lm)))
        seen.clear()
        next(rows)
        assert seen == [(1, 11)] * 2, "the first row needs a batch of one"
        list(rows)
    finally:
        handle.remove()
    assert max(seen) == (3, 11)
    assert [row.layer for row in lm.sweep(text(lm))] == [2] * 4 + [1] * 4 + [0] * 4, "the last blocks first"


@pytest.mark.parametrize("over", ["heads", "layers", "positions", "cells"])
def test_the_matrix_of_a_sweep_is_in_the_order_of_the_model(over):
    """Its rows are the blocks from the first to the last, whatever the order of computation."""
    lm = language("qwen3")
    t = lm.trace(text(lm))
    for field in ("value", "change"):
        sweep = lm.sweep(t, over=over, target=3, rival=7)
        found = sweep.matrix(field)
        assert found.shape == {"heads": (3, 4), "layers": (3, 2), "positions": (11,), "cells": (3, 11)}[over]
        for row in sweep:
            column = {"heads": row.head, "layers": int(row.edit.point.endswith("mlp.add"))}.get(over, row.position)
            at = (column,) if over == "positions" else (row.layer, column)
            assert found[at].item() == pytest.approx(getattr(row, field), abs=1e-5)
    with pytest.raises(RequestError, match="field must be 'value' or 'change', got 'kl'"):
        sweep.matrix("kl")
    hidden = lm.sweep(t, over="cells", op="knockout").matrix()
    assert hidden.shape == (3, 10)
    assert torch.isfinite(hidden).all()


@pytest.mark.parametrize("over", ["heads", "layers", "positions", "cells"])
@pytest.mark.parametrize("n", [9, 13])
def test_a_patch_from_a_text_of_another_length_names_its_alignment(over, n):
    """Tokens are paired from the start, from the end, or not at all."""
    lm = language("qwen3")
    t, source = lm.trace(text(lm)), lm.trace(text(lm, n, seed=2))
    with pytest.raises(RequestError, match=rf"the source has {n} tokens at .*, and the text 11: pass a source of the"):
        lm.sweep(t, over=over, op="patch", source=source)
    for align, shift in (("start", 0), ("end", n - 11)):
        sweep = lm.sweep(t, over=over, op="patch", source=source, align=align, target=3, rival=7)
        both = [p for p in range(11) if 0 <= p + shift < n]
        for row in list(sweep)[:: max(1, len(sweep) // 4)]:
            positions = both if row.position is None else [row.position]
            rows = source.at(row.edit.point, [p + shift for p in positions]).tensor
            if row.head is not None:
                rows = rows[:, row.head]
            edit = replace(row.edit.point, rows, position=positions, head=row.head)
            logits = lm.trace(text(lm), edit=edit)["final.logits"].tensor[-1]
            assert row.value == pytest.approx((logits[3] - logits[7]).item(), abs=1e-3), row
        if over in ("positions", "cells"):
            assert {row.position for row in sweep} == set(both)
    for wrong in ("middle", 1):
        with pytest.raises(RequestError, match="align must be 'start' or 'end'"):
            lm.sweep(t, op="patch", source=source, align=wrong)
    with pytest.raises(RequestError, match="align must be 'start' or 'end', with op 'patch' only"):
        lm.sweep(t, align="start")


def test_sweep_errors():
    lm = language("gpt2")
    for how, message in (
        ({"over": "words"}, "over must be one of heads, layers, positions, cells"),
        ({"op": "mute"}, "op must be one of ablate, scale, patch"), ({"op": "patch"}, "op 'patch' needs source"),
        ({"op": "scale"}, "op 'scale' needs factor"), ({"factor": 2.0}, "factor has no effect with op 'ablate'"),
        ({"over": "heads", "point": "mlp.out"}, "has no heads"), ({"over": "layers", "point": "mlp.gate"}, "no point"),
        ({"over": "positions", "point": "mlp.out"}, "point has no effect with over 'positions'"),
        ({"rival": 3, "target": 3}, "same token"), ({"position": 50}, "position must be"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            lm.sweep(text(lm), **how)


# ---- forks


def test_fork_finds_the_first_difference_and_the_kl():
    lm = language("qwen3")
    edit = [scale("blocks.1.attn.z", -1.0)]
    t = lm.trace(text(lm), max_tokens=8, temperature=0)
    other = lm.trace(text(lm), max_tokens=8, temperature=0, edit=edit)
    assert t.ids != other.ids
    fork = t.fork(other)
    first = next(i for i, (a, b) in enumerate(zip(t.ids, other.ids, strict=True)) if a != b)
    assert fork.diverges_at == first >= 11
    assert len(fork.steps) == 19
    p, q = (one["final.logits"].tensor.double().log_softmax(-1) for one in (t, other))
    want = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    for step in fork.steps[:first]:
        assert abs(step.kl - want[step.position].item()) < 1e-6
        assert step.token == step.other
    assert all(step.kl is None for step in fork.steps[first:])
    same = t.fork(lm.trace(t.ids[:15]))
    assert (same.diverges_at, same.ends_at) == (None, 15)
    equal = t.fork(t)
    assert (equal.diverges_at, equal.ends_at) == (None, None)
    assert fork.ends_at is None
    assert [step.other for step in same.steps[15:]] == [None] * 4
    assert max(step.kl for step in same.steps[:15]) < 1e-8
    with pytest.raises(RequestError, match="next-token distributions can be compared over the same vocabulary only"):
        t.fork(LanguageModel(tiny("gpt2", vocab_size=50)).trace([1, 2]))


# ---- saved traces


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "phi3"])
def test_a_saved_trace_loads_bitwise_equal(family, tmp_path):
    lm = language(family)
    source = lm.trace(text(lm, seed=2))
    edits = [
        add("blocks.1.resid_post", torch.linspace(-1, 1, 48), position=-1),
        patch("blocks.0.attn.z", source, head=1),
    ]
    for t in (
        lm.trace(text(lm), capture=["blocks.1.attn.*"]),
        lm.trace(text(lm), edit=edits, max_tokens=6, temperature=1.0, seed=9),
    ):
        t.save(tmp_path)
        back = LanguageModel(lm.model).load_trace(tmp_path)
        for attribute in (
            "ids",
            "n_prompt",
            "finish",
            "seed",
            "reprefills",
            "edits",
            "budget",
            "choices",
            "tokens",
        ):
            assert getattr(back, attribute) == getattr(t, attribute), attribute
        for name in t.names():
            assert torch.equal(back[name].tensor, t[name].tensor), name
            assert back[name].error == t[name].error
        named = json.loads((tmp_path / "trace.json").read_text())["tensors"]
        assert {path.name for path in tmp_path.iterdir()} == {named, "trace.json"}, "the older tensors are deleted"


def test_loading_a_trace_of_another_model_raises_checkpoint_error(tmp_path):
    lm = language("gpt2")
    lm.trace(text(lm)).save(tmp_path / "t")
    for other in (LanguageModel(tiny("gpt2", seed=1)), language("qwen3")):
        with pytest.raises(CheckpointError, match="of another model, or of other weights"):
            other.load_trace(tmp_path / "t")
    model = tiny("gpt2")
    assert signature(model) == signature(lm.model)
    with torch.no_grad():
        model.blocks[2].mlp.down.weight[7, 11] += 1e-6
    assert signature(model) != signature(lm.model), "one weight differs"
    half = tiny("gpt2").to(torch.bfloat16)
    assert signature(half) != signature(lm.model)


def test_loading_a_damaged_trace_raises_checkpoint_error(tmp_path):
    lm = language("gpt2")
    lm.trace(text(lm)).save(tmp_path / "t")
    name = json.loads((tmp_path / "t" / "trace.json").read_text())["tensors"]
    for damage, message in (
        (lambda f: (f / name).write_bytes((f / name).read_bytes()[:100]), "damaged|no complete trace"),
        (lambda f: (f / name).unlink(), "no complete trace"),
        (lambda f: (f / "trace.json").write_text("{"), "trace.json is not valid JSON"),
        (lambda f: (f / "trace.json").write_text("{}"), "has format None, and this version reads 2"),
        (lambda f: (f / "trace.json").unlink(), "could not be read: No such file"),
        (lambda f: (f / "trace.json").write_text('{"format": 9}'), "format 9, and this version reads 2"),
    ):
        shutil.rmtree(tmp_path / "u", ignore_errors=True)
        shutil.copytree(tmp_path / "t", tmp_path / "u")
        damage(tmp_path / "u")
        with pytest.raises(CheckpointError, match=message):
            lm.load_trace(tmp_path / "u")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="cannot be created"):
        lm.trace(text(lm)).save(file)

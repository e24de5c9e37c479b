"""Every way to see logits applies edits of the last norm and of the logits, and every receipt can fail."""

from dataclasses import replace as with_fields

import numpy as np
import pytest
import torch
from inspect_subjects import OTHER, TEXT, subject

from glassformer.inspect.edits.edit import add, replace, scale
from glassformer.models.translator import Translator

KINDS = (("decoders", "qwen3"), ("decoders", "gemma2"), ("encoder-decoders", "pair"), ("encoder-decoders", "t5"))
EDITS = {
    "one logit": [replace("final.logits", 60.0, dim=7)],
    "one logit of one token": [replace("final.logits", 60.0, dim=7, position=-1)],
    "all logits": [scale("final.logits", -1.0)],
    "final norm": [add("final.norm", 0.7)],
}


def traced(kind, family, text, **options):
    model, *_ = subject(kind, family)
    source = ("the cat sat",) if isinstance(model, Translator) else ()
    return model, model.trace(*source, text, **options)


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_every_view_of_logits_applies_edits(kind, family, edits):
    model, t = traced(kind, family, TEXT, edit=edits)
    plain = traced(kind, family, TEXT)[1]
    want = t["final.logits"].tensor.double().log_softmax(-1)  # [T, V]
    assert (want - plain["final.logits"].tensor.double().log_softmax(-1)).abs().max() > 1
    last = int(want[-1].argmax())

    summary = t.summary(top=3)
    assert summary.next[0].id == last
    for one in summary.tokens[1:]:
        assert one.prob == pytest.approx(want[one.position - 1, one.id].exp().item(), rel=1e-3, abs=1e-7)

    for found, exact in zip(t.lens(top=3).rows[-1].top, want, strict=True):
        assert [one.logprob for one in found] == pytest.approx([exact[one.id].item() for one in found], abs=1e-3)

    stages = t.sampling(top=5)
    assert stages.tokens[0].id == last
    assert stages.stages[0].probs == pytest.approx([want[-1, one.id].exp().item() for one in stages.tokens], abs=1e-5)

    assert max(step.kl for step in t.fork(t).steps) == 0
    p = plain["final.logits"].tensor.double().log_softmax(-1)
    kl = (p.exp() * (p - want)).sum(-1)
    assert [step.kl for step in plain.fork(t).steps] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-4)

    for base, other in ((t, edits), (plain, [])):
        found = model.sweep(base, over="heads", target=3, rival=9)
        logits = base["final.logits"].tensor[-1]
        assert found.base == pytest.approx((logits[3] - logits[9]).item(), abs=1e-3), other


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_score_and_generation_apply_the_same_edits(family, edits):
    model, t = traced("decoders", family, TEXT, edit=edits)
    want = t["final.logits"].tensor.double().log_softmax(-1)
    for one, exact in zip(model.score(TEXT, edit=edits, top=2).tokens[1:], want, strict=False):
        assert one.logprob == pytest.approx(exact[one.id].item(), abs=1e-3)
        assert one.top[0][0] == int(exact.argmax())
    found = model.generate(TEXT, max_tokens=1, temperature=0, logprobs=1, edit=edits).continuations[0].tokens[0]
    assert found.id == int(want[-1].argmax())
    assert found.logprob == pytest.approx(want[-1, found.id].item(), abs=1e-3)


RECEIPTS = {
    "summary": lambda t: t.summary(),
    "lens": lambda t: t.lens(),
    "sampling": lambda t: t.sampling(),
    "fork": lambda t: t.fork(t),
}


@pytest.mark.parametrize("view", RECEIPTS)
@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_receipts_of_logits_can_fail(kind, family, view):
    """They compare the numbers that a view shows with those of the forward pass."""
    t = traced(kind, family, OTHER, edit=EDITS["one logit"])[1]
    assert RECEIPTS[view](t).receipt.error < 1e-4
    t.captured = with_fields(t.captured, editor=None)  # as if the view ignored the edits
    assert RECEIPTS[view](t).receipt.error > 1
    t = traced(kind, family, OTHER)[1]
    last = f"blocks.{t.config.n_layers - 1}.resid_post"
    t.captured.tensors[last] = t.captured.tensors[last] + torch.from_numpy(np.linspace(-2, 2, t.config.d_model)).float()
    assert RECEIPTS[view](t).receipt.error > 0.1

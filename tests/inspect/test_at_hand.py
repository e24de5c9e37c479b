"""What stays at hand of a trace: never more than its limit, and never another answer for it."""

import random
from collections import Counter

import pytest
import torch
from inspect_subjects import subject
from tiny import tiny

from glassformer.inspect.edits.edit import ablate, add, knockout, scale
from glassformer.inspect.present.report_data import packed_response, trace_paths
from glassformer.inspect.present.router import LocalRouter
from glassformer.inspect.trace.lru import ByteLRU
from glassformer.inspect.views.focus import Focus
from glassformer.models.language_model import LanguageModel

IDS = [7, 3, 31, 4, 4, 60]
PLACE = Focus(1, 2, 5, 3, "")
MEASURED = ("times", "cache_speed")  # whose numbers are milliseconds
EDITS = {
    "none": (),
    "of values": (ablate("blocks.1.attn.z", head=1), add("blocks.1.attn.out", 1.0, position=4)),
    "of the product": (scale("blocks.1.attn.q_rot", 2.0, position=5), knockout("blocks.1.attn.scores", query=5, key=2)),
    "of what heads write": (ablate("blocks.1.attn.heads", head=1, position=5),),
}


def value(size):
    return {"a": (torch.zeros(size), None, None)}


def test_what_was_not_asked_for_the_longest_goes_first():
    hand, made = ByteLRU(limit=40), []

    def ask(key, size=4):
        return hand.get(key, lambda: made.append(key) or value(size))

    ask("a"), ask("b"), ask("a"), ask("c")  # of 16 bytes each
    assert (made, hand.bytes) == (["a", "b", "c"], 32)
    ask("a"), ask("b")
    assert made == ["a", "b", "c", "b"]
    ask("large", 100)
    assert hand.bytes == 400, "the last one stays, whatever its size"
    assert sum(tensor.nbytes for tensor in hand.tensors()) == hand.bytes


def answered(lm, edits, order, limit=None):
    """Some answers of all layers, heads and tokens of a report, asked for in this order."""
    t = lm.trace(IDS, edit=edits)
    if limit is not None:
        t._cache.limit = limit
    answers = LocalRouter(lm, "tiny")
    id = answers.add(t)
    paths = [path for path in trace_paths(answers, id, PLACE, "all") if not path.split("?")[0].endswith(MEASURED)]
    names = ("attn.q", "attn.q_rot", "attn.k", "attn.z", "attn.out", "attn.heads", "mlp.x", "mlp.out")
    paths += [f"/v1/traces/{id}/tensors/blocks.1.{name}?slice=5" for name in names]
    return {path: packed_response(answers, path) for path in order(paths[::16])}


@pytest.mark.parametrize(("family", "edits"), [*(("qwen3", one) for one in EDITS), ("deepseek_v2", "none")])
def test_an_answer_is_the_same_whatever_was_asked_before(family, edits):
    lm, edits = LanguageModel(tiny(family)), EDITS[edits]
    as_baked = answered(lm, edits, list)
    shuffled = answered(lm, edits, lambda paths: random.Random(1).sample(paths, len(paths)))
    nothing_held = answered(lm, edits, reversed, limit=0)
    assert len(as_baked) > 15
    assert as_baked == shuffled == nothing_held


def test_a_report_runs_each_block_once_at_each_token():
    """In the order of the report, whatever little is at hand but what one layer leaves."""
    lm, runs = LanguageModel(tiny("qwen3")), Counter()
    hooks = [
        block.register_forward_pre_hook(lambda _, given, i=i: runs.update([(i, given[0].shape[1])]))
        for i, block in enumerate(lm.model.blocks)
    ]
    t = lm.trace(IDS)
    answers = LocalRouter(lm, "tiny")
    id = answers.add(t)
    paths = [path for path in trace_paths(answers, id, PLACE, "all") if "/blocks." in path or "layer=" in path]
    runs.clear()
    for path in paths:
        packed_response(answers, path)
    for hook in hooks:
        hook.remove()
    assert {i: runs[i, 1] for i in range(3)} == {i: len(IDS) for i in range(3)}
    assert len(paths) > 40 * len(IDS)


def test_cross_attention_of_one_query_is_that_of_all():
    t = subject("encoder-decoders", "pair")[1]
    for end in ("scores", "probs"):
        name = f"blocks.1.cross.{end}"
        whole = t[name].tensor
        for query in range(len(t)):
            assert torch.allclose(t.rows(name, head=2, query=query).tensor, whole[2, query], atol=1e-5)
            assert torch.allclose(t.at(name, query).tensor, whole[:, query], atol=1e-5)

"""The LRU cache of recomputed values: its size is bounded, and it never changes a response."""

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
FOCUS = Focus(1, 2, 5, 3, "")
MEASURED = ("times", "cache_speed")  # views of measured milliseconds
EDITS = {
    "none": (),
    "values": (ablate("blocks.1.attn.z", head=1), add("blocks.1.attn.out", 1.0, position=4)),
    "queries and scores": (
        scale("blocks.1.attn.q_rot", 2.0, position=5),
        knockout("blocks.1.attn.scores", query=5, key=2),
    ),
    "head outputs": (ablate("blocks.1.attn.heads", head=1, position=5),),
}


def value(size):
    return {"a": (torch.zeros(size), None, None)}


def test_least_recently_used_entry_is_evicted():
    cache, computed = ByteLRU(limit=40), []

    def get(key, size=4):
        return cache.get(key, lambda: computed.append(key) or value(size))

    get("a"), get("b"), get("a"), get("c")  # 16 bytes each
    assert (computed, cache.bytes) == (["a", "b", "c"], 32)
    get("a"), get("b")
    assert computed == ["a", "b", "c", "b"]
    get("large", 100)
    assert cache.bytes == 400, "the last entry is stored whatever its size"
    assert sum(tensor.nbytes for tensor in cache.tensors()) == cache.bytes


def responses(lm, edits, order, limit=None):
    """Return some responses of a report of all layers, heads and tokens, requested in this order."""
    t = lm.trace(IDS, edit=edits)
    if limit is not None:
        t._cache.limit = limit
    router = LocalRouter(lm, "tiny")
    id = router.add(t)
    paths = [path for path in trace_paths(router, id, FOCUS, "all") if not path.split("?")[0].endswith(MEASURED)]
    names = ("attn.q", "attn.q_rot", "attn.k", "attn.z", "attn.out", "attn.heads", "mlp.x", "mlp.out")
    paths += [f"/v1/traces/{id}/tensors/blocks.1.{name}?slice=5" for name in names]
    return {path: packed_response(router, path) for path in order(paths[::16])}


@pytest.mark.parametrize(("family", "edits"), [*(("qwen3", name) for name in EDITS), ("deepseek_v2", "none")])
def test_responses_do_not_depend_on_request_order_or_cache_limit(family, edits):
    lm, edits = LanguageModel(tiny(family)), EDITS[edits]
    in_report_order = responses(lm, edits, list)
    shuffled = responses(lm, edits, lambda paths: random.Random(1).sample(paths, len(paths)))
    uncached = responses(lm, edits, reversed, limit=0)
    assert len(in_report_order) > 15
    assert in_report_order == shuffled == uncached


def test_report_runs_each_block_once_per_token():
    """The order of the report reuses the values of a layer, so each block runs once per token."""
    lm, runs = LanguageModel(tiny("qwen3")), Counter()
    hooks = [
        block.register_forward_pre_hook(lambda _, args, i=i: runs.update([(i, args[0].shape[1])]))
        for i, block in enumerate(lm.model.blocks)
    ]
    t = lm.trace(IDS)
    router = LocalRouter(lm, "tiny")
    id = router.add(t)
    paths = [path for path in trace_paths(router, id, FOCUS, "all") if "/blocks." in path or "layer=" in path]
    runs.clear()
    for path in paths:
        packed_response(router, path)
    for hook in hooks:
        hook.remove()
    assert {i: runs[i, 1] for i in range(3)} == {i: len(IDS) for i in range(3)}
    assert len(paths) > 40 * len(IDS)


def test_cross_attention_of_one_query_equals_that_of_all():
    t = subject("encoder-decoders", "pair")[1]
    for end in ("scores", "probs"):
        name = f"blocks.1.cross.{end}"
        full = t[name].tensor
        for query in range(len(t)):
            assert torch.allclose(t.rows(name, head=2, query=query).tensor, full[2, query], atol=1e-5)
            assert torch.allclose(t.at(name, query).tensor, full[:, query], atol=1e-5)

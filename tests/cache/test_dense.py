"""The dense cache equals recomputation: for every chunking, in uneven batches, after select and truncate."""

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    FAMILIES,
    assert_near,
    by_definition,
    encode_source,
    random_ids,
    run,
    run_cached,
    tiny,
    tiny_encoder_decoder,
)

from glassformer.cache import dense
from glassformer.cache.dense import DenseCache
from glassformer.errors import CapacityError
from glassformer.nn.protocols import Cache
from glassformer.nn.step import Step

MODELS = {family: tiny(family) for family in (*FAMILIES, "gemma2", "gpt_oss", "deepseek_v2")}
MODELS |= {
    f"window {w}": tiny("qwen3", **{f"layers.{i}.attention.window": v for i, v in enumerate((w, None, w + 2))})
    for w in (1, 2, 4, 30)
}
CHUNKS = ([14], [1] * 14, [4, 1, 3, 6], [9, 5], [13, 1], [1, 13], [3, 3, 3, 3, 2])


@pytest.fixture(autouse=True)
def fill_unwritten_storage(monkeypatch):
    """Fill storage with large numbers, so that reading an unwritten slot changes the result.

    It must not be uninitialized memory, which may hold NaN: a hidden value is multiplied by 0, and 0 * NaN is NaN.
    """
    new_zeros = torch.Tensor.new_zeros
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda *a, **k: new_zeros(*a, **k).fill_(1e4))
    monkeypatch.setattr(torch.Tensor, "new_empty", None)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_cached_equals_uncached(name, chunks):
    model = MODELS[name]
    ids = random_ids(model.config, 2, 14)
    full = run(model, ids)
    for capacity in (14, 40, 64):
        assert_near(run_cached(model, ids, chunks, DenseCache.of(model.config, 2, capacity)), full)
    assert_near(run_cached(model, ids, chunks, DenseCache.of(model.config, 2, 14), attend=by_definition), full)


def feed(model, cache, rows):
    """Run a forward pass over new tokens of each sequence as a padded batch; return the logits per sequence."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[3] * (width - len(row))] for row in rows])
    with torch.no_grad():
        logits = model(ids, Step(cache.extend([len(row) for row in rows]), cache=cache))
    return [part[: len(row)] for part, row in zip(logits, rows, strict=True)]


walks = st.integers(1, 3).flatmap(
    lambda batch: st.lists(
        st.lists(st.integers(0, 6), min_size=batch, max_size=batch).filter(any), min_size=1, max_size=6
    )
)


@pytest.mark.parametrize("name", ["qwen3", "window 1", "window 4", "gpt2", "gpt_oss"])
@given(counts=walks)
def test_uneven_batch_equals_single_sequences(name, counts):
    """A random walk: each forward pass adds a different number of tokens to each sequence, possibly none."""
    model = MODELS[name]
    batch = len(counts[0])
    totals = [sum(c[b] for c in counts) for b in range(batch)]
    rows = [random_ids(model.config, 1, n, seed=b)[0].tolist() for b, n in enumerate(totals)]
    cache, at, parts = DenseCache.of(model.config, batch, max(totals)), [0] * batch, [[] for _ in rows]
    for c in counts:
        for b, part in enumerate(feed(model, cache, [row[a : a + n] for row, a, n in zip(rows, at, c, strict=True)])):
            parts[b].append(part)
        at = [a + n for a, n in zip(at, c, strict=True)]
        assert cache.lengths == at
    for row, got in zip(rows, parts, strict=True):
        if row:
            assert_near(torch.cat(got), run(model, torch.tensor([row]))[0])


@pytest.mark.parametrize("name", ["qwen3", "window 4", "gpt2"])
def test_select_reorders_and_repeats(name):
    model = MODELS[name]
    prompts = [random_ids(model.config, 1, n, seed=n)[0].tolist() for n in (9, 3, 6)]
    new = [random_ids(model.config, 1, n, seed=20 + n)[0].tolist() for n in (4, 1, 5, 2)]
    cache, rows = DenseCache.of(model.config, 3, 40), [2, 0, 2, 1]
    feed(model, cache, prompts)
    cache.select(rows)
    assert cache.lengths == [6, 9, 6, 3]
    for part, r, more in zip(feed(model, cache, new), rows, new, strict=True):
        full = run(model, torch.tensor([prompts[r] + more]))[0]
        assert_near(part, full[len(prompts[r]) :])
    cache.select([1])
    (part,) = feed(model, cache, [[5, 6]])
    assert_near(part, run(model, torch.tensor([prompts[0] + new[1] + [5, 6]]))[0, -2:])


def test_repeated_prompt():
    model = MODELS["window 4"]
    ids = random_ids(model.config, 1, 11)
    cache = DenseCache.of(model.config, 1, 20)
    run_cached(model, ids, [11], cache)
    cache.select([0] * 5)
    more = random_ids(model.config, 5, 3, seed=4)
    assert_near(run_cached(model, more, [1, 2], cache), run(model, torch.cat([ids.expand(5, -1), more], 1))[:, 11:])


@pytest.mark.parametrize("name", ["qwen3", "window 4"])
def test_capacity_error_leaves_cache_unchanged(name):
    model = MODELS[name]
    ids = random_ids(model.config, 2, 10)
    cache = DenseCache.of(model.config, 2, 10)
    first = run_cached(model, ids[:, :8], [8], cache)
    with pytest.raises(CapacityError, match=r"sequence 0 would have 11 tokens, and the cache has room for 10"):
        cache.extend([3, 3])
    with pytest.raises(CapacityError, match="sequence 1 would have 12"):
        cache.extend([1, 4])
    assert cache.lengths == [8, 8]
    assert_near(torch.cat([first, run_cached(model, ids[:, 8:], [1, 1], cache)], 1), run(model, ids))
    with pytest.raises(CapacityError):
        cache.extend([0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_follow_the_tokens_not_the_capacity(dtype):
    model = tiny("qwen3").to(dtype)  # its second layer has a window of 5
    cache = DenseCache.of(model.config, 3, 64)
    assert cache.bytes == 0, "storage must be allocated on first use"
    n_kv_heads, head_dim, size = 2, 16, dtype.itemsize
    per_slot = 2 * 3 * n_kv_heads * head_dim * size
    ids, lengths = random_ids(model.config, 3, 64), []
    for begin in range(0, 64, 4):
        run_cached(model, ids[:, begin : begin + 4], [4], cache)
        lengths.append((begin + 4, cache.room))
        assert cache.bytes == per_slot * (cache.room + 5 + cache.room)
    assert lengths == [(n, 32 if n <= 32 else 64) for n in range(4, 65, 4)]
    with pytest.raises(CapacityError):
        cache.extend([1, 1, 1])


def test_storage_is_freed_without_garbage_collection():
    model = MODELS["window 4"]
    cache = DenseCache.of(model.config, 2, 40)
    run_cached(model, random_ids(model.config, 2, 5), [4, 1], cache)
    stored = [weakref.ref(tensor) for slot in cache.slots for tensor in slot.tensors()]
    gc.disable()
    try:
        del cache
        assert [ref() for ref in stored] == [None] * 6
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["qwen3", "window 4", "window 30", "gpt2", "deepseek_v2"])
def test_growth_equals_recomputation(name, monkeypatch):
    """Storage that doubles, of even and uneven sequences, keeps every key and value."""
    monkeypatch.setattr(dense, "MIN_ROOM", 1)
    model = MODELS[name]
    ids = random_ids(model.config, 2, 40)
    for chunks in ([1] * 40, [3, 1, 1, 9, 2, 20, 4]):
        cache = DenseCache.of(model.config, 2, 40)
        assert_near(run_cached(model, ids, chunks, cache), run(model, ids))
        assert cache.room == 40
    cache, rows = DenseCache.of(model.config, 3, 64), [ids[0, :3].tolist(), ids[1, :1].tolist(), ids[0, :2].tolist()]
    feed(model, cache, rows)
    cache.select([2, 0])
    rows = [rows[2], rows[0]]
    for n in ((1, 2), (5, 0), (0, 9), (11, 3)):
        more = [random_ids(model.config, 1, max(count, 1), seed=count)[0].tolist()[:count] for count in n]
        found = feed(model, cache, more)
        rows = [row + new for row, new in zip(rows, more, strict=True)]
        for row, new, part in zip(rows, more, found, strict=True):
            if new:
                assert_near(part, run(model, torch.tensor([row]))[0, -len(new) :])


def test_source_keys_are_computed_once():
    """The keys and values are contiguous per head, after `select` too."""
    cache, calls = DenseCache([None], 2, 4), []
    k, v = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 6)

    def make():
        calls.append(1)
        return k, v

    assert all(map(torch.equal, cache.layer(0).keep_source(make), (k, v)))
    cache.select([1, 1, 0])
    stored = cache.layer(0).keep_source(make)
    assert all(map(torch.equal, stored, (k[[1, 1, 0]], v[[1, 1, 0]])))
    assert all(t.transpose(1, 2).is_contiguous() for t in stored)
    assert len(calls) == 1


def test_caches_are_independent():
    model = MODELS["qwen3"]
    a, b = random_ids(model.config, 1, 9), random_ids(model.config, 1, 9, seed=5)
    one, other = (DenseCache.of(model.config, 1, 9) for _ in range(2))
    first = [run_cached(model, ids[:, :5], [5], cache) for ids, cache in ((a, one), (b, other))]
    second = [run_cached(model, ids[:, 5:], [4], cache) for ids, cache in ((a, one), (b, other))]
    for ids, *parts in zip((a, b), first, second, strict=True):
        assert_near(torch.cat(parts, 1), run(model, ids))


TRUNCATED = {name: MODELS[name] for name in ("llama", "gpt2", "window 30")} | {"latent": tiny("deepseek_v2")}


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncate_equals_recomputation(name):
    """After dropping tokens and adding others, the logits equal those of the new text without a cache."""
    model = TRUNCATED[name]
    first, rest = random_ids(model.config, 3, 12), random_ids(model.config, 3, 9, seed=3)
    cache, lengths = DenseCache.of(model.config, 3, 40), [5, 12, 1]
    run_cached(model, first, [9, 3], cache)
    cache.truncate(lengths)
    assert cache.lengths == lengths
    more = [row[:n].tolist() for row, n in zip(rest, (9, 2, 4), strict=True)]
    found = feed(model, cache, more)
    for row, length, new, part in zip(first, lengths, more, found, strict=True):
        text = torch.tensor([[*row[:length].tolist(), *new]])
        assert_near(part, run(model, text)[0, length:])
    cache.truncate([0, 0, 0])
    assert_near(run_cached(model, first, [12], cache), run(model, first))


def test_truncate_preserves_the_source():
    model = tiny_encoder_decoder("separate")
    sources, ids = random_ids(model.encoder.config, 2, 6), random_ids(model.config, 2, 8)
    source = encode_source(model, sources)
    cache = DenseCache.of(model.config, 2, 16, source=source)
    run_cached(model, ids, [8], cache)
    cache.truncate([3, 3])
    more = random_ids(model.config, 2, 4, seed=7)
    assert_near(
        run_cached(model, more, [1, 3], cache), run(model, torch.cat([ids[:, :3], more], 1), source=source)[:, 3:]
    )


def test_truncate_raises_for_overwritten_tokens():
    model = MODELS["window 4"]
    ids = random_ids(model.config, 2, 9)
    cache = DenseCache.of(model.config, 2, 20)
    first = run_cached(model, ids[:, :8], [8], cache)
    with pytest.raises(CapacityError, match="sequence 1 cannot be cut from 8 to 7 tokens: a layer with a window of 4"):
        cache.truncate([8, 7])
    for wrong in (-1, 9):
        with pytest.raises(ValueError, match=rf"lengths\[0\] must be from 0 to 8, .* got {wrong}"):
            cache.truncate([wrong, 8])
    assert cache.lengths == [8, 8]
    cache.truncate([8, 8])
    assert_near(torch.cat([first, run_cached(model, ids[:, 8:], [1], cache)], 1), run(model, ids))
    cache.truncate([0, 0])
    assert_near(run_cached(model, ids, [2, 7], cache), run(model, ids))


def test_truncate_raises_if_a_long_text_becomes_short():
    cache = DenseCache([None], 1, 20, long_text=10)
    cache.extend([12])
    with pytest.raises(CapacityError, match="sequence 0 cannot be cut to 9 tokens: below 10"):
        cache.truncate([9])
    cache.truncate([10])
    assert cache.lengths == [10]


def test_dense_cache_implements_protocol():
    assert isinstance(DenseCache([None], 1, 4), Cache)

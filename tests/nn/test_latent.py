"""Latent attention: absorbed equals expanded, the cheaper one is used, the cache is small, and edits take effect."""

import pytest
import torch
from tiny import assert_near, random_ids, relative_change, run, run_cached, tiny

from glassformer.cache.dense import DenseCache
from glassformer.config import change
from glassformer.errors import ConfigError
from glassformer.inspect.capture.recorder import RecorderTap
from glassformer.kernels.attention import attend_fused
from glassformer.kernels.linear import PrepackedLinear, can_prepack, prepack
from glassformer.nn import latent
from glassformer.nn.attend import attend_reference
from glassformer.nn.latent import absorbs
from glassformer.nn.step import Step

MODEL = tiny("deepseek_v2")
IDS = random_ids(MODEL.config, 2, 24)
ATTENTION = MODEL.config.layers[0].attention


def cached(chunks, **step):
    return run_cached(MODEL, IDS, chunks, DenseCache.of(MODEL.config, 2, 24), **step)


@pytest.mark.parametrize("attend", [attend_fused, lambda *args: attend_reference(*args)[0]], ids=["fast", "definition"])
@pytest.mark.parametrize("chunks", [[24], [1] * 24, [10, 1, 13], [23, 1]], ids=str)
def test_absorbed_equals_expanded(chunks, attend, monkeypatch):
    found = {}
    for absorb in (True, False):
        monkeypatch.setattr(latent, "absorbs", lambda *_, absorb=absorb: absorb)
        found[absorb] = cached(chunks, attend=attend)
    assert_near(found[True], found[False])
    assert not torch.equal(found[True], found[False]), "both results come from the same implementation"


def test_absorbed_equals_expanded_with_uneven_lengths(monkeypatch):
    """Forward passes with different numbers of new tokens per sequence, with padding."""
    found = {}
    for absorb in (True, False):
        monkeypatch.setattr(latent, "absorbs", lambda *_, absorb=absorb: absorb)
        cache, outs = DenseCache.of(MODEL.config, 2, 24), []
        with torch.no_grad():
            for counts in ([9, 4], [1, 1], [3, 0], [1, 5]):
                out = MODEL(IDS[:, : max(counts)], Step(cache.extend(counts), cache=cache))
                outs += [out[b, :c] for b, c in enumerate(counts)]
        found[absorb] = torch.cat(outs)
    assert_near(found[True], found[False])


def n_multiplications(config, n_new, n_seen, absorbed):
    """Return the number of multiplications per head of the absorbed or expanded form, matrix by matrix."""
    rank, rope_dim, v = config.latent.rank, config.rope.dim, config.latent.v_dim
    nope_dim = config.head_dim - rope_dim
    if absorbed:
        into, out = n_new * nope_dim * rank, n_new * rank * v
        return into + out + 2 * n_new * n_seen * (rope_dim + rank)
    return n_seen * rank * nope_dim + n_seen * rank * v + n_new * n_seen * (nope_dim + rope_dim) + n_new * n_seen * v


@pytest.mark.parametrize("sizes", [(512, 128, 64, 128), (20, 6, 8, 10), (4, 64, 8, 64)], ids=str)
def test_absorbs_if_it_needs_fewer_multiplications(sizes):
    rank, nope_dim, rope_dim, v = sizes
    config = change(ATTENTION, "latent.rank", rank)
    config = change(config, "head_dim", nope_dim + rope_dim)
    config = change(change(config, "rope.dim", rope_dim), "latent.v_dim", v)
    outcomes = set()
    for n_seen in (1, 2, 7, 100, 4096):
        for n_new in (1, 2, 7, 100, 512, 4096):
            if n_new <= n_seen:
                both = [n_multiplications(config, n_new, n_seen, absorb) for absorb in (True, False)]
                assert absorbs(config, n_new, n_seen) == (both[0] < both[1])
                outcomes.add(both[0] < both[1])
    assert absorbs(config, 1, 4096), "decoding"
    assert outcomes == {True, False} or rank == 4
    assert absorbs(config, 4096, 4096) == (rank == 4), "prefill"


def test_cache_stores_latent_and_one_key():
    """The cache stores rank + rope dim values per token and layer; without latents it would store 2 H Dh."""
    cache = DenseCache.of(MODEL.config, 2, 24)
    run_cached(MODEL, IDS, [20, 1, 3], cache)
    assert cache.bytes == 3 * 2 * 24 * (20 + 8) * 4
    for slot in cache.slots:
        slot_k, slot_v = slot.k, slot.v
        assert slot_k.shape == (2, 1, 24, 28)
        assert slot_v.numel() == 0


class AddTap:
    """A tap that records one tap point and adds `delta` to its value."""

    def __init__(self, name, delta=None):
        self.name, self.delta, self.seen = name, delta, []

    def wants(self, name):
        return name == self.name

    def __call__(self, name, value):
        self.seen.append(value)
        return value if self.delta is None else value + self.delta


POINTS = ["attn.q", "attn.latent", "attn.k", "attn.v", "attn.q_rot", "attn.k_rot", "attn.z", "attn.scores"]


@pytest.mark.parametrize("end", POINTS)
def test_tap_with_absorbed_attention(end, monkeypatch):
    """An edit of the last three tokens, after a cached prefix, equals the same edit in an uncached forward pass."""
    name, absorbed = f"blocks.1.{end}", []
    original = latent.LatentAttention.absorbed
    monkeypatch.setattr(
        latent.LatentAttention, "absorbed", lambda self, *args: absorbed.append(1) or original(self, *args)
    )
    full, observer = AddTap(name), AddTap(name)
    plain = run(MODEL, IDS, tap=full)
    assert not absorbed
    cache = DenseCache.of(MODEL.config, 2, 24)
    with torch.no_grad():
        MODEL(IDS[:, :21], Step(cache.extend([21, 21]), cache=cache))
        last = MODEL(IDS[:, 21:], Step(cache.extend([3, 3]), cache=cache, tap=observer))
    assert len(absorbed) == 3, "a tap that only observes must not change the implementation"
    own = (slice(None), slice(None), slice(21, None)) if end == "attn.scores" else (slice(None), slice(21, None))
    assert_near(observer.seen[0].nan_to_num(neginf=0), full.seen[0][own].nan_to_num(neginf=0))
    assert_near(last, plain[:, 21:])

    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(observer.seen[0].shape, generator=generator) * 0.5
    wide = torch.zeros_like(full.seen[0])
    wide[own] = delta
    want = run(MODEL, IDS, tap=AddTap(name, wide))[:, 21:]
    cache = DenseCache.of(MODEL.config, 2, 24)
    with torch.no_grad():
        MODEL(IDS[:, :21], Step(cache.extend([21, 21]), cache=cache))
        got = MODEL(IDS[:, 21:], Step(cache.extend([3, 3]), cache=cache, tap=AddTap(name, delta)))
    assert_near(got, want)
    assert relative_change(got, last) > 1e-2


def test_edit_of_keys_with_uneven_lengths():
    """Edits apply at each sequence's own positions: sequence 0 has three new tokens after 9, sequence 1 one after 4."""
    name, generator = "blocks.1.attn.k", torch.Generator().manual_seed(0)
    cache = DenseCache.of(MODEL.config, 2, 24)
    counts, before = [3, 1], [9, 4]
    delta = torch.randn(2, 3, 4, 14, generator=generator)
    new = torch.stack([IDS[b, n : n + 3] for b, n in enumerate(before)])
    with torch.no_grad():
        MODEL(IDS[:, :9], Step(cache.extend(before), cache=cache))
        got = MODEL(new, Step(cache.extend(counts), cache=cache, tap=AddTap(name, delta)))
    for b, (n, c) in enumerate(zip(before, counts, strict=True)):
        wide = torch.zeros(1, n + c, 4, 14)
        wide[:, n:] = delta[b, :c]
        assert_near(got[b, :c], run(MODEL, IDS[b : b + 1, : n + c], tap=AddTap(name, wide))[0, n:])


def test_edit_of_latent_persists_in_the_cache():
    found = {}
    for end, shape in (("attn.latent", (2, 21, 20)), ("attn.k", (2, 21, 4, 14)), (None, ())):
        cache, tap = DenseCache.of(MODEL.config, 2, 24), None
        if end:
            tap = AddTap(f"blocks.2.{end}", torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        with torch.no_grad():
            MODEL(IDS[:, :21], Step(cache.extend([21, 21]), cache=cache, tap=tap))
            found[end] = MODEL(IDS[:, 21:], Step(cache.extend([3, 3]), cache=cache))
    assert relative_change(found["attn.latent"], found[None]) > 1e-2
    assert torch.equal(found["attn.k"], found[None])


def test_packed_documents_equal_single_documents():
    positions, documents = (torch.tensor([[*a, *b]]) for a, b in ((range(9), range(15)), ([0] * 9, [1] * 15)))
    row, delta = IDS[:1], torch.randn(1, 24, 4, 14, generator=torch.Generator().manual_seed(0))
    for tap in (None, AddTap("blocks.1.attn.k_rot", delta)):
        with torch.no_grad():
            packed = MODEL(row, Step(positions, documents=documents, tap=tap))
        for part in (slice(0, 9), slice(9, 24)):
            own = tap and AddTap(tap.name, delta[:, part])
            assert_near(packed[:, part], run(MODEL, row[:, part], tap=own))


def test_absorbed_and_expanded_have_equal_gradients(monkeypatch):
    found = []
    for absorb in (True, False):
        monkeypatch.setattr(latent, "absorbs", lambda *_, absorb=absorb: absorb)
        MODEL.zero_grad()
        MODEL(IDS, Step.of(IDS)).square().mean().backward()
        found.append({name: p.grad for name, p in MODEL.named_parameters() if p.grad is not None})
        MODEL.zero_grad()
    assert found[0].keys() == found[1].keys()
    assert any("expand_k" in name for name in found[0])
    for name, gradient in found[0].items():
        assert_near(gradient, found[1][name], 1e-4)


@pytest.mark.skipif(not can_prepack(torch.float32), reason="this PyTorch cannot prepack weights")
def test_prepacked_model_absorbs():
    twin, ids = prepack(MODEL, 16), random_ids(MODEL.config, 16, 9)
    assert isinstance(twin.blocks[0].attn.kv, PrepackedLinear)
    cache = DenseCache.of(MODEL.config, 16, 9)
    assert_near(run_cached(twin, ids, [6, 1, 2], cache), run(MODEL, ids))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("latent.rank", 0, "rank must be at least 1, got 0"),
        ("latent.q_rank", 0, "q_rank must be at least 1"),
        ("latent.eps", 0.0, "eps of the latent norms must be above 0"),
        ("n_kv_heads", 2, "with n_kv_heads = n_heads"),
        ("window", 4, "without qk_norm, clip, softcap, window or sinks"),
        ("sinks", True, "without qk_norm, clip"),
        ("rope", None, "rope dim below head_dim"),
        ("rope.dim", 14, "rope dim below head_dim"),
        ("rope.dim", None, "rope dim below head_dim"),
    ],
)
def test_invalid_config_raises_config_error(path, value, message):
    with pytest.raises(ConfigError, match=message):
        change(ATTENTION, path, value)


def test_live_points_have_the_expected_values():
    names = [f"blocks.0.attn.{end}" for end in ("q", "latent", "k", "v", "q_rot", "k_rot", "z")]
    recorder = RecorderTap(*names)
    run(MODEL, IDS, tap=recorder)
    q, c, k, v, _, k_rot, z = (recorder[name][0] for name in names)
    assert [t.shape[2:] for t in (q, c, k, v, z)] == [(4, 14), (20,), (4, 14), (4, 10), (4, 10)]
    attention = MODEL.blocks[0].attn
    assert_near(k[..., 8:], attention.expand_k(c))
    assert_near(v, attention.expand_v(c))
    for t in (k[..., :8], k_rot[..., :8]):
        assert (t == t[..., :1, :]).all(), "all heads must share the rotary key"
    assert torch.equal(k_rot[..., 8:], k[..., 8:])

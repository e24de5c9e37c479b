"""attend_reference against loops in NumPy, float64; every fast implementation against attend_reference."""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny import assert_near

from glassformer.kernels.attention import attend_float32, attend_fused, attend_products
from glassformer.nn.attend import KV, AttendSpec, Visibility, attend_reference, attend_sdpa, visible


def naive(q, k, v, scale, seen, softcap=None, bias=None, sinks=None):
    """Compute attention one query at a time. `seen[b, t, s]`: whether query t sees key s."""
    q, k, v = (np.asarray(t, np.float64) for t in (q, k, v))
    bias, sinks = (None if t is None else np.asarray(t, np.float64) for t in (bias, sinks))
    batch_size, n_queries, n_heads, _ = q.shape
    z, probs = np.zeros((*q.shape[:3], v.shape[-1])), np.zeros((batch_size, n_heads, n_queries, k.shape[1]))
    for b, t, h in itertools.product(range(batch_size), range(n_queries), range(n_heads)):
        group = h * k.shape[2] // n_heads
        keys = [s for s in range(k.shape[1]) if seen[b, t, s]]
        scores = np.array([q[b, t, h] @ k[b, s, group] * scale for s in keys])
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            scores = scores + np.array([bias[b, h, t, s] for s in keys])
        weights = np.exp(scores)
        total = weights.sum() + (0 if sinks is None else np.exp(sinks[h]))
        for s, weight in zip(keys, weights, strict=True):
            probs[b, h, t, s] = weight / total
            z[b, t, h] += weight / total * v[b, s, group]
    return z, probs


def visible_by_loops(queries, keys, causal, window, documents):
    out = np.zeros((len(queries), queries.shape[1], keys.shape[1]), bool)
    for b, t, s in np.ndindex(*out.shape):
        apart = queries[b, t] - keys[b, s]
        out[b, t, s] = (
            keys[b, s] >= 0
            and (not causal or apart >= 0)
            and (window is None or apart < window)
            and (documents is None or documents[b, t] == documents[b, s])
        )
    return out


def draw(heads=(4, 2), length=7, keys=7, d=8, dv=8, seed=0, batch=2):
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, length, heads[0], d), (batch, keys, heads[1], d), (batch, keys, heads[1], dv)
    return [torch.randn(shape, generator=g) * 1.5 for shape in shapes]


def positions(length, start=0):
    return torch.arange(start, start + length)[None]


def view_of(spec, length=7, keys=7, documents=None):
    q, k = positions(length, keys - length), positions(keys)
    return Visibility(q, k, visible(spec, q, k, documents))


HEADS = [(4, 4), (4, 2), (4, 1), (6, 3)]
BIAS = torch.randn(2, 6, 7, 7, generator=torch.Generator().manual_seed(9))
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0, 1.0])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("spec", [
    AttendSpec(1 / math.sqrt(8)), AttendSpec(1.0), AttendSpec(0.3, window=3), AttendSpec(0.3, window=1),
    AttendSpec(1.0, softcap=2.0), AttendSpec(0.3, causal=False), AttendSpec(0.5, softcap=3.0, window=4),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("extra", ["", "bias", "sinks", "bias sinks", "documents"])
def test_reference_equals_numpy_loops(heads, spec, extra):
    q, k, v = draw(heads)
    bias = BIAS[:, : heads[0]] if "bias" in extra else None
    sinks = SINKS[: heads[0]] if "sinks" in extra else None
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0] * 5 + [1] * 2]) if extra == "documents" else None
    z, scores, probs = attend_reference(spec, q, KV(k, v), view_of(spec, documents=documents), bias, sinks)
    every = positions(7).expand(2, -1).numpy()
    seen = visible_by_loops(every, every, spec.causal, spec.window, documents)
    want_z, want_probs = naive(q, k, v, spec.scale, seen, spec.softcap, bias, sinks)
    assert_near(z, torch.tensor(want_z), 1e-6)
    assert_near(probs, torch.tensor(want_probs), 1e-6)
    assert torch.equal(scores.isinf(), ~torch.tensor(seen)[:, None].expand_as(scores))
    if sinks is None:
        assert_near(scores.softmax(-1), probs, 1e-6)
        assert_near(probs.sum(-1), torch.ones(probs.shape[:-1]), 1e-6)
    else:
        assert (probs.sum(-1) < 0.99).any(), "the sinks have no effect"


@pytest.mark.parametrize(("name", "wrong"), [
    ("heads in the wrong groups", lambda q, k, v: (q, k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1))),
    ("keys for values", lambda q, k, v: (q, k.repeat_interleave(2, 2), k.repeat_interleave(2, 2))),
])  # fmt: skip
def test_wrong_attention_differs(name, wrong):
    """The comparison above can fail: a wrong attention differs clearly."""
    spec = AttendSpec(0.3)
    q, k, v = draw((4, 2))
    right = attend_reference(spec, q, KV(k, v), view_of(spec))[0]
    q, k, v = wrong(q, k, v)
    off = (attend_reference(spec, q, KV(k, v), view_of(spec))[0] - right).abs().max() / right.abs().max()
    assert off > 0.1, name


@pytest.mark.parametrize("change", [
    {"scale": 0.31}, {"softcap": 20.0}, {"window": 6}, {"causal": False},
], ids=str)  # fmt: skip
def test_each_spec_field_changes_the_output(change):
    q, k, v = draw()
    a, b = AttendSpec(0.3), AttendSpec(**{"scale": 0.3, **change})
    a, b = (attend_reference(s, q, KV(k, v), view_of(s))[0] for s in (a, b))
    assert (a - b).abs().max() / a.abs().max() > 1e-3


FAST = [
    (heads, window, causal, bias, length)
    for heads in HEADS
    for window in (None, 3)
    for causal in (True, False)
    for bias in (False, True)
    for length in (1, 4, 7)
]


@pytest.mark.parametrize("values", [8, 12])
@pytest.mark.parametrize(("heads", "window", "causal", "bias", "length"), FAST)
def test_fast_attention_equals_reference(heads, window, causal, bias, length, values):
    """Values and gradients, with one query, several queries after cached keys, and complete sequences."""
    spec = AttendSpec(0.4, causal, window)
    view = view_of(spec, length)
    if length == 7 and window is None:
        view = Visibility(view.queries, view.keys, None, causal=causal)  # as `Step` describes a view that needs no mask
    if length == 1 and window is None and causal:
        view = Visibility(view.queries, view.keys, None)
    results = []
    for attend in (attend_reference, attend_sdpa, attend_fused, attend_products):
        q, k, v = (t.requires_grad_() for t in draw(heads, length, dv=values))
        b = BIAS[:, : heads[0], :length].clone().requires_grad_() if bias else None
        z = attend(spec, q, KV(k, v), view, b)
        z = z[0] if attend is attend_reference else z
        (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum().backward()
        results.append([z.detach(), *(t.grad for t in (q, k, v, b) if t is not None)])
    for slow, *twins in zip(*results, strict=True):
        for fast in twins:
            assert_near(fast, slow, 2e-6)


@pytest.mark.parametrize(("softcap", "sinks"), [(3.0, False), (None, True), (3.0, True)])
def test_softcap_and_sinks_use_the_reference(softcap, sinks):
    spec, (q, k, v) = AttendSpec(0.4, softcap=softcap), draw()
    sinks = SINKS[:4] if sinks else None
    view = view_of(spec)
    want = attend_reference(spec, q, KV(k, v), view, None, sinks)[0]
    for attend in (attend_sdpa, attend_fused, attend_products, attend_float32):
        assert torch.equal(attend(spec, q, KV(k, v), view, None, sinks), want)


@pytest.mark.parametrize("bias_shape", [(1, 4, 7, 7), (2, 4, 7, 7), (1, 1, 7, 7), (4, 7, 7), (1, 4, 1, 7)], ids=str)
def test_bias_broadcasts(bias_shape):
    spec, (q, k, v) = AttendSpec(0.4), draw()
    bias = torch.randn(bias_shape, generator=torch.Generator().manual_seed(3))
    full = bias.expand(2, 4, 7, 7)
    want = attend_reference(spec, q, KV(k, v), view_of(spec), full)[0]
    for view in (view_of(spec), Visibility(positions(7), positions(7), None, causal=True)):
        assert_near(attend_reference(spec, q, KV(k, v), view, bias)[0], want, 1e-6)
        assert_near(attend_sdpa(spec, q, KV(k, v), view, bias), want, 1e-6)


def test_bfloat16_is_near_float32():
    spec, tensors = AttendSpec(0.4), draw()
    want = attend_reference(spec, tensors[0], KV(*tensors[1:]), view_of(spec))[0]
    q, k, v = (t.bfloat16() for t in tensors)
    for z in (attend_reference(spec, q, KV(k, v), view_of(spec))[0], attend_sdpa(spec, q, KV(k, v), view_of(spec))):
        assert z.dtype == torch.bfloat16
        assert_near(z, want, 2e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("lengths", [None, (1, 5, 33, 32), (33,)])
@pytest.mark.parametrize("heads", [(16, 16), (15, 15), (16, 4)])
@pytest.mark.parametrize("source", [False, True])
def test_one_query_with_many_heads(source, heads, lengths, dtype, tolerance):
    """Below and above `MANY_HEADS`, with keys laid out as in a cache: not contiguous."""
    q, k, v = draw(heads, length=1, keys=40, batch=4, dv=12)
    q, k, v = q.to(dtype), *(t.to(dtype).transpose(1, 2).contiguous()[:, :, :33].transpose(1, 2) for t in (k, v))
    mask = None if lengths is None else torch.arange(33) < torch.tensor(lengths)[:, None, None]
    view, spec = Visibility(positions(1, 33), positions(33), mask), AttendSpec(0.3, causal=False, source=source)
    wanted = attend_reference(spec, q.float(), KV(k.float(), v.float()), view)[0]
    found = attend_fused(spec, q, KV(k, v), view)
    assert found.shape == wanted.shape
    assert found.dtype == dtype
    assert_near(found.float(), wanted, tolerance)


def test_empty_keys_are_hidden():
    spec, (q, k, v) = AttendSpec(0.4), draw(length=2, batch=1)
    keys = torch.tensor([[3, 4, -1, 0, 1, 2, -1]])
    queries = torch.tensor([[4, -1]])
    k[:, keys[0] == -1], v[:, keys[0] == -1] = 1e4, 1e4
    view = Visibility(queries, keys, visible(spec, queries, keys))
    real = keys[0] >= 0
    alone = Visibility(queries[:, :1], keys[:, real], visible(spec, queries[:, :1], keys[:, real]))
    want = attend_reference(spec, q[:, :1], KV(k[:, real], v[:, real]), alone)[0]
    for z in (attend_reference(spec, q, KV(k, v), view)[0], attend_sdpa(spec, q, KV(k, v), view)):
        assert_near(z[:, :1], want, 1e-6)
        assert z.isfinite().all()


def test_attend_float32_ignores_autocast():
    spec, (q, k, v) = AttendSpec(0.35), draw(dv=8)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        z = attend_float32(spec, q, KV(k, v), view_of(spec))
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, attend_sdpa(spec, q.float(), KV(k.float(), v.float()), view_of(spec)).bfloat16())


@pytest.mark.parametrize("attend", [attend_sdpa, attend_fused, attend_products, attend_float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 9, 17])
@pytest.mark.parametrize("heads", [(4, 4), (4, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_scores_that_are_not_numbers_give_nan(attend, dtype, length, heads, causal):
    """A NaN or infinity in any query or key: NaN where the definition gives NaN, in that text only."""
    spec = AttendSpec(0.4, causal)
    view = view_of(spec, length, length)
    for which, index, value in itertools.product((0, 1), (0, length - 1), (math.nan, math.inf, -math.inf)):
        tensors = [t.to(dtype) for t in draw(heads, length, length)]
        tensors[which][1, index, 0, 3] = value
        q, k, v = tensors
        z, expected = attend(spec, q, KV(k, v), view), attend_reference(spec, q, KV(k, v), view)[0]
        assert not z[0].isnan().any()
        assert z[expected.isnan()].isnan().all(), (which, index, value)  # torch adds -inf to hide a key: NaN stays
        assert expected.isnan().any() or math.isinf(value)

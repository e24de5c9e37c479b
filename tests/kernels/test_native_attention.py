"""Native attention against its definition, and the same bits at every level and for every division into chunks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_levels import at_each_level, same_bits

from glassformer.cache.dense import DenseCache
from glassformer.kernels.native import attention
from glassformer.kernels.native.attention import KeyRanges, attend_native, attend_op
from glassformer.kernels.native.library import load_library
from glassformer.nn.attend import KV, AttendSpec, Visibility, attend_reference, visible

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native kernels are not available")
BOUND = {"rtol": 2e-6, "atol": 4e-6}  # of results of standard normal values
NAN, INF = math.nan, math.inf


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def native_only(monkeypatch):
    """Fail if attention falls back to PyTorch."""

    def fallback(*_):
        raise AssertionError("the native kernels do not support these arguments")

    monkeypatch.setattr(attention, "attend_fused", fallback)


def view_of(spec, length, keys, batch=1):
    """Return what queries at the last `length` of `keys` positions see."""
    queries, places = torch.arange(keys - length, keys).expand(batch, -1), torch.arange(keys)[None]
    return Visibility(queries, places, visible(spec, queries, places))


SPECS = st.builds(
    AttendSpec,
    st.sampled_from([0.125, 1.0]),
    st.booleans(),
    st.sampled_from([None, 1, 5, 64, 70]),
    st.sampled_from([None, 3.0, 30.0]),
)


@given(
    SPECS, st.integers(1, 2), st.integers(1, 4), st.integers(1, 3), st.sampled_from([3, 8, 20, 64]),
    st.sampled_from([5, 8, 40, 104]), st.sampled_from([(1, 1), (1, 200), (5, 9), (64, 64), (70, 130)]), st.booleans(),
)  # fmt: skip
def test_equals_reference(spec, batch, group, kv_heads, size, value_size, lengths, with_sinks):
    length, n_keys = lengths
    q, k = draw(batch, length, group * kv_heads, size), draw(batch, n_keys, kv_heads, size, seed=1)
    v = draw(batch, n_keys, kv_heads, value_size, seed=2)
    sinks = draw(group * kv_heads, seed=3) if with_sinks else None
    view = view_of(spec, length, n_keys, batch)
    assert attention.key_ranges(spec, view, batch) is not None
    want, scores, _ = attend_reference(spec, q, KV(k, v), view, None, sinks)
    z = same_bits(at_each_level(lambda: attend_native(spec, q, KV(k, v), view, None, sinks)))
    largest = scores[scores.isfinite()].abs().max().item()  # an error of a score is a relative one of its probability
    torch.testing.assert_close(z, want, rtol=BOUND["rtol"], atol=BOUND["atol"] + 2**-22 * largest)


def chunked(spec, q, k, v, capacity, divisions, room=0, sinks=None):
    """Return z of sequences that a cache gets in chunks; `divisions[b]`: the number of tokens of each chunk."""
    batch, total = q.shape[0], q.shape[1]
    cache = DenseCache([spec.window], batch, capacity, reach=[room] * batch if room else None)
    done, parts = [0] * batch, [[] for _ in range(batch)]
    for counts in zip(*divisions, strict=True):
        cache.extend(counts)
        new = [torch.zeros(batch, max(counts), *t.shape[2:]) for t in (q, k, v)]
        for b, n in enumerate(counts):
            for padded, t in zip(new, (q, k, v), strict=True):
                padded[b, :n] = t[b, done[b] : done[b] + n]
        z = attend_native(spec, new[0], cache.layer(0).keep(*new[1:]), cache.view(spec), None, sinks)
        for b, n in enumerate(counts):
            parts[b].append(z[b, :n])
            assert (z[b, n:] == 0).all()  # padding
            done[b] += n
    assert done == [total] * batch
    return torch.stack([torch.cat(part) for part in parts])


@pytest.mark.usefixtures("native_only")
@pytest.mark.parametrize("window", [None, 1, 3, 16, 100])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_same_bits_for_every_division_into_chunks(window, softcap):
    spec, total = AttendSpec(0.25, window=window, softcap=softcap), 140
    q, k, v = draw(2, total, 6, 16), draw(2, total, 2, 16, seed=1), draw(2, total, 2, 24, seed=2)
    sinks = draw(6, seed=3)
    places = torch.arange(total)[None]
    mask = visible(spec, places, places)
    whole = attend_native(spec, q, KV(k, v), Visibility(places, places, mask), None, sinks)
    torch.testing.assert_close(
        whole, attend_reference(spec, q, KV(k, v), Visibility(places, places, mask), None, sinks)[0], **BOUND
    )
    for divisions in ([[140]] * 2, [[1] * 140] * 2, [[100, 39, 1]] * 2, [[63, 2, 75]] * 2, [[3, 137], [64, 76]]):
        for capacity in (140, 150):
            z = chunked(spec, q, k, v, capacity, divisions, sinks=sinks)
            torch.testing.assert_close(z, whole, rtol=0, atol=0)


@pytest.mark.usefixtures("native_only")
@given(st.data(), st.sampled_from([None, 2, 7, 33]), st.integers(1, 3))
def test_same_bits_for_random_chunks(data, window, batch):
    spec, total = AttendSpec(0.3, window=window), 70
    q, k, v = draw(batch, total, 3, 8), draw(batch, total, 3, 8, seed=1), draw(batch, total, 3, 8, seed=2)
    cuts = [sorted(data.draw(st.lists(st.integers(1, 69), min_size=3, max_size=3, unique=True))) for _ in range(batch)]
    divisions = [[b - a for a, b in zip([0, *c], [*c, total], strict=True)] for c in cuts]
    whole = chunked(spec, q, k, v, total, [[total]] * batch)
    torch.testing.assert_close(chunked(spec, q, k, v, total, divisions), whole, rtol=0, atol=0)


@pytest.mark.usefixtures("native_only")
def test_a_sequence_does_not_depend_on_others():
    spec = AttendSpec(0.25)
    q, k, v = draw(5, 90, 4, 16), draw(5, 90, 2, 16, seed=1), draw(5, 90, 2, 16, seed=2)
    view = Visibility(*[torch.arange(90)[None]] * 2, None, causal=True)
    whole = attend_native(spec, q, KV(k, v), view)
    for b in range(5):
        alone = Visibility(view.queries, view.keys, None, causal=True)
        torch.testing.assert_close(
            attend_native(spec, q[b : b + 1], KV(k[b : b + 1], v[b : b + 1]), alone)[0], whole[b], rtol=0, atol=0
        )


@pytest.mark.usefixtures("native_only")
def test_encoder_with_padding_sees_the_keys_of_its_sequence():
    spec = AttendSpec(0.25, causal=False)
    q, k, v = draw(3, 9, 4, 16), draw(3, 9, 4, 16, seed=1), draw(3, 9, 4, 16, seed=2)
    steps, lengths = torch.arange(9)[None], torch.tensor([[9], [1], [4]])
    places = torch.where(steps < lengths, steps, -1)
    view = Visibility(places, places, visible(spec, places, places))
    k[places < 0] = NAN  # padding is not read
    z = attend_native(spec, q, KV(k, v), view)
    want = attend_reference(spec, q, KV(k.nan_to_num(), v), view)[0]
    torch.testing.assert_close(z[places >= 0], want[places >= 0], **BOUND)
    assert (z[places < 0] == 0).all()


@pytest.mark.usefixtures("native_only")
@pytest.mark.parametrize("length", [1, 5, 70])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_scores_that_are_not_numbers(length, value):
    spec = AttendSpec(0.25)
    q, k, v = draw(1, length, 4, 16), draw(1, length, 4, 16, seed=1), draw(1, length, 4, 16, seed=2)
    q[0, length // 2, 1, 3] = value
    view = Visibility(*[torch.arange(length)[None]] * 2, None, causal=True)
    want = attend_reference(spec, q, KV(k, v), view)[0]
    z = same_bits(at_each_level(lambda: attend_native(spec, q, KV(k, v), view)))
    assert want[0, length // 2, 1].isnan().all()
    torch.testing.assert_close(z, want, equal_nan=True, **BOUND)
    k[0, -1, 2, 0] = NAN  # only the last query sees it
    z = attend_native(spec, q, KV(k, v), view)
    assert z[0, -1, 2].isnan().all()
    assert z[0, :-1, 2].isfinite().all()


@pytest.mark.usefixtures("native_only")
def test_infinite_scores_and_sinks():
    spec, view = AttendSpec(1.0), Visibility(*[torch.arange(3)[None]] * 2, None, causal=True)
    q, v = torch.ones(1, 3, 1, 8), draw(1, 3, 1, 8)
    for scores in ([-INF, 0.0, 1.0], [0.0, INF, 1.0], [-INF, -INF, 2.0], [3e38, -3e38, 3e38], [100.0, 0.0, 200.0]):
        k = torch.zeros(1, 3, 1, 8)
        k[0, :, 0, 0] = torch.tensor(scores)
        for sink in (None, -INF, 0.0, 500.0, INF, NAN):
            sinks = None if sink is None else torch.tensor([sink])
            z = attend_native(spec, q, KV(k, v), view, None, sinks)
            torch.testing.assert_close(
                z, attend_reference(spec, q, KV(k, v), view, None, sinks)[0], equal_nan=True, **BOUND
            )


def test_falls_back_where_the_kernels_do_not_compute():
    spec, n = AttendSpec(0.25), 6
    q, k, v = draw(1, n, 2, 16), draw(1, n, 2, 16, seed=1), draw(1, n, 2, 16, seed=2)
    steps = torch.arange(n)[None]
    plain = Visibility(steps, steps, None, causal=True)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    restarted = documents.new_tensor([[0, 1, 2, 0, 1, 2]])
    for view in (
        Visibility(steps, steps, visible(spec, steps, steps, documents)),
        Visibility(restarted, restarted, visible(spec, restarted, restarted, documents)),
        Visibility(steps + 1, steps * 2, visible(spec, steps + 1, steps * 2)),  # positions without keys
    ):
        assert attention.key_ranges(spec, view, 1) is None
        want = attend_reference(spec, q, KV(k, v), view)[0]
        torch.testing.assert_close(attend_native(spec, q, KV(k, v), view), want, **BOUND)
    bias = draw(1, 2, n, n, seed=3)
    want = attend_reference(spec, q, KV(k, v), plain, bias)[0]
    torch.testing.assert_close(attend_native(spec, q, KV(k, v), plain, bias), want, **BOUND)
    half = attend_native(spec, q.bfloat16(), KV(k.bfloat16(), v.bfloat16()), plain)
    assert half.dtype == torch.bfloat16
    trained = q.clone().requires_grad_()
    attend_native(spec, trained, KV(k, v), plain).sum().backward()
    assert trained.grad is not None


def test_operation_checks_its_tensors():
    spec = AttendSpec(0.25)
    q, k, z = draw(2, 3, 4, 8), draw(2, 2, 5, 8), draw(2, 3, 4, 8)
    queries = torch.zeros(2, 3, dtype=torch.int32)
    places = KeyRanges(queries, None, None)
    attend_op(spec, q, k, k, z, places)
    for wrong in (
        lambda: attend_op(spec, q, k[:, :, :0], k[:, :, :0], z, places),
        lambda: attend_op(spec, q, k[:1], k[:1], z, places),
        lambda: attend_op(spec, q[:, :, :3].contiguous(), k, k, z, places),
        lambda: attend_op(spec, q, k, k.clone().mT.contiguous().mT, z, places),
        lambda: attend_op(spec, q.double(), k, k, z, places),
        lambda: attend_op(spec, q, k, k, z[:, :2], places),
        lambda: attend_op(spec, q, k, k, z, KeyRanges(queries[:, :2], None, None)),
        lambda: attend_op(spec, q, k, k, z, KeyRanges(queries, queries[0], None)),
        lambda: attend_op(spec, q, k, k, z, KeyRanges(queries, None, queries[:1])),
        lambda: attend_op(spec, q, k, k, z, places, draw(3)),
        lambda: attend_op(spec, draw(2, 3, 4, 1032), draw(2, 2, 5, 1032), k, z, places),
    ):
        with pytest.raises(ValueError, match=r"must|fit"):
            wrong()

"""Matrices quantized at load, compared with NumPy in float64, and their scale search with an exhaustive one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_ids, relative_change, run, tiny
from tiny_gguf import gguf_model

from glassformer.errors import CheckpointError
from glassformer.kernels.packed import FORMATS, decode
from glassformer.kernels.quantize import quantize_matrix, quantize_model
from glassformer.kernels.scale_search import search_scale, search_scale_and_minimum

LIMITS = {"q8": (-127, 127), "q4": (-8, 7)}


def plain(x, low, high):
    """Quantize groups without a search, in float64: the weight of the largest magnitude becomes `low`."""
    groups = x.reshape(-1, 32).astype(np.float64)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], -1)
    scale = (extreme / low).astype(np.float16).astype(np.float64)
    q = np.rint(np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0)).clip(low, high)
    return (scale * q).reshape(x.shape)


@pytest.mark.parametrize(("name", "most"), [("q8", 1.0), ("q4", 0.98)])
@pytest.mark.parametrize("tails", [3, 1000])
def test_error_is_below_that_of_a_plain_quantizer(name, most, tails):
    x = (0.02 * np.random.default_rng(0).standard_t(tails, (203, 320))).astype(np.float32)
    matrix, error = quantize_matrix(torch.from_numpy(x), name, "x")
    values = decode(matrix).numpy().astype(np.float64)
    ours, theirs = (np.sqrt(np.square(y - x).sum() / np.square(x).sum()) for y in (values, plain(x, *LIMITS[name])))
    assert error == pytest.approx(ours, rel=1e-3)
    assert ours < most * theirs


@st.composite
def matrices(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 19)), 32 * draw(st.integers(1, 4))
    x = rng.standard_normal(shape) * 10.0 ** draw(st.integers(-9, 4))
    x[draw(st.integers(0, shape[0] - 1))] = draw(st.sampled_from([0.0, 1.0, -3.0]))
    x[0, draw(st.integers(0, shape[1] - 1))] = draw(st.sampled_from([0.0, 20 * x.max(), 20 * x.min()]))
    return x.clip(-60_000, 60_000).astype(np.float32)


@settings(max_examples=100)
@given(matrices(), st.sampled_from([*LIMITS]))
def test_every_weight_is_within_a_step(x, name):
    matrix, error = quantize_matrix(torch.from_numpy(x), name, "x")
    values = decode(matrix).numpy()
    assert matrix.layout is FORMATS[name]
    assert np.isfinite(values).all()
    step = np.abs(x.reshape(-1, 32)).max(-1, keepdims=True) / LIMITS[name][1]
    tiny = 2.0**-24 * LIMITS[name][1]
    assert (np.abs(values - x).reshape(-1, 32) <= 1.05 * step + tiny).all()
    assert not values[(x == 0).all(1)].any()
    off, size = (np.square(v.astype(np.float64)).sum() for v in (values - x, x))
    assert error == pytest.approx(np.sqrt(off / size) if size else 0.0, rel=1e-2, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(-8, 7), (-32, 31), (-127, 127)]))
@settings(max_examples=30)
def test_search_is_close_to_an_exhaustive_one(seed, limits):
    """The best of 400 scales, each rounded and solved once, is little better."""
    x = np.random.default_rng(seed).standard_normal((8, 32)).astype(np.float32)
    low, high = limits

    def error(scale):
        q = np.rint(x / scale).clip(low, high)
        best = (x * q).sum(-1, keepdims=True) / np.square(q).sum(-1, keepdims=True)
        return np.square(x - best * q).sum(-1)

    ours = error(search_scale(torch.from_numpy(x), low, high).numpy()[:, None])
    extreme = np.abs(x).max(-1, keepdims=True)
    best = np.min([error(sign * extreme / n) for sign in (1, -1) for n in np.linspace(0.6, 1.2, 200) * high], 0)
    assert np.sqrt(ours.sum()) <= (1.05 if low == -8 else 1.25) * np.sqrt(best.sum())


def test_search_of_groups_without_range():
    """Groups of zeros, of one constant, of one sign, and with a single weight."""
    single = torch.zeros(32).index_fill(0, torch.tensor([5]), -0.3)
    x = torch.stack([torch.zeros(32), torch.full((32,), -3.0), torch.full((32,), 2.0), single, torch.arange(1.0, 33)])
    scale, minimum = (v[:, None] for v in search_scale_and_minimum(x, 31))
    assert (scale >= 0).all()
    assert (minimum >= 0).all()
    q = ((x + minimum) / scale).nan_to_num(0, 0, 0).round().clamp(0, 31)
    torch.testing.assert_close((scale * q - minimum)[:4], x[:4])
    torch.testing.assert_close((scale * q - minimum)[4], x[4], rtol=0, atol=1.01)
    scale = search_scale(x, -127, 127)[:, None]
    torch.testing.assert_close(scale * (x / scale).nan_to_num(0, 0, 0).round(), x, rtol=0.01, atol=0.13)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -7e4])
def test_weights_that_cannot_be_quantized(bad):
    weight = torch.ones(3, 64)
    weight[2, 33] = bad
    with pytest.raises(CheckpointError, match=r"a\.b\.weight: weights must be finite and at most 65,504"):
        quantize_matrix(weight, "q4", "a.b.weight")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_models(family):
    """Every matrix of a linear layer is packed, in int8 at least embedding and head; routers and positions are not."""
    ids, errors = random_ids(gguf_model(family).config, 2, 20), {}
    expected = run(gguf_model(family), ids)
    for kind in ("int8", "int4"):
        model, calls = gguf_model(family), []
        quantized = quantize_model(model, kind, "x", lambda *at, to=calls: to.append(at))
        formats = {one.name: one.format for one in quantized.matrices}
        assert formats["embed.weight"] == "q8"
        assert formats["blocks.1.attn.v.weight"] == ("q8" if kind == "int8" else "q4")
        assert all("router" in name or "positions" in name for name in quantized.left)
        assert calls[-1] == (sum(n * m for n, m in (one.shape for one in quantized.matrices)),) * 2
        assert ("8.5" if kind == "int8" else f"{quantized.bits_per_weight:.1f}") in str(quantized)
        errors[kind] = relative_change(run(model, ids), expected)
    assert 0 < errors["int8"] < (0.1 if family != "mixtral" else 0.5)  # routing may change
    assert errors["int8"] < errors["int4"]


def test_a_model_without_a_matrix_that_fits():
    with pytest.raises(CheckpointError, match="x cannot be quantized: it has no matrix with rows of a multiple of 32"):
        quantize_model(tiny("llama", d_model=36), "int8", "x")


def test_bfloat16_weights_are_quantized_from_their_own_values():
    weight = torch.randn(9, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours, error = quantize_matrix(weight, "q8", "x")
    theirs, same = quantize_matrix(weight.float(), "q8", "x")
    assert torch.equal(ours.data, theirs.data)
    assert error == same

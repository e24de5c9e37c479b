"""Native norms, rotations, activations and sums: against float64, against nn/, and the same bits at every level."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_levels import at_each_level, same_bits

from glassformer.config import NormConfig
from glassformer.kernels.native import rows
from glassformer.kernels.native.library import load_library
from glassformer.kernels.native.ops import QUANTIZE, Op, activation_bytes, run
from glassformer.nn.mlp import ACTIVATIONS
from glassformer.nn.norm import HeadNorms, make_norm
from glassformer.nn.rope import rotate

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native kernels are not available")
INF, NAN, EPSILON = math.inf, math.nan, 2.0**-23
NORMS = [
    NormConfig("rms", 1e-6), NormConfig("rms", 1e-5, "float32"), NormConfig("rms", 1e-2, "float32 1+"),
    NormConfig("layer", 1e-5), NormConfig("layer", 1e-5, None),
]  # fmt: skip
# act(x) in float64, and the argument of its logistic function or exponential, whose rounding is multiplied by its size
DEFINITIONS = {
    "relu": (torch.relu, torch.zeros_like),
    "gelu": (lambda x: x * torch.special.erfc(-x / math.sqrt(2)) / 2, torch.zeros_like),
    "gelu_tanh": (lambda x: x * torch.sigmoid(tanh_argument(x)), lambda x: tanh_argument(x)),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: 1.702 * x),
    "silu": (lambda x: x * torch.sigmoid(x), torch.zeros_like),
}


def tanh_argument(x):
    return 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_norm(module, config, x, **options):
    """Run a norm of nn/norm.py natively."""
    one_plus = config.scale == "float32 1+"
    bias = getattr(module, "bias", None)
    return rows.norm(x, kind=config.kind, eps=config.eps, weight=module.weight, bias=bias, one_plus=one_plus, **options)


@pytest.mark.parametrize("config", NORMS, ids=str)
@pytest.mark.parametrize("size", [1, 7, 32, 100, 960])
@torch.no_grad()
def test_norm_equals_module(config, size):
    module = make_norm(config, size)
    for i, parameter in enumerate(module.parameters()):
        parameter.copy_(draw(size, seed=i))
    x = draw(3, 5, size, seed=7) * 3 + 1
    y = same_bits(at_each_level(lambda: run_norm(module, config, x)))
    module.double()
    mean = x.double().mean(-1, keepdim=True) if config.kind == "layer" else 0
    normed = (x.double() - mean) / ((x.double() - mean).square().mean(-1, keepdim=True) + config.eps).sqrt()
    if config.scale is not None:
        normed = normed * (module.weight + (config.scale == "float32 1+"))
        if config.kind == "layer":
            normed = normed + module.bias
    torch.testing.assert_close(y.double(), normed, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(y, module.float()(x), rtol=2e-6, atol=4e-6)


@torch.no_grad()
def test_norm_of_one_row_is_the_same_in_many():
    x, weight = draw(64, 257) * 4, draw(257, seed=1)
    for kind in ("rms", "layer"):
        whole = rows.norm(x, kind=kind, eps=1e-5, weight=weight)
        for n in (1, 2, 7, 32):
            torch.testing.assert_close(rows.norm(x[:n], kind=kind, eps=1e-5, weight=weight), whole[:n], rtol=0, atol=0)


@torch.no_grad()
def test_norm_of_heads_has_their_weights():
    config = NormConfig("layer", 1e-5)
    norms = HeadNorms(config, 6, 12)
    for i, norm in enumerate(norms):
        norm.weight.copy_(draw(12, seed=i))
    x = draw(2, 3, 6, 12, seed=9)
    weight = torch.stack([norm.weight for norm in norms])
    y = rows.norm(x, kind="layer", eps=config.eps, weight=weight)
    torch.testing.assert_close(y, norms(x), rtol=2e-6, atol=2e-6)


def test_norm_of_infinity_and_nan():
    for value in (INF, -INF, NAN):
        x = draw(3, 40)
        x[1, 37] = value
        y = same_bits(at_each_level(lambda x=x: rows.norm(x, kind="rms", eps=1e-5)))
        torch.testing.assert_close(
            y, torch.nn.functional.rms_norm(x, (40,), None, 1e-5), rtol=2e-6, atol=2e-6, equal_nan=True
        )
        layer = rows.norm(x, kind="layer", eps=1e-5)
        assert layer[1].isnan().all()
        assert layer[[0, 2]].isfinite().all()


@given(st.integers(1, 5), st.sampled_from([32, 96, 544]), st.sampled_from([1.0, 1e-30, 1e30, NAN, INF]))
@torch.no_grad()
def test_quantized_results_are_those_of_quantize(n_rows, n, scale):
    x, up, weight = draw(n_rows, n) * 3, draw(n_rows, n, seed=1), draw(n, seed=2) * scale
    for function in (
        lambda q: rows.norm(x, kind="rms", eps=1e-6, weight=weight, quantized=q),
        lambda q: rows.activate(x, up * scale, activation="silu", quantized=q),
    ):
        y = function(False)
        want = torch.empty(activation_bytes(n_rows, n), dtype=torch.uint8)
        run([Op(kind=QUANTIZE, rows=n_rows, n_in=n, x=y.data_ptr(), y=want.data_ptr())])
        for got in at_each_level(lambda function=function: function(True)):
            assert (split(got, n_rows, n)[0] == split(want, n_rows, n)[0]).all()
            np.testing.assert_array_equal(split(got, n_rows, n)[1], split(want, n_rows, n)[1])


def split(activations, n_rows, n):
    """Return the integers, and the scales (where NaN has many bit patterns), of activations."""
    whole, groups = activations.numpy(), 8 * n_rows * n // 32
    scales = whole[3 * n_rows * n : 3 * n_rows * n + groups]
    return np.delete(whole, slice(3 * n_rows * n, 3 * n_rows * n + groups)), scales.view(np.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_against_float64(activation):
    x = torch.cat(
        [torch.linspace(-110, 110, 30_001), torch.linspace(-9, 9, 30_001), draw(9_000) * 1e-4, draw(500) * 1e-39]
    )
    define, argument = DEFINITIONS[activation]
    want = define(x.double())
    y = same_bits(at_each_level(lambda: rows.activate(x, activation=activation)))
    factor = 4 + 2 * argument(x.double()).abs()
    bound = factor * EPSILON * want.abs() + x.double().abs() * 2.0**-126 + 2.0**-148
    assert ((y.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_of_special_numbers_is_that_of_torch(activation):
    x = torch.tensor([INF, -INF, NAN, 0.0, -0.0, 3e38, -3e38, 1e-44, -1e-44, 88.0, -88.0])
    y = same_bits(at_each_level(lambda: rows.activate(x, activation=activation)))
    torch.testing.assert_close(y, ACTIVATIONS[activation](x), rtol=1e-6, atol=1e-36, equal_nan=True)


@pytest.mark.parametrize("n", [1, 8, 31, 33, 100])
@pytest.mark.parametrize("limit", [None, 1.5])
@pytest.mark.parametrize("plus_one", [False, True])
def test_gated_activation(n, limit, plus_one):
    gate, up = draw(3, n) * 3, draw(3, n, seed=1) * 3
    gate[1, 0], up[2, 0] = NAN, NAN
    options = {"limit": limit, "up_plus_one": plus_one}
    for activation, function in ACTIVATIONS.items():
        y = same_bits(at_each_level(lambda a=activation: rows.activate(gate, up, activation=a, **options)))
        g, u = (gate, up) if limit is None else (gate.clamp(max=limit), up.clamp(-limit, limit))
        torch.testing.assert_close(y, function(g) * (u + 1 if plus_one else u), rtol=2e-6, atol=2e-6, equal_nan=True)


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.sampled_from([2, 6, 12, 16, 64, 80]),
    st.sampled_from([1, 2, 4]), st.booleans(),
)  # fmt: skip
def test_rotation_has_the_bits_of_torch(batch, length, heads, size, part, shared):
    pairs = max(size // 2 // part, 1)
    x = draw(batch, length, heads, size)
    angles = draw(1 if shared else batch, length, 1, pairs, seed=1) * 9
    cos, sin = angles.cos(), angles.sin()
    y = same_bits(at_each_level(lambda: rows.rotate(x, cos, sin)))
    torch.testing.assert_close(y, rotate(x, cos, sin), rtol=0, atol=0)
    run([rows.rotate_op(x, x, cos, sin)])  # in place
    torch.testing.assert_close(x, y, rtol=0, atol=0)


@given(st.data(), st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_store_puts_heads_in_their_slots(data, batch, length, slots, rotated):
    heads, size = 2, 12
    x, cache = draw(batch, length, heads, size), draw(batch, heads, slots, size, seed=1)
    counts = torch.tensor([data.draw(st.integers(0, length)) for _ in range(batch)])[:, None]
    starts = torch.tensor([data.draw(st.integers(0, 30)) for _ in range(batch)])[:, None]
    steps = torch.arange(length)
    positions = torch.where(steps < counts, starts + steps, -1)
    angles = positions[..., None, None] * torch.tensor([1.0, 0.1, 0.01])
    pair = (angles.cos(), angles.sin()) if rotated else ()
    places, want, new = positions.int(), cache.clone(), rotate(x, *pair) if rotated else x
    for b in range(batch):
        for t in range(length):
            if positions[b, t] >= 0:
                want[b, :, positions[b, t] % slots] = new[b, t]

    def stored():
        filled = cache.clone()
        run([rows.store_op(x, filled, places, *pair)])
        return filled

    torch.testing.assert_close(same_bits(at_each_level(stored)), want, rtol=0, atol=0)


def test_add():
    x, y = draw(3, 37), draw(3, 37, seed=1)
    torch.testing.assert_close(same_bits(at_each_level(lambda: rows.add(x, y))), x + y, rtol=0, atol=0)


def test_operations_check_their_tensors():
    x, cache = draw(2, 3, 4, 8), draw(2, 4, 5, 8)
    positions = torch.zeros(2, 3, dtype=torch.int32)
    rows.store_op(x, cache, positions)
    for wrong in (
        lambda: rows.norm(x.half(), kind="rms", eps=1e-5),
        lambda: rows.norm(x.mT, kind="rms", eps=1e-5),
        lambda: rows.norm(x, kind="rms", eps=1e-5, weight=draw(7)),
        lambda: rows.norm(x, kind="rms", eps=1e-5, quantized=True),  # 8 is no multiple of 32
        lambda: rows.norm(x, kind="batch", eps=1e-5),
        lambda: rows.norm(draw(3, 0), kind="rms", eps=1e-5),
        lambda: rows.norm_op(x, draw(4, 8), kind="rms", eps=1e-5),
        lambda: rows.activate(x, draw(8), activation="silu"),
        lambda: rows.activate(x, activation="tanh"),
        lambda: rows.rotate(x, draw(1, 3, 1, 5), draw(1, 3, 1, 5)),
        lambda: rows.rotate(x, draw(1, 2, 1, 4), draw(1, 2, 1, 4)),
        lambda: rows.add(x, draw(8)),
        lambda: rows.store_op(x, cache, positions.long()),
        lambda: rows.store_op(x, cache, positions[:, :2]),
        lambda: rows.store_op(x, cache[..., :7], positions),
        lambda: rows.store_op(x, cache[:, :3], positions),
        lambda: rows.store_op(x, cache.double(), positions),
    ):
        with pytest.raises(ValueError, match=r"must|fit"):
            wrong()

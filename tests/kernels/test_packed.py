"""Packed matrices: every format's values and product against NumPy, row by row and bit by bit where it is exact."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glassformer.errors import ConfigError
from glassformer.kernels import packed_linear
from glassformer.kernels.packed import (
    FORMATS,
    GROUP,
    ROWS,
    TILE,
    decode,
    fma,
    pack,
    packed_bytes,
    product,
    quantize_rows,
)
from glassformer.kernels.packed_linear import PackedLinear, packed_product

BLOCK_BYTES = {  # of 8 rows and 256 inputs
    "q8": 2176, "q8f": 2304, "q4": 1152, "q4m": 1280, "q4z": 1344, "q5": 1408, "q5m": 1536,
    "q4k": 1184, "q5k": 1440, "q6k": 1680, "iq4nl": 1152, "iq4xs": 1104, "mxfp4": 1088,
}  # fmt: skip
SHAPES = [(1, 256), (8, 256), (9, 1024), (37, 512)]


def random_parts(name, n_out, n_in, seed=0):
    """Return random integers and fields of a format."""
    layout, rng = FORMATS[name], np.random.default_rng(seed)
    q = rng.integers(0, 1 << sum(layout.planes), (n_out, n_in), dtype=np.uint8)
    fields = {}
    for key, dtype in (layout.header | layout.record).items():
        shape = n_out, n_in // (layout.block_inputs if key in layout.header else GROUP)
        if dtype.is_floating_point:
            value = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)
        else:
            limits = {"e": (110, 140), "z": (0, 16)}.get(key, (-128, 128) if dtype == torch.int8 else (0, 64))
            value = rng.integers(*limits, shape)
        fields[key] = torch.from_numpy(value).to(dtype)
    return torch.from_numpy(q), fields


def reference(name, q, fields):
    """Return values, integer weights, scales and minima in float64, by the table of formats."""
    layout, n_groups = FORMATS[name], q.shape[1] // GROUP
    f = {key: np.repeat(value.double().numpy(), n_groups // value.shape[1], 1) for key, value in fields.items()}
    integers = q.numpy().view(np.int8).astype(np.float64) if layout.planes == (8,) else q.numpy().astype(np.float64)
    integers = np.array(layout.table)[q.numpy()].astype(np.float64) if layout.table else integers - layout.zero
    integers = integers.reshape(len(q), n_groups, GROUP)
    if "z" in f:
        integers = integers - f["z"][..., None]
    if "sc0" in f:
        integers = integers * np.stack([f["sc0"], f["sc1"]], -1).repeat(16, -1)
    scale = 2.0 ** (f["e"] - 128) if "e" in f else f["d"] * f.get("sc", 1)
    minimum = f["m"] if "m" in f else -f["dmin"] * f["mn"] if "mn" in f else np.zeros_like(scale)
    return (integers * scale[..., None] + minimum[..., None]).reshape(q.shape), integers, scale, minimum


def test_every_format_has_the_stated_size():
    assert {name: layout.block_bytes * 256 // layout.block_inputs for name, layout in FORMATS.items()} == BLOCK_BYTES
    assert packed_bytes(FORMATS["q4k"], 17, 512) == 3 * 2 * BLOCK_BYTES["q4k"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_values_equal_the_formula(name, n_out, n_in):
    q, fields = random_parts(name, n_out, n_in)
    matrix, (wanted, _, _, minimum) = pack(name, q, fields), reference(name, q, fields)
    bound = 2**-24 * (np.abs(wanted) + 2 * np.abs(minimum).repeat(GROUP, 1))
    assert (np.abs(decode(matrix).numpy() - wanted) <= bound).all()
    rows = torch.randint(n_out, (5, 3))
    assert torch.equal(decode(matrix, rows), decode(matrix)[rows])
    assert decode(matrix, rows[:0]).shape == (0, 3, n_in)


@pytest.mark.parametrize("name", FORMATS)
def test_layout_of_a_record(name):
    """One integer that differs from the rest, at row 3 and input 21, changes the byte and bits of the documentation."""
    layout, q = FORMATS[name], torch.zeros(8, FORMATS[name].block_inputs, dtype=torch.uint8)
    _, fields = random_parts(name, 8, layout.block_inputs)
    before = pack(name, q, fields).data
    q[3, 21] = 255 if layout.planes == (8,) else (1 << sum(layout.planes)) - 1
    changed = (pack(name, q, fields).data ^ before).nonzero().flatten().tolist()
    at = layout.header_bytes + sum(ROWS * dtype.itemsize for dtype in layout.record.values())
    places, bits = [], []
    for plane in layout.planes:
        byte, mask = {  # input 21: 4 * 5 + 1; 8 * 2 + 4 + 1; 16 * 1 + 4 * 1 + 1
            8: (5 * 32 + 4 * 3 + 1, 0xFF), 4: (2 * 32 + 4 * 3 + 1, 0xF0),
            2: (1 * 32 + 4 * 3 + 1, 0x0C), 1: (4 * 3 + 1, 1 << 5),
        }[plane]  # fmt: skip
        places.append(at + byte)
        bits.append(mask)
        at += ROWS * GROUP * plane // 8
    assert changed == places
    assert [int(pack(name, q, fields).data[place] ^ before[place]) for place in places] == bits


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_product_equals_its_definition_in_float64(name, n_out, n_in):
    q, fields = random_parts(name, n_out, n_in)
    values, integers, scale, minimum = reference(name, q, fields)
    x = torch.randn(3, 2, n_in, generator=torch.Generator().manual_seed(1)) * 5
    found = product(x, pack(name, q, fields)).numpy().reshape(6, n_out)
    groups = x.numpy().reshape(6, -1, GROUP)
    largest = np.abs(groups).max(-1)
    xq, xs = np.rint(groups * (np.float32(127) / largest)[..., None]), (largest / np.float32(127)).astype(np.float64)
    terms = np.einsum("ngi,ogi->nog", xq.astype(np.float64), integers) * scale * xs[:, None]
    minima = minimum * (xs * xq.sum(-1))[:, None]
    wanted, size = (terms + minima).sum(-1), (np.abs(terms) + np.abs(minima)).sum(-1)
    assert (np.abs(found - wanted) <= 2**-24 * (terms.shape[-1] * 2 + 2) * size).all()
    # The activations' quantization: each number of x is off by at most half a step, and 2^-23 of itself.
    step = np.einsum("ng,og->no", xs * (0.5 + 127 * 2**-22), np.abs(values).reshape(n_out, -1, GROUP).sum(-1))
    exact = x.numpy().reshape(6, -1).astype(np.float64) @ values.T
    assert (np.abs(found - exact) <= step + 2**-20 * size).all()


@pytest.mark.parametrize("name", ["q4", "q6k", "q4k"])
def test_a_result_depends_on_its_own_row_only(name):
    n_in, n_out = 512, TILE // 512 + 9  # more rows than one tile
    matrix = pack(name, *random_parts(name, n_out, n_in))
    x = torch.randn(7, n_in)
    together = product(x, matrix)
    assert torch.equal(torch.cat([product(row[None], matrix) for row in x]), together)
    x[3, 40], x[4, 41] = math.nan, -math.inf
    changed = product(x, matrix)
    assert changed[3:5].isnan().all()
    assert torch.equal(changed[[0, 1, 2, 5, 6]], together[[0, 1, 2, 5, 6]])


@pytest.mark.parametrize("native", [True, False])
def test_bias_and_dtype(native, monkeypatch):
    if not native:
        monkeypatch.setattr(packed_linear, "load_library", lambda: None)
    matrix, x = pack("q8", *random_parts("q8", 9, 64)), torch.randn(2, 64)
    bias = torch.randn(9)
    assert torch.equal(packed_product(x, matrix, bias), product(x, matrix) + bias)
    assert packed_product(x.bfloat16(), matrix, None).dtype == torch.bfloat16


def test_gradients_are_those_of_the_decoded_matrix():
    matrix, x, bias = pack("q8", *random_parts("q8", 9, 64)), torch.randn(2, 64), torch.randn(9)
    for t in (x, bias):
        t.requires_grad_()
    y = packed_product(x, matrix, bias)
    with torch.no_grad():
        assert torch.equal(packed_product(x, matrix, bias), y)
    found = torch.autograd.grad(y.sum(0).pow(2).sum(), (x, bias), 2 * torch.ones(()))
    want = torch.autograd.grad((x @ decode(matrix).T + bias), (x, bias), 4 * y.sum(0).expand_as(y))
    for a, b in zip(found, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


def test_assigned_state_is_used():
    layer, other = (PackedLinear(pack("q8", *random_parts("q8", 9, 64, seed)), None) for seed in (0, 1))
    x = torch.randn(2, 64)
    layer.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(layer(x), other(x))
    assert torch.equal(layer.weight, other.weight)


def test_packed_matrices_stay_on_the_cpu():
    layer = PackedLinear(pack("q8", *random_parts("q8", 9, 64)), torch.nn.Parameter(torch.randn(9)))
    x = torch.randn(2, 64)
    with pytest.raises(ConfigError, match="CPU only, got meta"):
        layer.to("meta")
    assert torch.allclose(layer.half()(x), product(x, layer.matrix) + layer.bias.float())


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-38, 3.7e-37, 3.8e-37, 1.0, 3e38, float(np.finfo(np.float32).max)])
def test_activations_of_any_size_are_quantized(largest):
    x = torch.linspace(-1, 1, GROUP) * largest
    q, scale = quantize_rows(x[None])
    assert q.isfinite().all()
    assert scale.isfinite().all()
    assert (q == q.round()).all()
    assert q.abs().max() <= 127
    error = ((q.double() * scale.double()[..., None]).flatten() - x.double()).abs().max()
    assert error <= (largest / 127 * (0.5 + 2**-15) if largest > 3.75e-37 else 3.75e-37)


FLOATS = hnp.arrays(np.float32, 3, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@given(FLOATS)
@settings(max_examples=500, deadline=None)
def test_fma_is_rounded_once(numbers):
    a, b, c = torch.from_numpy(numbers)
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    found = float(fma(a, b, c))
    if not math.isfinite(found):
        assert abs(exact) >= Fraction(2) ** 128 - Fraction(2) ** 103
        return
    error = abs(Fraction(found) - exact)
    with np.errstate(over="ignore"):
        near = [float(np.nextafter(np.float32(found), np.float32(end))) for end in (-np.inf, np.inf)]
    assert all(error <= abs(Fraction(one) - exact) for one in near if math.isfinite(one))


@pytest.mark.parametrize("tail", [2.0**-60, -(2.0**-60)])
def test_fma_of_a_sum_near_the_middle_of_two_floats(tail):
    """In float64 alone the tail is lost, and the tie is rounded to even."""
    a, b = torch.tensor(1 + 2.0**-12), torch.tensor(1 + 2.0**-12)  # a b = 1 + 2^-11 + 2^-24: a tie
    wanted = 1 + 2.0**-11 + (2.0**-23 if tail > 0 else 0)
    assert float(fma(a, b, torch.tensor(tail))) == wanted
    assert float(fma(-a, b, torch.tensor(-tail))) == -wanted

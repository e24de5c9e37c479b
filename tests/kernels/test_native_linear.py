"""The native products equal their definitions at every level of this CPU, for any number of rows and threads."""

import resource
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.kernels import packed
from glassformer.kernels.native import ops
from glassformer.kernels.packed import FORMATS, PackedMatrix

ROWS = (1, 2, 3, 4, 7, 8, 13, 32, 64)
INVARIANT_ROWS = (1, 2, 7, 32, 64)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def random_matrix(name: str, n_out: int, n_in: int, seed: int = 0) -> PackedMatrix:
    """Return a matrix of a format, with random integers and fields."""
    generator, layout = torch.Generator().manual_seed(seed), FORMATS[name]
    fields = {}
    for key, dtype in {**layout.header, **layout.record}.items():
        shape = (n_out, n_in // (256 if key in layout.header else 32))
        if key == "e":
            fields[key] = torch.randint(100, 140, shape, generator=generator)
        elif dtype.is_floating_point:
            fields[key] = torch.randn(shape, generator=generator) / 10
        else:
            low, high = (-128, 128) if dtype == torch.int8 else (0, 64)
            fields[key] = torch.randint(low, high, shape, generator=generator)
    top = 256 if layout.planes == (8,) else 1 << sum(layout.planes)
    q = torch.randint(0, top, (n_out, n_in), dtype=torch.uint8, generator=generator)
    return packed.pack(name, q, fields)


def random_rows(n: int, n_in: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, n_in, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n_out", "n_in"), [(1, 256), (19, 512), (40, 768), (8, 4352)])
def test_packed_product_equals_its_definition(isa, name, n_out, n_in):
    matrix, x, bias = random_matrix(name, n_out, n_in), random_rows(64, n_in), random_rows(1, n_out)[0]
    x[3, :32], x[5] = 0, x[5] * 1e-30
    want = packed.product(x, matrix)
    for rows in ROWS:
        assert torch.equal(ops.linear(x[:rows], matrix), want[:rows]), rows
    residual = random_rows(64, n_out, 2)
    assert torch.equal(ops.linear(x, matrix, bias, residual), residual + (want + bias))
    assert torch.equal(ops.linear(x, matrix, n_threads=1), want)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 30), st.integers(1, 3), st.integers(1, 12), st.integers(0, 9))
def test_packed_product_of_any_shape(name, n_out, n_blocks, rows, seed):
    n_in = FORMATS[name].block_inputs * n_blocks
    matrix, x = random_matrix(name, n_out, n_in, seed), random_rows(rows, n_in, seed + 1)
    assert torch.equal(ops.linear(x, matrix), packed.product(x, matrix))


@pytest.mark.parametrize("name", ["q8", "q4", "q6k", "mxfp4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_packed_product_of_non_finite_rows_is_nan(isa, name, value):
    matrix, x = random_matrix(name, 24, 256), random_rows(9, 256)
    x[4, 77] = value
    for rows in (x, x[2:6]):
        at = 4 if rows is x else 2
        y = ops.linear(rows, matrix)
        assert y[at].isnan().all()
        assert y[torch.arange(len(rows)) != at].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (19, 37), (40, 768), (100, 1100), (7, 2050), (5, 9000)])
def test_float_product_is_within_rounding_of_float64(isa, dtype, n_out, n_in):
    """Each of the 8 lanes adds n_in / 8 products, each rounded once; then 3 additions."""
    weight, x, bias = random_rows(n_out, n_in).to(dtype), random_rows(70, n_in), random_rows(1, n_out, 3)[0]
    want = x.double() @ weight.double().T + bias
    size = x.double().abs() @ weight.double().abs().T + bias.abs()
    y = ops.linear(x, weight, bias)
    assert ((y - want).abs() <= (n_in / 8 + 5) * 2**-24 * size).all()
    for rows in INVARIANT_ROWS:
        assert torch.equal(ops.linear(x[:rows], weight, bias), y[:rows]), rows
    assert torch.equal(ops.linear(x, weight, bias, n_threads=1), y)
    residual = random_rows(70, n_out, 4)
    assert torch.equal(ops.linear(x, weight, bias, residual), residual + y)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n_in", [70_001, 140_000, 140_001, 530_000])
def test_float_product_of_rows_wider_than_the_scratch_memory(isa, dtype, n_in):
    weight, x = random_rows(3, n_in).to(dtype), random_rows(5, n_in)
    want = x.double() @ weight.double().T
    y = ops.linear(x, weight)
    assert ((y - want).abs() <= (n_in / 8 + 5) * 2**-24 * (x.double().abs() @ weight.double().abs().T)).all()
    assert torch.equal(ops.linear(x[:1], weight), y[:1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's sizes of memory")
def test_threads_free_their_memory():
    """A thread has 4 MB of scratch memory until it ends."""
    x, weight = random_rows(1, 64), random_rows(64, 64)

    def megabytes(n):
        for _ in range(n):
            thread = threading.Thread(target=ops.linear, args=(x, weight))
            thread.start()
            thread.join()
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() >> 20

    first = megabytes(40)  # the first threads get memory that stays
    assert megabytes(100) - first < 200


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_float_product_of_unaligned_memory(isa, dtype):
    """Mapped files begin weights at any even byte, and rows may be a view."""
    storage = random_rows(1, 3 + 40 * 50)[0].to(dtype)
    weight, x = storage[3:].view(40, 50), random_rows(9, 51)[:, 1:]
    assert torch.equal(ops.linear(x, weight), ops.linear(x.contiguous(), weight.clone()))


def test_float_product_passes_nan_on(isa):
    x = random_rows(6, 40)
    x[2, 3], x[4, 39] = float("nan"), float("inf")
    y = ops.linear(x, random_rows(16, 40))
    assert y[2].isnan().all()
    assert not y[4].isfinite().any()
    assert y[[0, 1, 3, 5]].isfinite().all()


def test_levels_agree_bit_for_bit(levels):
    """Every instruction set computes the same numbers."""
    results = []
    for level in levels:
        level()
        results.append([ops.linear(random_rows(5, 256), random_matrix(name, 20, 256)) for name in FORMATS])
        results[-1] += [ops.linear(random_rows(n, 70), random_rows(20, 70).to(d)) for d in FLOATS for n in (2, 9)]
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("name", FORMATS)
def test_looked_up_rows_have_the_bits_of_decoded_ones(isa, name):
    matrix, ids = random_matrix(name, 37, 512), torch.tensor([[0, 36, 8], [7, 7, 31]])
    assert torch.equal(ops.look_up(ids, matrix), packed.decode(matrix, ids))
    with pytest.raises(IndexError, match="from 0 to 36, got 0 to 37"):
        ops.look_up(torch.tensor([0, 37]), matrix)

"""GGUF blocks repacked in panels, compared with the `gguf` package's own decoding, bit for bit."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import CheckpointError
from glassformer.formats.gguf import blocks
from glassformer.formats.gguf.blocks import PACKINGS, pack_blocks
from glassformer.kernels.packed import FORMATS, decode

KINDS = [kind for kind in PACKINGS if kind in GGMLQuantizationType.__members__]  # the others are of other checkpoints
HALF_AT = dict.fromkeys(KINDS, (0,)) | dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))
HALF_AT |= {"Q6_K": (208,), "MXFP4": ()}  # bytes of a block where a float16 begins
EXTREMES = np.array([0, -0.0, 6e-8, -6e-8, 65504, -65504, 1, -3e-5], np.float16)


def random_rows(kind, n_out, n_blocks, seed):
    """Return random blocks [n_out, bytes per row] whose scales are finite, some of them extreme."""
    rng, packing = np.random.default_rng(seed), PACKINGS[kind]
    raw = rng.integers(0, 256, (n_out, n_blocks, packing.nbytes), dtype=np.uint8)
    for at in HALF_AT[kind]:
        scales = rng.standard_normal((n_out, n_blocks, 1)).astype(np.float16)
        scales = np.where(rng.random(scales.shape) < 0.3, rng.choice(EXTREMES, scales.shape), scales)
        raw[..., at : at + 2] = scales.view(np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = rng.integers(0, 253, raw.shape[:2])
    return raw.reshape(n_out, -1)


def test_every_type_has_a_format_and_the_size_of_ggml():
    for kind in KINDS:
        packing = PACKINGS[kind]
        assert GGML_QUANT_SIZES[GGMLQuantizationType[kind]] == (packing.size, packing.nbytes)
        assert FORMATS[packing.format].source == f"GGUF {kind}"
        assert packing.size == FORMATS[packing.format].block_inputs


@pytest.mark.parametrize("kind", KINDS)
@given(st.sampled_from([1, 7, 8, 9, 17]), st.sampled_from([1, 2, 5]), st.integers(0, 1 << 30))
@settings(max_examples=15, deadline=None)
def test_values_equal_those_of_the_gguf_package(kind, n_out, n_blocks, seed):
    rows = random_rows(kind, n_out, n_blocks, seed)
    wanted = dequantize(rows, GGMLQuantizationType[kind])
    matrix = pack_blocks(kind, torch.from_numpy(rows))
    assert matrix.shape == wanted.shape
    assert np.array_equal(decode(matrix).numpy(), wanted)
    some = torch.from_numpy(np.random.default_rng(seed).integers(0, n_out, 5))
    assert np.array_equal(decode(matrix, some).numpy(), wanted[some.numpy()])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_several_chunks(kind, monkeypatch):
    monkeypatch.setattr(blocks, "CHUNK_BYTES", 16 * PACKINGS[kind].nbytes)  # a panel or two at a time
    rows = random_rows(kind, 43, 1, 0)
    matrix = pack_blocks(kind, torch.from_numpy(rows))
    assert np.array_equal(decode(matrix).numpy(), dequantize(rows, GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_that_the_gguf_package_quantized(kind):
    values = np.random.default_rng(0).standard_normal((9, 96)).astype(np.float32)
    rows = quantize(values, GGMLQuantizationType[kind])
    matrix = pack_blocks(kind, torch.from_numpy(rows))
    assert np.array_equal(decode(matrix).numpy(), dequantize(rows, GGMLQuantizationType[kind]))
    assert matrix.data.numel() == 16 * 96 // 32 * PACKINGS[kind].nbytes  # the bytes of the file, plus 7 rows of zeros


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_raise(kind, bad):
    for at in HALF_AT[kind] or (0,):
        rows = random_rows(kind, 11, 2, 0)
        block = rows.reshape(11, 2, -1)[9, 1]
        if kind == "MXFP4":
            block[0] = 255 if np.isnan(bad) else 253
        else:
            block[at : at + 2] = np.array([bad], np.float16).view(np.uint8)
        with pytest.raises(CheckpointError, match=r"blk\.0\.x: block 1 of row 9 has a scale .* NaN or infinite"):
            pack_blocks(kind, torch.from_numpy(rows), "blk.0.x")

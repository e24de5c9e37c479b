"""Quantized matrices that stay quantized: their blocks hold the same numbers, and the others say why they have none."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_mxfp4 import save_mxfp4_model
from tiny import assert_near, random_ids, run
from tiny_quantized import awq_parts, gptq_parts, int8_parts, packed_parts, random_integers, save_quantized

from glassformer.errors import CheckpointError
from glassformer.formats import awq, compressed_tensors, gptq, load_decoder, open_checkpoint
from glassformer.formats.compressed_tensors import INTEGER, PACKED, Scheme
from glassformer.formats.gguf.blocks import pack_blocks
from glassformer.formats.load import quantized_matrices
from glassformer.formats.mxfp4 import Mxfp4Tensor, decode
from glassformer.formats.reader import ReadBuffer, TensorReader
from glassformer.formats.safetensors_file import SafetensorsFile
from glassformer.kernels import packed
from glassformer.kernels.packed_linear import packed_modules


def open_matrix(folder, parts, unpack):
    save_file({f"x.{name}": part for name, part in parts.items()}, folder / "x.safetensors")
    reader = TensorReader([SafetensorsFile(folder / "x.safetensors")])
    unpack(reader)
    return reader.files["x.weight"]


def stored(name, bits, size, symmetric, ordered=False):
    """Return a random matrix of 136 rows, its parts in a format and the format's `unpack`."""
    matrix = random_integers((136, 384), bits, size, symmetric=symmetric, ordered=ordered)
    if name == "gptq":
        options = {"bits": bits, "group_size": size, "minus_one": True, "ordered": ordered}
        return matrix, gptq_parts(matrix, True), partial(gptq.unpack, **options)
    if name == "awq":
        return matrix, awq_parts(matrix), partial(awq.unpack, group_size=size)
    layout, parts = (PACKED, packed_parts) if name == "packed" else (INTEGER, int8_parts)
    scheme = Scheme(layout, bits, "channel" if size == -1 else "group", size, symmetric=symmetric)
    return matrix, parts(matrix, symmetric), partial(compressed_tensors.unpack, schemes=[scheme])


@pytest.mark.parametrize(
    ("name", "bits", "size", "symmetric", "kind"),
    [
        ("gptq", 4, 64, False, "Q4Z"),
        ("gptq", 4, -1, True, "Q4Z"),
        ("gptq", 8, 32, True, "Q8F"),
        ("awq", 4, 128, False, "Q4Z"),
        ("packed", 4, 32, False, "Q4Z"),
        ("packed", 4, 128, True, "Q4Z"),
        ("packed", 8, 96, True, "Q8F"),
        ("plain", 8, -1, True, "Q8F"),
    ],
)
def test_blocks_hold_the_same_numbers(name, bits, size, symmetric, kind, tmp_path, monkeypatch):
    """Exactly, in several tiles, the last of which does not fill a panel of 8 rows twice."""
    monkeypatch.setattr("glassformer.formats.integer_matrix.TILE", 64 * 384)
    matrix, parts, unpack = stored(name, bits, size, symmetric)
    file = open_matrix(tmp_path, parts, unpack)
    assert file.block_type("x.weight") == kind
    rows = list(file.block_rows("x.weight", ReadBuffer()))
    assert [first for first, _ in rows] == [0, 64, 128]
    blocks = torch.cat([part for _, part in rows])
    assert blocks.nbytes < 136 * 384 * (0.68 if bits == 4 else 1.13)
    np.testing.assert_array_equal(packed.decode(pack_blocks(kind, blocks)).double().numpy(), matrix.weight)


@pytest.mark.parametrize(
    ("name", "bits", "size", "symmetric", "ordered", "why"),
    [
        ("gptq", 4, 64, True, True, "GPTQ INT4 with desc_act"),
        ("gptq", 8, 64, False, False, "GPTQ INT8 with zero points"),
        ("awq", 4, 48, False, False, "AWQ INT4 with groups of 48"),
        ("packed", 8, -1, False, False, "compressed-tensors INT8 with zero points"),
        ("plain", 8, 16, True, False, "compressed-tensors INT8 with groups of 16"),
    ],
)
def test_matrices_without_blocks_say_why(name, bits, size, symmetric, ordered, why, tmp_path):
    _, parts, unpack = stored(name, bits, size, symmetric, ordered)
    file = open_matrix(tmp_path, parts, unpack)
    assert file.block_type("x.weight") is None
    assert file.stored_type("x.weight") == why


def test_mxfp4_blocks_hold_the_same_numbers(tmp_path):
    """Random bytes and scales: 3 experts of 8 rows."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 8, 6, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(2, 250, (3, 8, 6), generator=generator, dtype=torch.uint8)
    save_file({"b": blocks, "s": scales}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    tensor = Mxfp4Tensor(file, "b", file, "s")
    rows = list(tensor.block_rows("b", ReadBuffer()))
    assert [first for first, _ in rows] == [0, 1, 2]
    for expert, part in rows:
        found = packed.decode(pack_blocks("MXFP4", part[0]))
        assert torch.equal(found, decode(blocks[expert], scales[expert]).float())


def save_model_of(folder, family, settings, name, bits, size, symmetric, ordered=False):
    def make(shape, seed, magnitude):
        matrix = random_integers(
            shape, bits, size, symmetric=symmetric, ordered=ordered, seed=seed, magnitude=magnitude
        )  # fmt: skip
        parts = {"gptq": partial(gptq_parts, minus_one=True), "awq": awq_parts}.get(name)
        if parts is None:
            parts = partial({"packed": packed_parts, "plain": int8_parts}[name], symmetric=symmetric)
        return parts(matrix), matrix.weight

    save_quantized(folder, family, settings, make)


INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
W8A8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT8}},
}  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("family", "settings", "stored_as", "format", "n"),
    [
        ("qwen3", GPTQ, ("gptq", 4, 64, False), "q4z", 21),
        ("phi3", GPTQ, ("gptq", 4, 64, False), "q4z", 21),  # one matrix for q, k, v and one for gate, up
        ("mixtral", AWQ, ("awq", 4, 32, False), "q4z", 66),
        ("qwen3", W8A8, ("plain", 8, -1, True), "q8f", 21),
    ],
    ids=str,
)
def test_packed_model_has_the_decoded_weights(family, settings, stored_as, format, n, tmp_path, monkeypatch):
    """And, with activations that are not quantized, the decoded model's logits."""
    save_model_of(tmp_path, family, settings, *stored_as)
    decoded, model = load_decoder(tmp_path), load_decoder(tmp_path, packed=True)
    modules = dict(packed_modules(model))
    assert len(modules) == n
    assert {module.format for module in modules.values()} == {format}
    for name, module in modules.items():
        assert torch.equal(module.weight, decoded.get_submodule(name).weight), name

    def exact_product(x, matrix, bias):
        return F.linear(x, packed.decode(matrix), bias)

    monkeypatch.setattr("glassformer.kernels.packed_linear.packed_product", exact_product)
    ids = random_ids(model.config, 1, 9)
    assert_near(run(model, ids), run(decoded, ids))
    [found] = quantized_matrices(open_checkpoint(tmp_path))
    assert (found.n, found.packs) == (n, True)


def test_matrices_in_another_order_stay_decoded(tmp_path):
    """The reason is in the name of the type, which `show` prints."""
    save_model_of(tmp_path, "qwen3", GPTQ | {"desc_act": True}, "gptq", 4, 64, False, True)
    assert not list(packed_modules(load_decoder(tmp_path, packed=True)))
    [found] = quantized_matrices(open_checkpoint(tmp_path))
    assert (found.type, found.packs) == ("GPTQ INT4 with desc_act", False)


def test_packed_matrix_with_nan_scales_raises(tmp_path):
    save_model_of(tmp_path, "qwen3", GPTQ, "gptq", 4, 64, False)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.scales"
    tensors[name] = tensors[name] * torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} has scales that are NaN or infinite"):
        load_decoder(tmp_path, packed=True)


def test_packed_experts_have_the_decoded_weights(tmp_path):
    """MXFP4: gate and up, whose rows alternate in the file, and down."""
    save_mxfp4_model(tmp_path)
    decoded, model = load_decoder(tmp_path), load_decoder(tmp_path, packed=True)
    modules = dict(packed_modules(model))
    assert len(modules) == 3 * 6 * 3
    for name, module in modules.items():
        assert torch.equal(module.weight, decoded.get_submodule(name).weight.float()), name

"""compressed-tensors: decoding against loops over the definition, complete models, and parts that do not fit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_near, random_ids, run
from tiny_quantized import int8_parts, load_changed, packed_parts, random_integers, save_quantized

from glassformer.errors import CheckpointError, ConfigError
from glassformer.families.common.family import ConfigFields
from glassformer.formats import load_decoder, save_model
from glassformer.formats.compressed_tensors import read
from glassformer.formats.reader import TensorReader
from glassformer.formats.safetensors_file import SafetensorsFile


def settings(layout="pack-quantized", **weights):
    """Return a `quantization_config` with one group."""
    stated = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64, "dynamic": False,
               "observer": "minmax", "observer_kwargs": {}, "actorder": None, "block_structure": None}  # fmt: skip
    group = {"targets": ["Linear"], "input_activations": None, "output_activations": None, "weights": stated | weights}
    return {
        "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
        "global_compression_ratio": None, "sparsity_config": {}, "transform_config": {}, "version": "0.12.2",
    }  # fmt: skip


def decode(folder, parts, *, module="x", **options):
    """Return the decoded matrix of one layer's parts, read at once and in rows."""
    save_file({f"{module}.{name}": part for name, part in parts.items()}, folder / "x.safetensors")
    reader = TensorReader([SafetensorsFile(folder / "x.safetensors")])
    stated = settings(**options)
    stated.pop("quant_method")
    read(ConfigFields(stated, "config.json"))(reader)
    assert list(reader) == [f"{module}.weight"]
    rows = torch.cat([rows for _, rows in reader.rows(f"{module}.weight")])
    assert torch.equal(rows, reader[f"{module}.weight"])
    return rows.double().numpy()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("strategy", [("group", 32), ("group", 128), ("channel", None)], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_equals_definition(bits, strategy, symmetric, tmp_path, monkeypatch):
    """Exactly, also in several tiles, and for rows and outputs that do not fill their last word."""
    monkeypatch.setattr("glassformer.formats.integer_matrix.TILE", 64 * 384)
    name, size = strategy
    for shape in [(136, 384), *([(131, 250)] if size is None else [])]:
        matrix = random_integers(shape, bits, size or -1, symmetric=symmetric)
        options = {"num_bits": bits, "strategy": name, "group_size": size, "symmetric": symmetric}
        found = decode(tmp_path, packed_parts(matrix, symmetric), **options)
        np.testing.assert_array_equal(found, matrix.weight)


def test_stored_group_of_each_input(tmp_path):
    """actorder = "group"."""
    matrix = random_integers((64, 256), 4, 64, ordered=True)
    parts = packed_parts(matrix, False) | {"weight_g_idx": torch.from_numpy(matrix.group).int()}
    np.testing.assert_array_equal(decode(tmp_path, parts, symmetric=False, actorder="group"), matrix.weight)
    del parts["weight_g_idx"]
    with pytest.raises(CheckpointError, match=r"x cannot be decoded without x.weight_g_idx"):
        decode(tmp_path, parts, symmetric=False, actorder="group")


@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("layout", ["int-quantized", "naive-quantized"])
def test_int8_equals_definition(strategy, symmetric, layout, tmp_path):
    size = 64 if strategy == "group" else None
    matrix = random_integers((72, 128), 8, size or -1, symmetric=symmetric)
    if strategy == "tensor":
        matrix.scale[:], matrix.zero[:] = matrix.scale[0], matrix.zero[0]
    parts = int8_parts(matrix, symmetric)
    options = {"layout": layout, "num_bits": 8, "strategy": strategy, "group_size": size, "symmetric": symmetric}
    if strategy == "tensor":
        scalars = {name: part if name == "weight" else part[0, 0] for name, part in parts.items()}
        np.testing.assert_array_equal(decode(tmp_path, scalars, **options), matrix.weight)
        parts = {name: part if name == "weight" else part[0].clone() for name, part in parts.items()}
    np.testing.assert_array_equal(decode(tmp_path, parts, **options), matrix.weight)


@pytest.mark.parametrize(
    ("strategy", "shape"), [("tensor", (1,)), ("tensor", ()), ("channel", (130, 1)), ("block", (3, 2))], ids=str
)
def test_fp8_equals_definition(strategy, shape, tmp_path):
    """Every finite E4M3 number, times the scale of its matrix, row or block of 64 x 128."""
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    weight = codes.repeat(130).view(130, -1).view(torch.float8_e4m3fn)
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    block = {"block_structure": [64, 128]} if strategy == "block" else {}
    options = {"num_bits": 8, "type": "float", "group_size": None, "strategy": strategy} | block
    found = decode(tmp_path, {"weight": weight, "weight_scale": scale}, layout="float-quantized", **options)
    for o in range(130):
        for i in range(0, 254, 11):
            at = {(): (), (1,): (0,), (130, 1): (o, 0), (3, 2): (o // 64, i // 128)}[shape]
            assert found[o, i] == float(weight[o, i].float() * scale[at])


def packed(bits, size, symmetric):
    def one(shape, seed, magnitude):
        matrix = random_integers(shape, bits, size, symmetric=symmetric, seed=seed, magnitude=magnitude)
        return packed_parts(matrix, symmetric), matrix.weight

    return one


def int8(shape, seed, magnitude):
    """W8A8 with static activations, whose scales are not read."""
    matrix = random_integers(shape, 8, -1, symmetric=True, seed=seed, magnitude=magnitude)
    return int8_parts(matrix, True) | {"input_scale": torch.ones(1), "input_zero_point": torch.zeros(1)}, matrix.weight


def fp8(shape, seed, magnitude):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(shape, generator=generator) * 100).to(torch.float8_e4m3fn)
    scale = torch.rand(shape[0], 1, generator=generator) * magnitude / 448
    return {"weight": weight, "weight_scale": scale}, (weight.float() * scale).numpy()


ACTIVATIONS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
W8A8 = settings("int-quantized", num_bits=8, strategy="channel", group_size=None)
W8A8["config_groups"]["group_0"]["input_activations"] = ACTIVATIONS
FP8 = settings("float-quantized", num_bits=8, type="float", strategy="channel", group_size=None)


@pytest.mark.parametrize("family", ["qwen3", "phi3"])  # phi3: one matrix for q, k, v and one for gate, up
@pytest.mark.parametrize(
    ("stated", "make"),
    [
        (settings(), packed(4, 64, True)),
        (settings(symmetric=False, group_size=32), packed(4, 32, False)),
        (settings(num_bits=8, strategy="channel", group_size=None), packed(8, -1, True)),
        (W8A8, int8),
        (FP8, fp8),
    ],
    ids=["int4", "int4 with zeros", "packed int8", "W8A8", "FP8"],
)
def test_model_equals_decoded_model(family, stated, make, tmp_path):
    plain, _ = save_quantized(tmp_path, family, stated, make)
    model = load_decoder(tmp_path)
    save_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    ids = random_ids(model.config, 1, 9)
    assert_near(run(load_decoder(tmp_path / "again"), ids), run(model, ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ct")
    return folder, save_quantized(folder, "qwen3", settings(symmetric=False), packed(4, 64, False))[1]


NAME = "model.layers.1.self_attn.o_proj"


def test_matrices_of_two_schemes(folder, tmp_path):
    """Each matrix has the scheme of its group; its shapes show which."""
    stated = settings(symmetric=False)
    eight = settings(num_bits=8, strategy="channel", group_size=None)["config_groups"]["group_0"]
    stated["config_groups"]["group_1"] = eight | {"targets": ["re:.*o_proj"]}
    matrix = random_integers((128, 128), 8, -1, symmetric=True)
    parts = {f"{NAME}.{part}": value for part, value in packed_parts(matrix, True).items()}
    model = load_changed(folder, tmp_path, {f"{NAME}.weight_zero_point": None} | parts, stated)
    weight = model.blocks[1].attn.o.weight.detach().double().numpy()
    np.testing.assert_array_equal(weight, matrix.weight)
    with pytest.raises(CheckpointError, match=r"o_proj is stored as float-quantized, but config.json states only pack"):
        load_changed(folder, tmp_path, {
            f"{NAME}.weight_packed": None, f"{NAME}.weight_shape": None, f"{NAME}.weight_zero_point": None,
            f"{NAME}.weight": torch.zeros(128, 128, dtype=torch.float8_e4m3fn),
            f"{NAME}.weight_scale": torch.ones(128, 1),
        })  # fmt: skip


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("weight_scale", None, r"o_proj.weight_packed cannot be decoded without .*o_proj.weight_scale$"),
        ("weight_shape", None, r"o_proj.weight_packed cannot be decoded without .*o_proj.weight_shape$"),
        ("weight_zero_point", None, r"o_proj cannot be decoded without .*o_proj.weight_zero_point$"),
        ("weight_scale", lambda t: t[:, :1], r"o_proj.weight_scale must have shape \[128, 2\]: .*, got \[128, 1\]"),
        ("weight_scale", lambda t: t * torch.nan, r"o_proj.weight_scale has scales that are NaN or infinite"),
        ("weight_scale", lambda t: t.int(), r"o_proj.weight_scale must have type F32 or BF16 .*, got I32"),
        ("weight_zero_point", lambda t: t.T, r"o_proj.weight_zero_point must have shape \[16, 2\]: .*, got \[2, 16\]"),
        ("weight_zero_point", lambda t: t.char(), r"o_proj.weight_zero_point must have type I32, got I8"),
        ("weight_packed", lambda t: t[:, :4], r"o_proj.weight_packed must have shape \[128, 16\]: .*, got \[128, 4\]"),
        ("weight_packed", lambda t: t.long(), r"o_proj.weight_packed must have type I32, got I64"),
        ("weight_shape", lambda t: t * -1, r"o_proj.weight_packed must have shape \[-128, "),
        ("weight_shape", lambda t: t[:1], r"o_proj.weight_shape must have shape \[2\], got \[1\]"),
        ("weight_shape", lambda t: t * 1.0, r"o_proj.weight_shape must have type I64 or I32, got F32"),
        ("weight", lambda _: torch.zeros(128, 128), r"o_proj.weight is stored twice"),
    ],
)
def test_parts_that_do_not_fit_raise(part, change, why, folder, tmp_path):
    name = f"{NAME}.{part}"
    with pytest.raises(CheckpointError, match=why):
        load_changed(folder, tmp_path, {name: None if change is None else change(folder[1].get(name))})


@pytest.mark.parametrize(
    ("kind", "dtype", "wrong_shape"),
    [
        ("int", torch.int8, r"must have shape \[8, 1\]: one scale per channel, got \[8\]"),
        ("float", torch.float8_e4m3fn, r"must hold a scale for each block of 1 x 32 .*, so \[8, 1\], got \[8\]"),
    ],
    ids=["int", "float"],
)
def test_scales_of_rows_that_do_not_fit_raise(kind, dtype, wrong_shape, tmp_path):
    weight = {"weight": torch.zeros(8, 32).to(dtype)}
    options = {"layout": f"{kind}-quantized", "num_bits": 8, "type": kind, "strategy": "channel", "group_size": None}
    with pytest.raises(CheckpointError, match=r"x.weight cannot be decoded without x.weight_scale"):
        decode(tmp_path, weight, **options)
    with pytest.raises(CheckpointError, match=f"x.weight_scale {wrong_shape}"):
        decode(tmp_path, weight | {"weight_scale": torch.ones(8)}, **options)
    with pytest.raises(CheckpointError, match=r"x.weight_scale has scales that are NaN or infinite"):
        decode(tmp_path, weight | {"weight_scale": torch.full((8, 1), torch.inf)}, **options)


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        (settings("nvfp4-pack-quantized"), r"format = 'nvfp4-pack-quantized' is not supported, only pack-"),
        (settings("dense"), "group_0: format = 'dense' is not supported"),
        (settings(num_bits=3), r"group_0.weights: num_bits = 3 is not supported, only 4, 8"),
        (settings("int-quantized"), r"num_bits = 4 is not supported, only 8"),
        (settings(type="float"), r"type = 'float' is not supported, only 'int'"),
        (settings(strategy="tensor"), r"strategy = 'tensor' is not supported, only channel, group"),
        (settings(group_size=0), r"group_size must be a whole number of at least 1"),
        (settings(actorder="random"), r"actorder = 'random' is not supported, only None, False, 'weight'"),
        (settings(dynamic=True), r"dynamic = True is not supported, only False"),
        (settings("float-quantized", num_bits=8, type="float", strategy="block", group_size=None),
         r"block_structure must be two sizes, \[rows, columns\], got None"),
        (settings() | {"sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparsity_config = .* is not supported"),
        (settings() | {"transform_config": {"config_groups": {"u": {}}}}, r"transform_config = .* is not supported"),
        (settings() | {"config_groups": {"W4A16": ["Linear"]}}, r"config_groups must map names to objects"),
        (settings() | {"config_groups": {}}, r"config_groups must map names"),
        (settings() | {"config_groups": {"a": {"weights": None}}}, r"a: weights must be an object, got None"),
        (settings(rotated=True), r"weights: keys this family does not understand: rotated"),
    ],
    ids=range(16),
)  # fmt: skip
def test_unsupported_settings_raise(stated, why, folder, tmp_path):
    with pytest.raises(ConfigError, match=why):
        load_changed(folder, tmp_path, {}, stated)

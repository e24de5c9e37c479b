"""AWQ weights: decoding against loops over the definition, complete models, and parts that do not fit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_near, random_ids, run
from tiny_quantized import awq_parts, load_changed, random_integers, save_quantized

from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import load_decoder, save_model
from glassformer.formats.awq import unpack
from glassformer.formats.reader import TensorReader
from glassformer.formats.safetensors_file import SafetensorsFile

SETTINGS = {
    "quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True,
    "modules_to_not_convert": None,
}  # fmt: skip


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_decode_equals_definition(group_size, tmp_path, monkeypatch):
    """Exactly, also in several tiles."""
    matrix = random_integers((136, 256), 4, group_size)
    save_file({f"x.{name}": part for name, part in awq_parts(matrix).items()}, tmp_path / "x.safetensors")
    reader = TensorReader([SafetensorsFile(tmp_path / "x.safetensors")])
    unpack(reader, group_size=group_size)
    np.testing.assert_array_equal(reader["x.weight"].double().numpy(), matrix.weight)
    monkeypatch.setattr("glassformer.formats.integer_matrix.TILE", 64 * 256)
    parts = list(reader.rows("x.weight"))
    assert [first for first, _ in parts] == [0, 64, 128]
    assert torch.equal(torch.cat([rows for _, rows in parts]), reader["x.weight"])


def make(shape, seed, magnitude):
    matrix = random_integers(shape, 4, 64, seed=seed, magnitude=magnitude)
    return awq_parts(matrix), matrix.weight


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_awq_model_equals_decoded_model(family, tmp_path):
    plain, _ = save_quantized(tmp_path, family, SETTINGS, make)
    model = load_decoder(tmp_path)
    save_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    ids = random_ids(model.config, 1, 9)
    assert_near(run(load_decoder(tmp_path / "again"), ids), run(model, ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("awq")
    return folder, save_quantized(folder, "llama", SETTINGS, make)[1]


NAME = "model.layers.1.self_attn.o_proj"


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("scales", None, r"o_proj.qweight cannot be decoded without .*o_proj.scales$"),
        ("scales", lambda t: t[:, :64], r"o_proj.scales must have shape \[2, 128\]: .*, got \[2, 64\]"),
        ("scales", lambda t: t / 0, r"o_proj.scales has scales that are NaN or infinite"),
        ("qzeros", lambda t: t[:1], r"o_proj.qzeros must have shape \[2, 16\]: .*, got \[1, 16\]"),
        ("qweight", lambda t: t.short(), r"o_proj.qweight must have type I32, got I16"),
        ("qweight", lambda t: t[:100], r"o_proj.weight has rows of 100 inputs, which groups of 64 do not divide"),
        ("qweight", lambda t: t.T, r"o_proj.weight has rows of 16 inputs, which groups of 64 do not divide"),
    ],
)
def test_parts_that_do_not_fit_raise(part, change, why, folder, tmp_path):
    value = None if change is None else change(folder[1][f"{NAME}.{part}"])
    with pytest.raises(CheckpointError, match=why):
        load_changed(folder, tmp_path, {f"{NAME}.{part}": value})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"bits": 8}, "bits = 8 is not supported, only 4"),
        ({"version": "gemv"}, "version = 'gemv' is not supported, only 'gemm', 'GEMM'"),
        ({"version": "GEMM", "group_size": -2}, "group_size must be .*, got -2"),
        ({"backend": "llm-awq"}, "backend = 'llm-awq' is not supported, only AutoAWQ's layout 'gemm'"),
        ({"zero_point": 1}, "zero_point must be true or false, got 1"),
        ({"krot": 8}, "keys this family does not understand: krot"),
    ],
    ids=str,
)
def test_unsupported_settings_raise(settings, why, folder, tmp_path):
    with pytest.raises(ConfigError, match=why):
        load_changed(folder, tmp_path, {}, settings)
    if "krot" in settings:
        load_changed(folder, tmp_path, {}, settings, ignore_keys=("krot",))

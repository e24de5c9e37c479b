"""GPTQ weights: decoding against loops over the definition, complete models, and parts that do not fit."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_near, random_ids, run, tiny
from tiny_quantized import gptq_parts, load_changed, random_integers, save_quantized

from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import load_decoder, save_model
from glassformer.formats.gptq import unpack
from glassformer.formats.reader import TensorReader
from glassformer.formats.safetensors_file import SafetensorsFile

SETTINGS = {
    "quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False, "damp_percent": 0.01,
    "true_sequential": True, "static_groups": False, "checkpoint_format": "gptq", "model_name_or_path": None,
}  # fmt: skip


def decode(folder, parts, **options):
    """Return the decoded matrix of one layer's parts."""
    save_file({f"x.{name}": part for name, part in parts.items()}, folder / "x.safetensors")
    reader = TensorReader([SafetensorsFile(folder / "x.safetensors")])
    unpack(reader, **{"bits": 4, "group_size": 64, "minus_one": True, "ordered": False} | options)
    assert list(reader) == ["x.weight"]
    rows = torch.cat([rows for _, rows in reader.rows("x.weight")])
    assert torch.equal(rows, reader["x.weight"])
    assert rows.shape == reader.shape("x.weight")
    return rows.double().numpy()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("minus_one", [True, False], ids=["gptq", "gptq_v2"])
def test_decode_equals_definition(bits, group_size, symmetric, minus_one, tmp_path):
    """Exactly: a scale of 11 bits times an integer of 9 bits fits float32. Asymmetric zero points include 0."""
    matrix = random_integers((72, 128), bits, group_size, symmetric=symmetric)
    parts = gptq_parts(matrix, minus_one)
    found = decode(tmp_path, parts, bits=bits, group_size=group_size, minus_one=minus_one)
    np.testing.assert_array_equal(found, matrix.weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_in_another_order(bits, tmp_path):
    """desc_act: g_idx names the group of each input. Without g_idx, groups are neighbouring inputs."""
    matrix = random_integers((40, 256), bits, 64, ordered=True)
    options = {"bits": bits, "ordered": True}
    np.testing.assert_array_equal(decode(tmp_path, gptq_parts(matrix, True), **options), matrix.weight)
    matrix.group = np.arange(256) // 64
    found = decode(tmp_path, gptq_parts(matrix, True, g_idx=False), bits=bits)
    np.testing.assert_array_equal(found, matrix.weight)


def test_matrix_of_several_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr("glassformer.formats.integer_matrix.TILE", 64 * 128)
    matrix = random_integers((200, 128), 4, 32)
    np.testing.assert_array_equal(decode(tmp_path, gptq_parts(matrix, True), group_size=32), matrix.weight)


def make(bits, group_size, minus_one, ordered):
    def one(shape, seed, magnitude):
        matrix = random_integers(shape, bits, group_size, ordered=ordered, seed=seed, magnitude=magnitude)
        return gptq_parts(matrix, minus_one), matrix.weight

    return one


@pytest.mark.parametrize("family", ["qwen3", "phi3"])  # phi3: one matrix for q, k, v and one for gate, up
@pytest.mark.parametrize(
    ("changes", "options"),
    [({}, {}), ({"bits": 8, "desc_act": True, "checkpoint_format": "gptq_v2"}, {"dtype": torch.bfloat16})],
    ids=["4 bits", "8 bits, v2, desc_act"],
)
def test_gptq_model_equals_decoded_model(family, changes, options, tmp_path):
    settings = SETTINGS | changes
    one = make(settings["bits"], 64, settings["checkpoint_format"] == "gptq", settings["desc_act"])
    plain, _ = save_quantized(tmp_path, family, settings, one)
    model = load_decoder(tmp_path, **options)
    save_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(again[name].float(), value.to(options.get("dtype", torch.float32)).float()), name
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())
    ids = random_ids(model.config, 1, 9)
    assert_near(run(load_decoder(tmp_path / "again").float(), ids), run(model.float(), ids))


def test_square_matrices_of_gpt2(tmp_path):
    """GPT-2 stores [in, out], but GPTQ's parts of its matrices decode to [out, in]."""
    sizes = {f"layers.{i}.{path}": n for i in range(3) for path, n in (("mlp.d_ff", 64), ("attention.head_dim", 16))}
    save_model(tiny("gpt2", d_model=64, **sizes), tmp_path / "plain")
    plain, tensors = load_file(tmp_path / "plain/model.safetensors"), {}
    for name, value in plain.items():
        module, _, last = name.rpartition(".")
        if last == "weight" and module.endswith((".c_attn", ".c_proj", ".c_fc")):
            matrix = random_integers(tuple(value.T.shape), 4, 32, magnitude=0.3)
            plain[name] = torch.from_numpy(matrix.weight.T.copy()).float()
            tensors |= {f"{module}.{part}": t for part, t in gptq_parts(matrix, True).items()}
        else:
            tensors[name] = value
    assert plain["transformer.h.0.attn.c_proj.weight"].shape == (64, 64)
    save_file(plain, tmp_path / "plain/model.safetensors")
    raw = json.loads((tmp_path / "plain/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"quantization_config": SETTINGS | {"group_size": 32}}))
    save_file(tensors, tmp_path / "model.safetensors")
    ids = random_ids(load_decoder(tmp_path).config, 1, 9)
    assert torch.equal(run(load_decoder(tmp_path), ids), run(load_decoder(tmp_path / "plain"), ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gptq")
    return folder, save_quantized(folder, "qwen3", SETTINGS, make(4, 64, True, False))[1]


NAME = "model.layers.1.self_attn.o_proj"


def test_parts_in_several_files_and_pickled(folder, tmp_path):
    """Sharded safetensors without an index, and `pytorch_model.bin`."""
    source, tensors = folder
    plain = load_decoder(source)
    for kind in ("shards", "pickled"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text((source / "config.json").read_text())
    names = sorted(tensors)
    for i in range(3):
        shard = {name: tensors[name] for name in names[i::3]}
        save_file(shard, tmp_path / f"shards/model-{i + 1:05}-of-00003.safetensors")
    torch.save(tensors, tmp_path / "pickled/pytorch_model.bin")
    for kind in ("shards", "pickled"):
        found = load_decoder(tmp_path / kind)
        for (name, ours), theirs in zip(found.named_parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs), name


def test_biases_of_zeros_that_the_model_lacks(folder, tmp_path):
    """Early writers store a bias for every quantized matrix."""
    name = "model.layers.1.mlp.down_proj.bias"
    assert name not in folder[1]
    load_changed(folder, tmp_path, {name: torch.zeros(128, dtype=torch.float16)})
    with pytest.raises(CheckpointError, match=f"not used: {name}"):
        load_changed(folder, tmp_path, {name: torch.full((128,), 0.5)})


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("scales", None, r"o_proj.qweight cannot be decoded without .*o_proj.scales$"),
        ("qzeros", None, r"o_proj.qweight cannot be decoded without .*o_proj.qzeros$"),
        ("scales", lambda t: t[:1], r"o_proj.scales must have shape \[2, 128\]: .* of 64 inputs, got \[1, 128\]"),
        ("scales", lambda t: t.int(), r"o_proj.scales must have type F32 or BF16 or F16 or F64, got I32"),
        ("scales", lambda t: t * torch.nan, r"o_proj.scales has scales that are NaN or infinite"),
        ("qzeros", lambda t: t[:, :8], r"o_proj.qzeros must have shape \[2, 16\]: .*, got \[2, 8\]"),
        ("qweight", lambda t: t[0], r"o_proj.qweight must be a matrix, got shape \[128\]"),
        ("qweight", lambda t: t.float(), r"o_proj.qweight must have type I32, got F32"),
        ("qweight", lambda t: t[:15], r"o_proj.weight has rows of 120 inputs, which groups of 64 do not divide"),
        ("qweight", lambda t: t[:0], r"o_proj.weight has rows of 0 inputs"),
        ("g_idx", lambda t: t + 1, r"o_proj.g_idx must hold groups from 0 to 1, got 1 to 2"),
        ("g_idx", lambda t: t - 1, r"o_proj.g_idx must hold groups from 0 to 1, got -1 to 0"),
        ("g_idx", lambda t: t[:64], r"o_proj.g_idx must have shape \[128\]: a group for each input, got \[64\]"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_raise(part, change, why, folder, tmp_path):
    value = None if change is None else change(folder[1][f"{NAME}.{part}"])
    with pytest.raises(CheckpointError, match=why):
        load_changed(folder, tmp_path, {f"{NAME}.{part}": value})


def test_wrong_names_and_sizes_raise(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"o_proj.weight is stored twice, the second time as .*o_proj.qweight"):
        load_changed(folder, tmp_path, {f"{NAME}.weight": torch.zeros(128, 128)})
    with pytest.raises(CheckpointError, match=r"o_proj.qweight cannot be decoded without .*o_proj.g_idx"):
        load_changed(folder, tmp_path, {f"{NAME}.g_idx": None}, {"desc_act": True})
    with pytest.raises(
        CheckpointError, match=r"down_proj.weight has rows of 256 inputs, which groups of 96 do not divide"
    ):
        load_changed(folder, tmp_path, {}, {"group_size": 96})
    with pytest.raises(CheckpointError, match=r"down_proj.scales must have shape \[8, 128\]"):
        load_changed(folder, tmp_path, {}, {"group_size": 32})
    smaller = gptq_parts(random_integers((64, 128), 4, 64), True)
    with pytest.raises(CheckpointError, match=r"shape: .*o_proj.weight is \[64, 128\], the config needs \[128, 128\]"):
        load_changed(folder, tmp_path, {f"{NAME}.{part}": value for part, value in smaller.items()})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"bits": 3}, "bits = 3 is not supported, only 4, 8"),
        ({"bits": 4.0}, "bits must be a whole number of at least 1, got 4.0"),
        ({"bits": None}, "bits = None is not supported, only 4, 8"),
        ({"group_size": 0}, "group_size must be a whole number of at least 1, or -1 for a group per row, got 0"),
        ({"group_size": "64"}, "group_size must be .*, got '64'"),
        ({"desc_act": "no"}, "desc_act must be true or false, got 'no'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin' is not supported, only 'gptq', 'gptq_v2'"),
        ({"format": "gptq_v2"}, "checkpoint_format and format differ: gptq, gptq_v2"),
        ({"is_marlin_format": True}, "is_marlin_format = True is not supported, only False"),
        ({"pack_dtype": "int16"}, "pack_dtype = 'int16' is not supported, only 'int32'"),
        ({"dynamic": {"+:.*gate.*": {"bits": 8}}}, "dynamic = .* is not supported, only patterns that begin with '-:'"),
        ({"rotation": "hadamard"}, "keys this family does not understand: rotation"),
    ],
    ids=str,
)
def test_unsupported_settings_raise(settings, why, folder, tmp_path):
    with pytest.raises(ConfigError, match=why):
        load_changed(folder, tmp_path, {}, settings)


def test_settings_that_change_nothing(folder, tmp_path):
    more = {"dynamic": {"-:.*lm_head.*": {}}, "meta": {"quantizer": "gptqmodel:7.7.0"}, "format": "gptq",
            "method": "gptq", "pack_dtype": "int32", "lm_head": False, "rotation": None}  # fmt: skip
    load_changed(folder, tmp_path, {}, more)

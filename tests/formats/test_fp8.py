"""Block-scaled FP8 weights: decoding against the definition and `transformers`, and loading a complete model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_near, random_ids, run, tiny
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import load_decoder, save_model
from glassformer.formats.fp8 import Fp8Tensor, decode
from glassformer.formats.reader import ReadBuffer
from glassformer.formats.safetensors_file import SafetensorsFile

FP8 = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
}  # fmt: skip


def random_fp8(shape, seed=0):
    """Return random FP8 values of every magnitude, and a distinct scale for each block."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, shape, generator=generator) * 2 - 1
    values = (signs * 2 ** (torch.rand(shape, generator=generator) * 17 - 9)).clamp(-448, 448)
    blocks = [-(-size // 128) for size in shape]
    return values.to(torch.float8_e4m3fn), torch.rand(blocks, generator=generator) * 1e-3 + 1e-4


def test_decode_every_value():
    """All bytes except the two NaNs, by the definition of E4M3: 4 exponent bits, 3 mantissa bits."""
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    found = decode(codes.view(1, -1).view(torch.float8_e4m3fn), torch.tensor([[0.5, 2.0]]))[0]
    for at, (code, number) in enumerate(zip(codes.tolist(), found.tolist(), strict=True)):
        sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
        size = (1 + mantissa / 8) * 2 ** (exponent - 7) if exponent else mantissa / 8 * 2**-6
        assert number == (-size if sign else size) * (0.5 if at < 128 else 2.0)


def test_decode_equals_transformers():
    values, scales = random_fp8((256, 384))
    theirs = Fp8Dequantize(None)._dequantize_one(values, scales, torch.float32)
    assert torch.equal(decode(values, scales), theirs)


def test_decode_partial_last_blocks():
    values, scales = random_fp8((130, 300))
    found = decode(values, scales)
    for row, column in ((0, 0), (127, 127), (128, 128), (129, 299), (0, 256), (129, 0)):
        assert found[row, column] == values[row, column].float() * scales[row // 128, column // 128]
    assert found.shape == values.shape


@pytest.mark.parametrize("block", [(128, 128), (1, 300), (130, 300), (7, 64), (200, 1 << 60)], ids=str)
def test_rows_of_every_block(block, tmp_path):
    """The parts of a matrix equal the complete matrix, for one scale per row, matrix or block."""
    blocks = [-(-size // of) for size, of in zip((130, 300), block, strict=True)]
    values, scales = random_fp8((130, 300))[0], torch.rand(blocks, generator=torch.Generator().manual_seed(1))
    save_file({"x": values, "s": scales}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    matrix = Fp8Tensor(file, "x", file, "s", block)
    found = torch.cat([rows for _, rows in matrix.rows("x", ReadBuffer())])
    assert torch.equal(found, matrix["x"])
    for row, column in ((0, 0), (127, 127), (128, 64), (129, 299), (6, 63), (129, 0)):
        assert found[row, column] == values[row, column].float() * scales[row // block[0], column // block[1]]


def save_fp8_model(folder):
    """Save a tiny model with FP8 matrices and an extra layer; return its decoded weights and the file's tensors."""
    model = tiny("deepseek_v3", d_model=144)
    save_model(model, folder)
    plain, tensors = load_file(folder / "model.safetensors"), {}
    for seed, (name, tensor) in enumerate(plain.items()):
        if tensor.ndim == 2 and ".layers." in name and "mlp.gate." not in name:
            scale = tensor.abs().max() / 448
            values, scales = random_fp8(tensor.shape, seed)
            values, scales = (tensor / scale).to(values.dtype), scales / scales.max() * scale
            tensors |= {name: values, f"{name}_scale_inv": scales}
            plain[name] = values.float()
            for row, factors in enumerate(scales):
                for column, factor in enumerate(factors):
                    at = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
                    plain[name][at] *= factor
        else:
            tensors[name] = tensor
    for name in [name for name in tensors if name.startswith("model.layers.2.")]:
        tensors[name.replace(".2.", ".3.", 1)] = tensors[name].clone()
    tensors["model.layers.3.eh_proj.weight"] = torch.randn(144, 288)
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"quantization_config": FP8, "num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors")
    return plain, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8")
    return folder, *save_fp8_model(folder)


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"dtype": torch.float32}, {"dtype": torch.bfloat16}], ids=str)
def test_fp8_model_equals_decoded_model(options, folder, tmp_path):
    """Compare every value after loading and saving. The router's correction bias stays exact in bfloat16."""
    folder, plain, _ = folder
    model = load_decoder(folder, **options)
    save_model(model, tmp_path)
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() == plain.keys()
    for name, tensor in plain.items():
        exact = options.get("dtype") != torch.bfloat16 or name.endswith("e_score_correction_bias")
        assert torch.equal(again[name], tensor if exact else tensor.bfloat16()), name
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in raw
    assert raw["num_nextn_predict_layers"] == 0
    ids = random_ids(model.config, 1, 9)
    assert_near(run(load_decoder(tmp_path), ids), run(model, ids))


def test_show_lists_unused_tensors(folder, capsys):
    from glassformer.cli.show import show

    folder, _, tensors = folder
    show(str(folder), json=True)
    facts = json.loads(capsys.readouterr().out)
    ahead = [name for name in tensors if name.startswith("model.layers.3.") and not name.endswith("_scale_inv")]
    assert facts["not read"] == sorted(ahead)
    assert facts["stored"]["FP8"] > 40
    assert facts["cache"]["bytes_per_token"] == 3 * (20 + 8) * 2
    show(str(folder))
    assert f"{len(ahead)} tensors: model.layers.3." in " ".join(capsys.readouterr().out.split())


def test_unused_layer_tensors_raise(folder, tmp_path):
    """Only the first layer after the last one may be unused, and no tensor of the model's own layers."""
    _, _, tensors = folder
    (tmp_path / "config.json").write_text((folder[0] / "config.json").read_text())
    save_file(tensors | {"model.layers.4.eh_proj.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not used: model.layers.4.eh_proj.weight"):
        load_decoder(tmp_path)
    save_file(tensors | {"model.layers.2.eh_proj.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not used: model.layers.2.eh_proj.weight"):
        load_decoder(tmp_path)


def test_scale_of_wrong_shape_raises(folder, tmp_path):
    _, _, tensors = folder
    name = "model.layers.1.self_attn.o_proj.weight"
    (tmp_path / "config.json").write_text((folder[0] / "config.json").read_text())
    few = tensors[f"{name}_scale_inv"][:1].clone()
    save_file(tensors | {f"{name}_scale_inv": few}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"o_proj.weight_scale_inv must hold a scale .* \[2, 1\], got \[1, 1\]"):
        load_decoder(tmp_path)
    damaged = tensors[f"{name}_scale_inv"].clone()
    damaged[1, 0] = torch.nan
    save_file(tensors | {f"{name}_scale_inv": damaged}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"o_proj.weight_scale_inv has scales that are NaN or infinite"):
        load_decoder(tmp_path)
    rest = {key: value for key, value in tensors.items() if key != f"{name}_scale_inv"}
    save_file(rest, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"type: .*o_proj.weight is F8_E4M3, supported types are F32"):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"quant_method": "hqq"},
            "the weights are quantized by hqq, which cannot be read; only awq, compressed-tensors,",
        ),
        ("int4", "the weights are quantized by 'int4', which"),
        (FP8 | {"weight_block_size": [64, 0]}, r"weight_block_size must be the rows and .*, got \[64, 0\]"),
        (FP8 | {"weight_block_size": None}, r"weight_block_size must be .* such as \[128, 128\], got None"),
        (FP8 | {"fmt": "e5m2"}, "fmt = 'e5m2' is not supported"),
        (FP8 | {"bits": 8}, "does not understand: bits"),
    ],
    ids=str,
)
def test_unsupported_quantization_raises(settings, why, folder, tmp_path):
    raw = json.loads((folder[0] / "config.json").read_text()) | {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=why):
        load_decoder(tmp_path)

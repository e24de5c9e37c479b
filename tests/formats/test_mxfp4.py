"""MXFP4 weights: decoding against `transformers`, and loading a complete model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_near, random_ids, run, tiny
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import load_decoder, save_model
from glassformer.formats.mxfp4 import decode


def test_decode_every_value_and_scale():
    """Every byte (two values each) with every scale."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(254, 16, 16)
    scales = torch.arange(254, dtype=torch.uint8)[:, None].expand(254, 16)
    ours = decode(blocks, scales)
    assert torch.equal(ours, convert_moe_packed_tensors(blocks[None], scales[None])[0].T)
    assert ours[127].unique().tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]


def save_mxfp4_model(folder):
    """Save a tiny model with random MXFP4 experts; return its decoded weights and the file's tensors."""
    model = tiny("gpt_oss", d_model=64, **{f"layers.{i}.mlp.d_ff": 32 for i in range(3)})
    save_model(model, folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    plain = dict(tensors)
    for i in range(3):
        for part, shape in (("gate_up_proj", (6, 64, 2)), ("down_proj", (6, 64, 1))):
            name = f"model.layers.{i}.mlp.experts.{part}"
            blocks = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
            del tensors[name]
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors")
    return plain, tensors


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"dtype": torch.float32}], ids=str)
def test_mxfp4_model_equals_decoded_model(options, tmp_path):
    plain, _ = save_mxfp4_model(tmp_path)
    model = load_decoder(tmp_path, **options).float()
    save_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())
    assert_near(run(load_decoder(tmp_path / "again"), random_ids(model.config, 1, 9)),
                run(model, random_ids(model.config, 1, 9)))  # fmt: skip


def test_mismatched_blocks_and_scales_raise(tmp_path):
    _, tensors = save_mxfp4_model(tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"
    save_file(tensors | {f"{name}_scales": tensors[f"{name}_scales"][:, :8].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj_blocks must hold 16 bytes for each"):
        load_decoder(tmp_path)
    damaged = tensors[f"{name}_scales"].clone()
    damaged[3, 5, 0] = 255
    save_file(tensors | {f"{name}_scales": damaged}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj_scales has scales that are NaN \(255\)"):
        load_decoder(tmp_path)
    rest = {key: value for key, value in tensors.items() if key != f"{name}_scales"}
    save_file(rest, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj_blocks is \[6, 64, 1, 16\]"):
        load_decoder(tmp_path)


def test_unsupported_quantization_raises(tmp_path):
    save_mxfp4_model(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ConfigError, match=r"quantized by bitsandbytes, which cannot be read; only .* mxfp4 can"):
        load_decoder(tmp_path)

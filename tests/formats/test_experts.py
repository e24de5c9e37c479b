"""Expert weights fused into one tensor load like one tensor per expert."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny

from glassformer.errors import CheckpointError
from glassformer.formats import load_decoder, save_model

EACH = {"mixtral": "model.layers.{i}.block_sparse_moe.experts.{j}.{part}.weight"}
PARTS = {"mixtral": ("w1", "w3", "w2")}


def fuse(family, folder):
    """Rewrite a saved model with the experts of a layer fused: [E, 2F, D] and [E, D, F]."""
    pattern = EACH.get(family, "model.layers.{i}.mlp.experts.{j}.{part}.weight")
    gate, up, down = PARTS.get(family, ("gate_proj", "up_proj", "down_proj"))
    tensors = load_file(folder / "model.safetensors")
    for i in range(3):

        def stack_experts(part, i=i):
            names = [pattern.format(i=i, j=j, part=part) for j in range(6)]
            return torch.stack([tensors.pop(name) for name in names]) if names[0] in tensors else None

        parts = [stack_experts(part) for part in (gate, up, down)]
        if parts[0] is not None:
            tensors[f"model.layers.{i}.mlp.experts.gate_up_proj"] = torch.cat(parts[:2], 1)
            tensors[f"model.layers.{i}.mlp.experts.down_proj"] = parts[2]
        router = f"model.layers.{i}.block_sparse_moe.gate.weight"
        if router in tensors:
            tensors[f"model.layers.{i}.mlp.gate.weight"] = tensors.pop(router)
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "deepseek_v2"])
@pytest.mark.parametrize("copy", [False, True])
def test_fused_experts_load_like_separate_experts(family, copy, tmp_path):
    model = tiny(family)
    save_model(model, tmp_path)
    fuse(family, tmp_path)
    again = dict(load_decoder(tmp_path, copy=copy).named_parameters())
    assert again.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(p, again[name]) for name, p in model.named_parameters())


def test_mixed_and_partial_layouts_raise(tmp_path):
    model = tiny("mixtral")
    save_model(model, tmp_path)
    separate = load_file(tmp_path / "model.safetensors")
    fused = fuse("mixtral", tmp_path)
    save_file(separate | fused, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not used: model.layers.0.block_sparse_moe.experts.0.w1.weight"):
        load_decoder(tmp_path)
    del fused["model.layers.1.mlp.experts.down_proj"]
    fused["model.layers.2.mlp.experts.gate_up_proj"] = fused["model.layers.2.mlp.experts.gate_up_proj"][:5]
    save_file(fused, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_decoder(tmp_path)
    assert "missing: model.layers.1.block_sparse_moe.experts.0.w2.weight" in str(error.value)
    assert "model.layers.2.mlp.experts.gate_up_proj is [5, 48, 48], the config needs [6, 48, 48]" in str(error.value)

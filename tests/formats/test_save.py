"""Saving is atomic: a full disk, a kill or an error leaves the previous checkpoint unchanged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import FAMILIES, tiny

from glassformer.atomic import replacing, write_text
from glassformer.config import NormConfig, change
from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import load_decoder, save_model
from glassformer.nn.model import Decoder

ROOT = Path(__file__).parents[2]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_round_trip(family, dtype, tmp_path):
    model = tiny(family)
    save_model(model, tmp_path, dtype=dtype, extra={"eos_token_id": 7})
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["eos_token_id"] == 7
    assert raw["torch_dtype"] == str(dtype or torch.float32).removeprefix("torch.")
    loaded = load_decoder(tmp_path)
    for name, p in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), p.to(dtype or p.dtype))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}, "transformers requires the format pt"
    assert set(files(tmp_path)) == {"config.json", "model.safetensors"}, "a temporary file remains"
    again = tmp_path / "again"
    save_model(loaded, again)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_saving_over_shards_removes_them(tmp_path):
    """An index that remains would point readers to the previous model."""
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained
    model = tiny("llama")
    save_model(model, tmp_path / "single")
    theirs(tmp_path / "single").save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(files(tmp_path / "sharded")) > 3
    opened = load_decoder(tmp_path / "sharded")
    with torch.no_grad():
        opened.embed.weight += 1
    save_model(opened, tmp_path / "sharded")
    assert not [name for name in files(tmp_path / "sharded") if "-of-" in name or "index" in name]
    assert torch.equal(theirs(tmp_path / "sharded").model.embed_tokens.weight, model.embed.weight + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_in_shards(family, tmp_path):
    """Tensors are bit-equal to those of a single file, here and in transformers; no shard exceeds the limit."""
    from transformers import AutoModelForCausalLM

    model = tiny(family)
    save_model(model, tmp_path / "single")
    save_model(model, tmp_path / "parts", shard=40_000)
    found = files(tmp_path / "parts")
    shards = [name for name in found if name.startswith("model-")]
    assert set(found) == {"config.json", "model.safetensors.index.json", *shards}
    assert len(shards) > 2
    assert max(len(found[name]) for name in shards) < 44_000
    index = json.loads(found["model.safetensors.index.json"])
    single = load_file(tmp_path / "single/model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in single.values())
    parts = {name: load_file(tmp_path / "parts" / shard)[name] for name, shard in index["weight_map"].items()}
    assert parts.keys() == single.keys()
    assert all(torch.equal(parts[name], single[name]) for name in single)
    loaded = load_decoder(tmp_path / "parts")
    assert all(torch.equal(loaded.get_parameter(name), p) for name, p in model.named_parameters())
    hf, info = AutoModelForCausalLM.from_pretrained(tmp_path / "parts", output_loading_info=True)
    assert not any(info.values())
    assert hf.get_input_embeddings().weight.equal(model.embed.weight)
    save_model(loaded, tmp_path / "parts", shard=90_000)
    assert len(files(tmp_path / "parts")) < len(found)
    save_model(load_decoder(tmp_path / "parts"), tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "single")


@pytest.mark.parametrize(("family", "path", "value"), [
    ("llama", "layers.1.attention.window", 4),
    ("llama", "layers.1.attention.scale", 0.5),
    ("llama", "layers.0.attention.qk_norm", NormConfig()),
    ("llama", "layers.2.norm_at", ("post",)),
    ("llama", "layers.1.mlp.d_ff", 40),
    ("llama", "layers.1.attention.out_bias", False),
    ("qwen3", "layers.1.mlp.bias", True),
    ("qwen3", "layers.2.attention.window", 9),
    ("qwen3", "layers.1.attention.qk_norm", None),
    ("qwen3", "final_norm", None),
    ("gpt2", "layers.1.attention.scale", 0.5),
    ("gpt2", "layers.0.attention.n_kv_heads", 2),
    ("gpt2", "positions", "sinusoidal"),
    ("gpt2", "layers.0.norm.kind", "rms"),
])  # fmt: skip
def test_config_without_a_form_in_the_format_raises(family, path, value, tmp_path):
    model = Decoder(change(tiny(family).config, path, value))
    with pytest.raises(ConfigError, match="cannot describe this model"):
        save_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


FULL = """
import resource, signal, sys
from pathlib import Path
from tiny import tiny
from glassformer.errors import CheckpointError
from glassformer.formats import save_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, model = Path(sys.argv[1]), tiny("llama", seed=9)
before = {path.name: path.read_bytes() for path in folder.iterdir()}
for limit in (0, 100, 5_000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_model(model, folder)
        print("saved")
    except CheckpointError as error:
        assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
        print(error)
"""


def test_full_disk_leaves_the_previous_checkpoint(tmp_path):
    """RLIMIT_FSIZE stands in for a full disk."""
    folder = tmp_path / "model"
    save_model(tiny("llama"), folder)
    assert (folder / "model.safetensors").stat().st_size > 100_000
    run = subprocess.run(
        [sys.executable, "-c", FULL, folder],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )  # fmt: skip
    lines = run.stdout.splitlines()
    assert len(lines) == 4
    assert all("model.safetensors could not be written (0." in line and "MB are needed" in line for line in lines), (
        lines
    )


@pytest.mark.parametrize("at", ["os.fsync", "os.replace"])
def test_failing_system_call_leaves_the_previous_checkpoint(at, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save_model(tiny("llama"), folder)
    before = files(folder)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(at, fail)
    with pytest.raises(CheckpointError, match=r"model\.safetensors could not be written: No space left on device"):
        save_model(tiny("llama", seed=9), folder)
    assert files(folder) == before


def test_interrupted_write_leaves_the_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "first")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("partial")
        assert path.read_text() == "first"
        raise KeyboardInterrupt
    assert files(tmp_path) == {"a.txt": b"first"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_raises(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="could not be"):
        save_model(tiny("llama"), tmp_path / "locked" / "model")


def test_file_in_place_of_the_folder_raises(tmp_path):
    (tmp_path / "model").write_text("not a folder")
    with pytest.raises(CheckpointError, match="model could not be created"):
        save_model(tiny("llama"), tmp_path / "model")

"""Saving is atomic: a full disk, a kill or an error leaves the previous checkpoint unchanged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny

from glassformer.atomic import replacing, write_text
from glassformer.config import NormConfig, change
from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import load_decoder, save_model
from glassformer.formats.safetensors_file import save_tensors
from glassformer.models.language_model import LanguageModel
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


def test_written_bytes_are_those_of_the_safetensors_package(tmp_path):
    tensors = {
        "ü": torch.randn(3, 5), "b": torch.randn(7).to(torch.bfloat16), "a": torch.randn(2, 2).to(torch.float16),
        "empty": torch.empty(0, 4), "scalar": torch.tensor(1.5), "long": torch.arange(9), "flags": torch.tensor([True]),
        "bytes": torch.arange(5, dtype=torch.uint8), "wide": torch.randn(2, 3, dtype=torch.float64),
        "strided": torch.randn(4, 6).T.contiguous(), "int32": torch.arange(3, dtype=torch.int32),
    }  # fmt: skip
    save_tensors(tensors, tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    loaded = load_file(tmp_path / "ours")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("name", ["a.gguf", "[a]*.txt"])
def test_next_write_removes_what_killed_processes_left(tmp_path, name):
    """Only temporary files of this target, and only those that no process has locked."""
    path, other = tmp_path / name, tmp_path / f".b{name}.77.tmp"
    for suffix in ("1", "99999999-0a1b2c3d"):
        (tmp_path / f".{name}.{suffix}.tmp").write_text("left")
    (tmp_path / f".{name}.5-e.tmp").mkdir()
    other.write_text("of another target")
    with replacing(path) as first:
        first.write_text("slow")
        write_text(path, "second")
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([other.name, first.name, name])
    assert files(tmp_path) == {other.name: b"of another target", name: b"slow"}


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from tiny import tiny
from generate.scripted import make_tokenizer
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load
folder, rng = Path(sys.argv[1]) / "model", random.Random(3)
models = [tiny("llama", seed=seed, vocab_size=300) for seed in (1, 2)]
tokenizers = [make_tokenizer() for _ in models]
for i, tokenizer in enumerate(tokenizers):
    tokenizer.chat_template = f"template {i}"
saves = [LanguageModel(*pair) for pair in zip(models, tokenizers)]
saves[0].save(folder, shard=30_000)
(folder / "notes").mkdir()
(folder / "notes/mine.txt").write_text("mine")
seen, left = set(), 0
for kill in range(25):
    child = os.fork()
    if child == 0:
        i = kill % 2
        while True:
            i = 1 - i
            saves[i].save(folder, shard=30_000 if i else 10**9)
    time.sleep(rng.uniform(0.005, 0.3))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = load(folder)
    i = int(found.tokenizer.chat_template.split()[1])
    ours, theirs = dict(found.model.named_parameters()), dict(models[i].named_parameters())
    assert all((ours[name] == theirs[name]).all() for name in theirs), f"kill {kill}: weights beside another tokenizer"
    assert (folder / "notes/mine.txt").read_text() == "mine"
    seen.add(i)
    left += len([path for path in folder.parent.iterdir() if path != folder])
saves[0].save(folder)
assert left > 5, f"only {left} kills left a temporary folder"
assert seen == {0, 1}
print(sorted(path.name for path in folder.parent.iterdir()), sorted(path.name for path in folder.iterdir()))
"""


def test_killed_save_leaves_one_complete_model(tmp_path):
    """Weights and tokenizer always belong together; the next save removes what killed ones left."""
    run = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    inside = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "notes"]
    assert run.stdout == f"['model'] {[*inside, 'tokenizer.json', 'tokenizer_config.json']}\n"


def test_folder_that_cannot_be_exchanged_is_written_in_place(tmp_path, monkeypatch):
    """The current folder keeps its identity, or the user's shell would stand in a removed one."""
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    LanguageModel(tiny("llama")).save(".")
    LanguageModel(tiny("llama", seed=2)).save(tmp_path)
    assert tmp_path.stat().st_ino == before
    assert set(files(tmp_path)) == {"config.json", "generation_config.json", "model.safetensors"}


def test_errors_name_the_folder_and_not_the_temporary_one(tmp_path, monkeypatch):
    LanguageModel(tiny("llama")).save(tmp_path / "model")
    before = files(tmp_path / "model")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glassformer.atomic.sync", fail)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/model/model\.safetensors could not be written: No space"):
        LanguageModel(tiny("llama", seed=2)).save(tmp_path / "model")
    assert files(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

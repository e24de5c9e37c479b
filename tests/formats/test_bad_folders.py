"""Model folders with one defect each: the error names the file and the defect."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from generate.scripted import make_tokenizer
from safetensors.torch import load_file, save_file
from tiny import tiny

from glassformer.errors import CheckpointError, ConfigError, TokenizerError
from glassformer.formats import save_model
from glassformer.formats.find import find_model
from glassformer.formats.gguf.save import save_gguf
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save one model in a single file and in several shards."""
    one, several = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("several")
    save_model(tiny("llama"), one)
    save_model(tiny("llama"), several, shard=40_000)
    return one, several


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def set_config(**keys) -> Callable[[Path], object]:
    """Return an edit that sets keys of config.json."""

    def edit(folder: Path):
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | keys))

    return edit


def remove(name: str, then: Callable[[Path], object] = lambda path: None) -> Callable[[Path], object]:
    def edit(folder: Path):
        (folder / name).unlink()
        then(folder / name)

    return edit


def safetensors_bytes(shape, dtype="F32", end=2**62) -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header


BAD = {
    "config is a folder": (remove("config.json", Path.mkdir), r"config\.json is not a regular file"),
    "config is empty": (write("config.json", b""), r"config\.json is not valid JSON"),
    "config is a list": (write("config.json", b"[1]"), r"config\.json must hold a JSON object, got list"),
    "config is not text": (write("config.json", b"\xff\xfe\0"), r"config\.json is not UTF-8"),
    "config is deep": (write("config.json", b'{"a":' + b"[" * 200_000), r"config\.json nests more than 100 levels"),
    "config has long number": (write("config.json", b'{"a":' + b"9" * 5000 + b"}"), r"config\.json is not valid JSON"),
    "config without model_type": (write("config.json", b"{}"), "unknown model_type None"),
    "unknown model_type": (set_config(model_type="lama2"), "the keys are most like those of 'llama'"),
    "unknown key": (set_config(strange_scale=2.0), r"config\.json: .* does not understand: strange_scale"),
    "quantized": (set_config(quantization_config={"bits": 4}), "the weights are quantized by an unnamed method"),
    "infinite number": (set_config(rope_theta=float("inf")), "rope_theta must be a number above 0, got inf"),
    "not a number": (set_config(rms_norm_eps=float("nan")), "rms_norm_eps must be a number above 0, got nan"),
    "a billion layers": (set_config(num_hidden_layers=10**9), "num_hidden_layers must be a whole number from 1 to"),
    "too many layers": (set_config(num_hidden_layers=10_000), "10000 layers and experts, but the weights have only 50"),
    "huge hidden_size": (set_config(hidden_size=2**40), r"embed_tokens\.weight is \[97, 48\], the config needs"),
    "huge vocab_size": (set_config(vocab_size=10**15), r"embed_tokens\.weight is \[97, 48\], the config needs \[1000"),
    "weights are a folder": (remove(WEIGHTS, Path.mkdir), r"model\.safetensors: not a regular file"),
    "weights are a pipe": (remove(WEIGHTS, os.mkfifo), r"model\.safetensors: not a regular file"),
    "weights are a symlink loop": (remove(WEIGHTS, lambda path: path.symlink_to(path)), "not a regular file"),
    "missing weights": (remove(WEIGHTS), r"model\.safetensors is missing"),
    "empty weights": (write(WEIGHTS, b""), r"model\.safetensors is not a complete safetensors file"),
    "a header past the end": (write(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"), "not a complete safetensors file"),
    "a header of 99 MB": (write(WEIGHTS, struct.pack("<Q", 99_000_000) + b"{}"), "not a complete safetensors file"),
    "a tensor past the end": (write(WEIGHTS, safetensors_bytes([2**40, 2**20])), "not a complete safetensors file"),
    "a tensor of another size": (write(WEIGHTS, safetensors_bytes([3], end=8) + b"\0" * 8), "not a complete"),
    "an empty pickle": (remove(WEIGHTS, lambda path: (path.parent / "pytorch_model.bin").touch()),
                        r"pytorch_model\.bin is not a complete file of torch\.save: it is empty"),
    "end tokens that are not ids": (write("generation_config.json", b'{"eos_token_id": ["x"]}'),
                             r"generation_config\.json: eos_token_id must be a token id .*, got \['x'\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_folder_raises(folders, tmp_path, name):
    edit, message = BAD[name]
    shutil.copytree(folders[0], tmp_path / "model")
    edit(tmp_path / "model")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/passwd", "..", ".", "", "sub/x.safetensors", "a\0b", 3, None]
)
def test_index_with_a_file_outside_the_folder_raises(folders, tmp_path, shard):
    shutil.copytree(folders[1], tmp_path / "model")
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (tmp_path / "model" / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map must map each tensor name to a file name"):
        load(tmp_path / "model")


def test_one_error_lists_every_tensor_problem(folders, tmp_path):
    """Missing, extra, wrong shape, wrong type, and stored twice."""
    shutil.copytree(folders[1], tmp_path / "model")
    paths = sorted((tmp_path / "model").glob("model-*"))
    first, second, last = load_file(paths[0]), load_file(paths[1]), load_file(paths[-1])
    embed, missing, wrong_shape = "model.embed_tokens.weight", *sorted(second)[:2]
    second.pop(missing)
    second |= {wrong_shape: torch.ones(2, 2), embed: first[embed]}
    last |= {"extra.weight": torch.ones(3), "model.norm.weight": torch.ones(48, dtype=torch.int32)}
    for path, tensors in ((paths[1], second), (paths[-1], last)):
        save_file(tensors, path)
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "model")
    for part in (
        f"stored twice: {embed} is in {paths[0].name} and in {paths[1].name}",
        f"missing: {missing} (fills blocks.",
        f"shape: {wrong_shape} is [2, 2], the config needs [",
        "type: model.norm.weight is I32, supported types are F32, BF16",
        "not used: extra.weight",
    ):
        assert part in str(error.value)
    paths[2].unlink()
    with pytest.raises(CheckpointError, match=rf"{paths[2].name} is missing"):
        load(tmp_path / "model")


def test_vocabulary_larger_than_the_embedding_raises(tmp_path):
    tokenizer = make_tokenizer()
    LanguageModel(tiny("llama", vocab_size=tokenizer.vocab_size - 1), tokenizer).save(tmp_path)
    size = tokenizer.vocab_size
    with pytest.raises(TokenizerError, match=f"the tokenizer has {size} tokens, and the model {size - 1}"):
        load(tmp_path)


def test_unreadable_files_raise(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "model")
    save_gguf(tiny("llama"), tmp_path / "model/a.gguf", "F32")
    for path in sorted((tmp_path / "model").iterdir()):
        path.chmod(0)
    user = os.geteuid()
    tmp_path.chmod(0o755)
    try:
        if user == 0:  # file modes do not restrict root
            os.seteuid(65534)
        for path in (tmp_path / "model", tmp_path / "model/model.safetensors", tmp_path / "model/a.gguf"):
            with pytest.raises(CheckpointError, match=r"(cannot|could not) be read: .*[Pp]ermission denied"):
                load(path)
    finally:
        os.seteuid(user)
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        find_model("a" * 5000)

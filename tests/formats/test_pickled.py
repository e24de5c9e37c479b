"""pytorch_model.bin, single and sharded. A pickle that holds more than weights is never executed."""

import json
import pickle
import random

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, tiny

from glassformer.errors import CheckpointError
from glassformer.formats import load_decoder, save_model


@pytest.fixture
def folder(tmp_path):
    save_model(tiny("llama"), tmp_path)
    return tmp_path


def pickle_weights(folder, **options):
    """The folder's safetensors as a pytorch_model.bin."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", **options)
    return tensors


def assert_same(model, other):
    assert all(torch.equal(other.get_parameter(name), p) for name, p in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("copy", [False, True])
def test_one_file(family, copy, tmp_path):
    save_model(tiny(family), tmp_path)
    pickle_weights(tmp_path)
    assert_same(tiny(family), load_decoder(tmp_path, copy=copy))


def test_shards(folder):
    tensors = pickle_weights(folder)
    names, shards = list(tensors), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    for i, shard in enumerate(shards):
        torch.save({name: tensors[name] for name in names[i::2]}, folder / shard)
    index = {"weight_map": {name: shards[i % 2] for i, name in enumerate(names)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").unlink()
    assert_same(tiny("llama"), load_decoder(folder))
    for shard in shards:
        (folder / shard).unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[0]}, .*{shards[1]} are missing"):
        load_decoder(folder)


def test_non_contiguous_tensors(folder):
    tensors = pickle_weights(folder)
    tensors = {name: t.T.contiguous().T if t.ndim == 2 else torch.stack([t, t], 1)[:, 0] for name, t in tensors.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    for copy in (False, True):
        assert_same(tiny("llama"), load_decoder(folder, copy=copy))


def test_safetensors_have_priority(folder):
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
    assert_same(tiny("llama"), load_decoder(folder))


def test_load_by_file_path(folder):
    pickle_weights(folder)
    assert_same(tiny("llama"), load_decoder(folder / "pytorch_model.bin"))


class Trap:
    """A pickle that creates a file when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_with_code_raises_without_running_it(folder):
    tensors = pickle_weights(folder)
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({**tensors, "trap": Trap(folder / "sprung")}, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*\n*.*weights_only=False"):
            load_decoder(folder)
        assert not (folder / "sprung").exists()


def test_legacy_torch_save_raises_with_conversion_hint(folder):
    pickle_weights(folder, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6.*To convert it"):
        load_decoder(folder)


@pytest.mark.parametrize("value", [[torch.zeros(2)], 3, {1: torch.zeros(2)}, {"state_dict": {"a": torch.zeros(2)}}])
def test_pickle_that_is_not_a_state_dict_raises(folder, value):
    pickle_weights(folder)
    torch.save(value, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="tensors by name"):
        load_decoder(folder)


def test_integer_and_sparse_tensors_raise(folder):
    tensors = pickle_weights(folder)
    first, second, *_ = tensors
    tensors |= {first: tensors[first].int(), second: tensors[second].to_sparse()}
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"type: {first} is I32[^\0]*type: {second} is torch.sparse_coo"):
        load_decoder(folder)


def test_damaged_file_loads_or_raises(folder):
    pickle_weights(folder)
    path, rng = folder / "pytorch_model.bin", random.Random(0)
    whole = path.read_bytes()
    for cut in [0, 1, 100, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            load_decoder(folder)
    for _ in range(120):
        damaged = bytearray(whole)
        damaged[rng.choice([rng.randrange(4000), -1 - rng.randrange(3000)])] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_decoder(folder, copy=True)
        except CheckpointError as error:
            assert str(folder) in str(error)  # noqa: PT017

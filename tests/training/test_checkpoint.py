"""Test that checkpoints are complete or absent, and that failures name the file and keep earlier checkpoints."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from glassformer.errors import CheckpointError
from glassformer.training.run import checkpoint as module
from glassformer.training.run.checkpoint import (
    Checkpoints,
    TrainState,
    link,
    read_optimizer,
    read_state,
    rng_state,
    set_rng_state,
)

TENSORS = {"momentum.q": torch.arange(600.0).reshape(20, 30), "steps.embed": torch.tensor(3.0)}


def state(step: int, loss: float | None = None) -> TrainState:
    return TrainState(step, 10 * step, 0.5, {"rows": step}, rng_state(), loss)


def write_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights" * 100)


def save(checkpoints: Checkpoints, step: int, loss: float | None = None, need: int = 5000) -> Path:
    checkpoints.recover()
    return checkpoints.save(state(step, loss), write_model, TENSORS, need)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_last_and_best_are_kept_and_linked(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=2)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 1.5), (50, 1.0)):
        save(checkpoints, step, loss)
    assert names(checkpoints.folder) == ["best", "last", "step-000020", "step-000040", "step-000050"]
    assert os.readlink(checkpoints.folder / "best") == "step-000020"  # the earlier of equals
    assert os.readlink(checkpoints.folder / "last") == "step-000050"


def test_without_held_out_text_the_best_is_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
    for step in (1, 2):
        save(checkpoints, step)
    assert names(checkpoints.folder) == ["best", "last", "step-000002"]
    assert os.readlink(checkpoints.folder / "best") == "step-000002"


def test_checkpoint_round_trip(tmp_path):
    torch.rand(5)
    path = save(Checkpoints(tmp_path / "checkpoints", 2), 7, 1.25)
    found = read_state(path)
    assert (found.step, found.tokens, found.loader, found.held_out_loss) == (7, 70, {"rows": 7}, 1.25)
    for name, tensor in read_optimizer(path).items():
        assert torch.equal(tensor, TENSORS[name])
    expected = torch.rand(4)
    set_rng_state(found.rng)
    assert torch.equal(torch.rand(4), expected)


def test_recover_removes_incomplete_checkpoints_and_updates_links(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
    save(checkpoints, 1, 2.0)
    path = save(checkpoints, 2, 1.0)
    folder = checkpoints.folder
    (folder / ".step-000003.77.tmp").mkdir()
    (folder / ".step-000003.77.tmp" / "model.safetensors").write_bytes(b"half")
    (folder / ".last.77.tmp").symlink_to("step-000003")
    link(folder / "best", "step-000001")  # as if killed between the rename and the links
    checkpoints.recover()
    assert names(folder) == ["best", "last", "step-000002"]
    assert (folder / "best").resolve() == path


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_full_disk_raises_error_and_keeps_checkpoints(tmp_path, monkeypatch, call):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
    before = save(checkpoints, 1)
    content = {p.name: p.read_bytes() for p in before.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, call, full)
    with pytest.raises(CheckpointError, match=r"step-000002 could not be written: the disk is full; 5,000 bytes"):
        checkpoints.save(state(2), write_model, TENSORS, 5000)
    monkeypatch.undo()
    assert names(checkpoints.folder) == ["best", "last", "step-000001"]
    assert content == {p.name: p.read_bytes() for p in before.iterdir()}
    assert save(checkpoints, 2).name == "step-000002"  # and once there is room again, it goes on


def test_missing_disk_space_is_detected_before_writing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
    with pytest.raises(CheckpointError, match=r"1,000,000,000,000,000,000 bytes are required, [\d,]+ are free"):
        save(checkpoints, 1, need=10**18)
    assert names(checkpoints.folder) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_full_disk_device(small_disk, part):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep_last=1)
    before = save(checkpoints, 1)
    big = {"momentum.q": torch.zeros(100_000)} if part == "optimizer" else TENSORS

    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes(400_000 if part == "model" else 10))

    with pytest.raises(CheckpointError, match=r"step-000002 could not be written: the disk is full; 5,000 bytes"):
        checkpoints.save(state(2), fill, big, 5000)
    assert names(checkpoints.folder) == ["best", "last", "step-000001"]
    assert read_state(before).step == 1
    assert read_optimizer(before).keys() == TENSORS.keys()


def test_truncated_checkpoint_files_raise_error(tmp_path):
    path = save(Checkpoints(tmp_path / "checkpoints", 2), 7)
    whole = (path / "optimizer.safetensors").read_bytes()
    (path / "optimizer.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors is not a complete safetensors file"):
        read_optimizer(path)
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors is missing"):
        read_optimizer(path)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text[:50])
    with pytest.raises(CheckpointError, match=r"state.json is not valid JSON"):
        read_state(path)
    (path / "state.json").write_text(json.dumps(json.loads(text) | {"format": 2}))
    with pytest.raises(CheckpointError, match=r"state.json has format version 2, this Glassformer reads 1"):
        read_state(path)
    (path / "state.json").write_text(json.dumps(json.loads(text) | {"colour": "red"}))
    with pytest.raises(CheckpointError, match=r"colour"):
        read_state(path)

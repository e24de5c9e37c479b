"""One process at a time trains in a run folder, and a run that is rejected leaves nothing in it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import Log, end_state, make_tokenizer, memory_folder, metrics, texts, tiny_config, tiny_run

from glassformer.errors import CapacityError, ConfigError, GlassformerError
from glassformer.families.common.shape import ShapeConfig
from glassformer.training.config import InitConfig, TokenizerConfig
from glassformer.training.run.run_folder import LOCK_FILE, run_lock
from glassformer.training.run.train import train
from glassformer.training.tasks.evaluate import Compute

HERE = Path(__file__).parent


@pytest.fixture
def tmp_path():
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def child(code: str) -> subprocess.Popen:
    """Run Python code that has the helpers of tiny_runs in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom tiny_runs import *\n"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", start + code],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
    )


WAITING = """
def wait():
    print("waiting", flush=True)
    sys.stdin.readline()
tiny_run({out!r}, {tokenizer!r}, Log({{3: wait}}), resume={resume})
"""


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_second_process_is_rejected_and_a_dead_owner_is_not(tokenizer, tmp_path, resume):
    out = tmp_path / "run"
    if resume:
        tiny_run(out, tokenizer, steps=2)
    first = child(WAITING.format(out=str(out), tokenizer=tokenizer, resume=resume))
    with first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "waiting\n"
            before = sorted(out.rglob("*"))
            owner = rf"is being trained by process {first.pid} on .*remove .*{LOCK_FILE}"
            with pytest.raises(ConfigError, match=owner if resume else "holds a run already"):
                tiny_run(out, tokenizer, resume=resume)
            with pytest.raises(ConfigError, match=owner):
                tiny_run(out, tokenizer, resume=True)
            assert sorted(out.rglob("*")) == before
        finally:
            first.kill()
    assert (out / LOCK_FILE).read_text().startswith(f"{first.pid} on ")  # stale
    tiny_run(out, tokenizer, resume=True)
    assert not (out / LOCK_FILE).exists()
    tiny_run(tmp_path / "uninterrupted", tokenizer)
    assert end_state(out)["metrics"] == metrics(tmp_path / "uninterrupted")


def test_lock_without_locks_of_the_file_system(tmp_path, monkeypatch):
    """Where flock is missing, the process id and the host decide."""
    monkeypatch.setattr("glassformer.training.run.run_folder.fcntl", None)
    with run_lock(tmp_path):
        owner = (tmp_path / LOCK_FILE).read_text()
    assert owner.startswith(f"{os.getpid()} on ")
    host = owner.partition(" on ")[2].strip()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / LOCK_FILE).write_text(f"{other.pid} on {host}\n")
        with pytest.raises(ConfigError, match=f"by process {other.pid} on {re.escape(host)}"), run_lock(tmp_path):
            pass
        other.communicate(b"\n")
    with run_lock(tmp_path):  # that process has ended
        pass
    (tmp_path / LOCK_FILE).write_text("1 on another-machine\n")
    with pytest.raises(ConfigError, match="by process 1 on another-machine"), run_lock(tmp_path):
        pass


REJECTED = {  # changes of a tiny run: the message
    "sizes": ({"model": ShapeConfig(d_model=30, n_heads=4)}, "d_model must be a multiple of n_heads"),
    "no heads": ({"init": InitConfig(qk_gain=2.0), "model": ShapeConfig(family="gpt2")}, "init.qk_gain must be 1"),
    "prompt": ({"sample_prompt": "anna " * 9}, "sample_prompt has 46 tokens, and a context of 16 has room for 15"),
    "tracker": ({"wandb": True}, "pip install 'glassformer"),
    "batch": ({"batch": 4096}, "the training text is too small"),
    "tokenizer": ({"tokenizer_path": "/nowhere"}, "nowhere"),
    "model": ({"from_model": "/nowhere"}, "nowhere"),
    "held out": ({"held_out": 0.05, "held_out_data": ("/nowhere.txt",)}, "nowhere.txt"),
    "steps": ({"steps": None, "tokens": None, "device": "cuda:77"}, "device 'cuda:77'"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_run_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "wandb", None)
    changes, message = dict(REJECTED[name][0]), REJECTED[name][1]
    tokenizer = changes.pop("tokenizer_path", tokenizer)
    with pytest.raises(GlassformerError, match=message):
        tiny_run(tmp_path / "new" / "run", tokenizer, **changes)
    assert list(tmp_path.iterdir()) == []
    own = tmp_path / "run"
    own.mkdir()
    (own / "notes.txt").write_text("of the user")
    with pytest.raises(GlassformerError, match=message):
        tiny_run(own, tokenizer, **changes)
    assert [path.name for path in own.iterdir()] == ["notes.txt"]


def test_prompt_too_long_for_a_new_tokenizer_is_rejected_before_training(tmp_path):
    config = tiny_config(tmp_path / "run", "", sample_prompt="anna " * 9)
    config = replace(config, tokenizer=TokenizerConfig(kind="char"))
    with pytest.raises(ConfigError, match="sample_prompt has 46 tokens"):
        train(config, documents=texts)
    assert list(tmp_path.iterdir()) == []


def test_run_that_fails_in_its_first_step_can_be_repeated(tokenizer, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Compute, "loss", fail)
        with pytest.raises(CapacityError, match="lower batch"):
            tiny_run(tmp_path / "run", tokenizer, held_out=0.0)
    assert list(tmp_path.iterdir()) == []
    assert tiny_run(tmp_path / "run", tokenizer, batch=2).step == 8


def test_files_with_the_names_of_a_run_are_not_overwritten(tokenizer, tmp_path):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "mine.txt").write_text("of the user")
    with pytest.raises(ConfigError, match="data exists and belongs to no run"):
        tiny_run(tmp_path / "run", tokenizer)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["data", "mine.txt", "run"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a folder"):
        tiny_run(tmp_path / "file", tokenizer)
    with pytest.raises(ConfigError, match=r"file/run cannot be created|not a folder"):
        tiny_run(tmp_path / "file" / "run", tokenizer)


@pytest.mark.slow
def test_interrupted_preparation_leaves_nothing_behind(tokenizer, tmp_path):
    code = f"""
def documents():
    print("waiting", flush=True)
    sys.stdin.readline()
    yield from texts()
train(tiny_config({str(tmp_path / "run")!r}, {tokenizer!r}), documents=documents)
"""
    with child(code) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            assert (tmp_path / "run" / "run.json").exists()
            process.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in process.communicate()[1]
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def replace_by(path: Path, kind: str) -> None:
    """Replace a file or folder by a thing of another kind."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    {"folder": path.mkdir, "file": path.touch, "pipe": lambda: os.mkfifo(path), "gone": lambda: None}[kind]()


@pytest.mark.parametrize("kind", ["folder", "file", "pipe", "gone"])
@pytest.mark.parametrize(
    "name",
    ["run.json", "metrics.jsonl", "loss.svg", "checkpoints", "checkpoints/step-000004", "checkpoints/last", "data",
     "data/index.json", "data/tokens-00000.bin", "data/documents.npy", "tokenizer",
     "checkpoints/step-000004/state.json", "checkpoints/step-000004/model.safetensors", LOCK_FILE],
)  # fmt: skip
def test_file_of_another_kind_raises_no_other_error(tokenizer, tmp_path, finished, name, kind):
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    replace_by(tmp_path / "run" / name, kind)
    try:
        run = tiny_run(tmp_path / "run", tokenizer, steps=5, resume=True)
    except GlassformerError as error:
        message = str(error)
    else:
        assert run.step == 5
        return
    assert Path(name).name.split(".")[0] in message or "no checkpoint" in message


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    tiny_run(folder, tokenizer, steps=4)
    return folder


def test_checksums_of_a_checkpoint_are_recorded(finished):
    folder = finished / "checkpoints" / "step-000004"
    recorded = json.loads((folder / "state.json").read_text())["sha256"]
    assert set(recorded) == {path.name for path in folder.iterdir()} - {"state.json"}


def test_resume_with_other_data_raises_error(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer, steps=2)
    with pytest.raises(ConfigError, match=r"data was \[\], now \['other.txt'\]"):
        tiny_run(tmp_path / "run", tokenizer, Log(), steps=4, resume=True, data=("other.txt",))

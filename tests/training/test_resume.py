"""A resumed run is bit-identical to an uninterrupted one; differences are reported or raise an error."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import Crash, Log, crash, differing, end_state, losses, make_tokenizer, memory_folder, metrics, tiny_run

from glassformer.errors import CheckpointError, ConfigError, DataError
from glassformer.formats.find import find_model
from glassformer.training.config import OptimConfig, ScheduleConfig
from glassformer.training.run.metrics import read_metrics, truncate_metrics
from glassformer.training.run.run_file import RunFile, resume_config


@pytest.fixture
def tmp_path():
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def crashed_run(out, tokenizer, step, **changes):
    with pytest.raises(Crash):
        tiny_run(out, tokenizer, Log({step: crash}), **changes)


VARIANTS = {
    "muon": {"accumulate": 2, "batch": 2},
    "adamw": {"optim": OptimConfig(name="adamw"), "schedule": ScheduleConfig("cosine", warmup=3)},
    "bfloat16": {"dtype": "bfloat16", "optim": OptimConfig()},
    "ordered": {"shuffle": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted(tokenizer, tmp_path, name):
    changes = {"steps": 12, "save_every": 4, "eval_every": 2, **VARIANTS[name]}
    tiny_run(tmp_path / "uninterrupted", tokenizer, **changes)
    uninterrupted = end_state(tmp_path / "uninterrupted")
    assert len(uninterrupted["metrics"]) == 12 + 7
    crashed_run(tmp_path / "run", tokenizer, 7, **changes)  # after the checkpoint of step 4
    assert len(metrics(tmp_path / "run")) > 6
    crashed_run(tmp_path / "run", tokenizer, 11, resume=True, **changes)  # after that of step 8
    log = Log()
    tiny_run(tmp_path / "run", tokenizer, log, resume=True, **changes)
    assert [r[0].step for r in log.all("on_step")] == [9, 10, 11, 12]
    assert log.all("on_message") == []
    assert differing(end_state(tmp_path / "run"), uninterrupted) == []


def test_run_crashed_before_the_first_checkpoint_restarts(tokenizer, tmp_path):
    tiny_run(tmp_path / "uninterrupted", tokenizer)
    crashed_run(tmp_path / "run", tokenizer, 1)
    tiny_run(tmp_path / "run", tokenizer, resume=True)
    assert differing(end_state(tmp_path / "run"), end_state(tmp_path / "uninterrupted")) == []


def test_resuming_a_finished_run_changes_nothing(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer)
    before = end_state(tmp_path / "run")
    run = tiny_run(tmp_path / "run", tokenizer, resume=True)
    assert run.step == 8
    assert end_state(tmp_path / "run") == before


def test_resumed_run_with_seconds_keeps_its_plan(tokenizer, tmp_path):
    timed = {"steps": None, "seconds": 0.7, "eval_every": 0, "save_every": 4}
    uninterrupted = tiny_run(tmp_path / "uninterrupted", tokenizer, **timed)
    plan = RunFile.read(uninterrupted.folder).plan
    for name in ("early", "late"):  # crashed before, and after, the first checkpoint
        shutil.copytree(uninterrupted.folder, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints")
    crashed_run(tmp_path / "early", tokenizer, plan.measured + 1, resume=True, **timed)
    crashed_run(tmp_path / "late", tokenizer, plan.steps - 1, resume=True, **timed)
    for name in ("early", "late"):
        run = tiny_run(tmp_path / name, tokenizer, resume=True, **timed)
        assert RunFile.read(run.folder).plan == plan
        assert run.steps == uninterrupted.steps
        assert differing(end_state(run.folder), end_state(uninterrupted.folder)) == []


def test_more_steps_lengthen_a_run(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer, steps=4)
    log = Log()
    settings = resume_config(tmp_path / "run", steps=6)
    assert settings.resume
    assert settings.steps == 6
    run = tiny_run(tmp_path / "run", tokenizer, log, steps=6, resume=True)
    assert run.step == 6
    assert len(losses(tmp_path / "run")) == 6
    assert "steps was 4, now 6" in log.all("on_message")[0][0]
    assert any("after step 4, other budget: the learning rate was" in text for text, *_ in log.all("on_message"))
    with pytest.raises(ConfigError, match="is at step 6 already, which is more than the 3 steps given"):
        tiny_run(tmp_path / "run", tokenizer, steps=3, resume=True)


def test_seconds_that_are_used_up_raise_error(tokenizer, tmp_path):
    timed = {"steps": None, "eval_every": 0, "save_every": 4}
    tiny_run(tmp_path / "run", tokenizer, seconds=0.7, **timed)
    before = end_state(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"seconds already, which is more than the 0.1 seconds given"):
        tiny_run(tmp_path / "run", tokenizer, seconds=0.1, resume=True, **timed)
    assert end_state(tmp_path / "run") == before


def test_differences_are_reported_on_resume(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer, steps=4)
    path = tmp_path / "run" / "run.json"
    raw = json.loads(path.read_text())
    raw["environment"] |= {"torch": "1.0", "threads": 7}
    path.write_text(json.dumps(raw))
    log = Log()
    tiny_run(tmp_path / "run", tokenizer, log, resume=True, optim=OptimConfig(lr=0.5, muon_dtype="float32"))
    text, warning = log.all("on_message")[0]
    assert warning
    for part in ("is not bit-identical", "optim.lr was None, now 0.5", "torch was '1.0', now ", "threads was 7"):
        assert part in text


def test_resume_with_other_seed_or_data_raises_error(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer, steps=2)
    with pytest.raises(ConfigError, match="other options: seed was 0, now 3"):
        tiny_run(tmp_path / "run", tokenizer, steps=4, resume=True, seed=3)
    path = tmp_path / "run" / "run.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"data_fingerprint": "0" * 64}))
    with pytest.raises(DataError, match="is not the data that this run was started with"):
        tiny_run(tmp_path / "run", tokenizer, steps=4, resume=True)


def test_run_file_of_another_version_or_truncated_raises_error(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer, steps=2)
    path = tmp_path / "run" / "run.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(CheckpointError, match=r"run.json has format version 99, this Glassformer reads 2"):
        tiny_run(tmp_path / "run", tokenizer, steps=2, resume=True)
    path.write_text(text[:100])
    with pytest.raises(CheckpointError, match=r"run.json is not valid JSON"):
        tiny_run(tmp_path / "run", tokenizer, steps=2, resume=True)


def spoil_bytes(path, at=-40):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json", "state.json", "missing"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tokenizer, tmp_path, name):
    tiny_run(tmp_path / "uninterrupted", tokenizer, steps=8)
    run = tmp_path / "run"
    tiny_run(run, tokenizer, steps=6)
    newest = run / "checkpoints" / "step-000006"
    if name == "missing":
        (newest / "optimizer.safetensors").unlink()
    elif name == "state.json":
        (newest / name).write_text((newest / name).read_text()[:100])
    else:
        spoil_bytes(newest / name)
    log = Log()
    tiny_run(run, tokenizer, log, steps=8, resume=True)
    assert [r[0].step for r in log.all("on_step")] == [5, 6, 7, 8]  # from the checkpoint of step 4
    aside = run / "checkpoints" / "damaged-step-000006"
    told = [text for text, *_ in log.all("on_message") if "step-000006" in text]
    assert told[0].endswith(f"the checkpoint is now {aside}, the run resumes before it")
    assert aside.is_dir()
    shutil.rmtree(aside)
    assert differing(end_state(run), end_state(tmp_path / "uninterrupted")) == []


def test_run_whose_checkpoints_are_all_damaged_raises_error_and_changes_nothing(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer, steps=4)
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        path = path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-40])
    before = end_state(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run can be read: .*step-000004/model.saf"):
        tiny_run(tmp_path / "run", tokenizer, steps=8, resume=True)
    assert end_state(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["tokens-00000.bin", "documents.npy"])
def test_changed_tokens_are_noticed_on_resume(tokenizer, tmp_path, name):
    tiny_run(tmp_path / "run", tokenizer, steps=2)
    spoil_bytes(tmp_path / "run" / "data" / name, at=-3)
    with pytest.raises(DataError, match=rf"{name} is damaged \(SHA-256 differs\)"):
        tiny_run(tmp_path / "run", tokenizer, steps=4, resume=True)
    index = tmp_path / "run" / "data" / "index.json"
    values = json.loads(index.read_text())
    del values["sha256"][name]
    index.write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        tiny_run(tmp_path / "run", tokenizer, steps=4, resume=True)


def test_copy_with_contents_instead_of_links_is_resumed(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer, steps=4)
    tiny_run(tmp_path / "uninterrupted", tokenizer, steps=6)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=False)  # as `cp -rL`
    assert (tmp_path / "copy" / "checkpoints" / "last").is_dir()
    assert not (tmp_path / "copy" / "checkpoints" / "last").is_symlink()
    tiny_run(tmp_path / "copy", tokenizer, steps=6, resume=True)
    assert differing(end_state(tmp_path / "copy"), end_state(tmp_path / "uninterrupted")) == []
    only_last = tmp_path / "only" / "checkpoints" / "last"  # the folder of the step itself was not copied
    shutil.copytree(tmp_path / "run", tmp_path / "only", symlinks=False)
    for path in only_last.parent.glob("step-*"):
        shutil.rmtree(path)
    run = tiny_run(tmp_path / "only", tokenizer, steps=6, resume=True)
    assert losses(run.folder) == losses(tmp_path / "uninterrupted")


def test_run_on_a_file_system_without_links(tokenizer, tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    tiny_run(tmp_path / "uninterrupted", tokenizer, steps=6)
    monkeypatch.setattr(Path, "symlink_to", no_links)
    tiny_run(tmp_path / "run", tokenizer, steps=4)
    run = tiny_run(tmp_path / "run", tokenizer, steps=6, resume=True)
    best = tmp_path / "run" / "checkpoints" / "best"
    assert best.is_file()
    assert run.last.name == "step-000006"
    assert run.best == find_model(run.folder) == find_model(best) == best.parent / best.read_text().strip()
    assert losses(run.folder) == losses(tmp_path / "uninterrupted")


def test_truncate_metrics_keeps_earlier_lines_unchanged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {i},  "loss": 1.0}}\n' for i in range(1, 6)]
    path.write_text("".join(lines) + '{"step": 6, "lo')
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4, 5]
    truncate_metrics(path, 3)
    assert path.read_text() == "".join(lines[:3])
    truncate_metrics(path, -1)
    assert path.read_text() == ""
    truncate_metrics(tmp_path / "none.jsonl", 3)
    path.write_text(lines[0] + '{"step": "x"}\n' + lines[2])
    assert "line 2 of" in (truncate_metrics(path, 3) or "")
    assert path.read_text() == lines[0]


def test_resume_of_a_folder_without_a_run_raises(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a run folder, it has no run\.json"):
        resume_config(tmp_path)

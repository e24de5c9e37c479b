"""Test the training loop: learning, equivalences, signals and errors."""

import math
import os
import re
import signal
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import (
    SHAPE,
    Crash,
    Log,
    crash,
    end_state,
    losses,
    make_tokenizer,
    memory_folder,
    metrics,
    texts,
    tiny_config,
    tiny_run,
)

import glassformer
from glassformer.errors import CapacityError, CheckpointError, ConfigError, DataError, GlassformerError
from glassformer.training.config import (
    LanguageModelTaskConfig,
    OptimConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
    config_dict,
    from_dict,
)
from glassformer.training.run import loop as trainer
from glassformer.training.run import train as loop
from glassformer.training.run.run_file import RunFile
from glassformer.training.run.train import train
from glassformer.training.tasks.evaluate import Compute


@pytest.fixture
def tmp_path():
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_run_learns_and_writes_all_files(tokenizer, tmp_path):
    log = Log()
    run = tiny_run(tmp_path / "run", tokenizer, log, steps=60, eval_every=20, save_every=20, keep_last=2)
    assert (run.step, run.steps, run.stopped) == (60, 60, None)
    records = metrics(run.folder)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 61))
    evals = [r for r in records if "held_out_loss" in r]
    assert [r["step"] for r in evals] == [0, 20, 40, 60]
    assert evals[0]["held_out_loss"] == pytest.approx(math.log(22), rel=0.05)  # 22 tokens, nothing learned
    assert evals[-1]["held_out_loss"] < 0.75 * evals[0]["held_out_loss"]
    assert evals[-1]["perplexity"] == pytest.approx(math.exp(evals[-1]["held_out_loss"]))
    assert run.held_out.bits_per_byte == pytest.approx(
        run.held_out.loss * run.held_out.tokens / run.held_out.bytes / math.log(2)
    )
    assert (run.folder / "checkpoints" / "best").resolve() == run.best
    lm = glassformer.load(run.folder)
    assert lm.config.n_layers == SHAPE.n_layers
    assert lm.generate("anna", max_tokens=5, temperature=0.0).text
    assert ElementTree.parse(run.folder / "loss.svg").getroot().tag.endswith("svg")
    info = log.all("on_start")[0][0]
    assert info.matrix_rate > 1e7
    assert any("float32: requested" in reason for reason in info.choices)
    assert len(log.all("on_step")) == 60
    assert [entry[0] for entry in log.all("on_checkpoint")] == [20, 40, 60]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_micro_batches_equal_one_batch(tokenizer, tmp_path, name):
    optim = OptimConfig(name=name, muon_dtype="float32")
    tiny_run(tmp_path / "one", tokenizer, optim=optim, batch=8, accumulate=1)
    tiny_run(tmp_path / "four", tokenizer, optim=optim, batch=2, accumulate=4)
    one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert [r["tokens"] for r in metrics(tmp_path / "one")] == [r["tokens"] for r in metrics(tmp_path / "four")]
    assert four == pytest.approx(one, rel=1e-6, abs=0)
    a, b = (load_file(tmp_path / n / "checkpoints" / "last" / "model.safetensors") for n in ("one", "four"))
    apart = max((a[n] - b[n]).abs().max().item() for n in a)
    assert 0 < apart < 2e-6  # the sums were made in another order, and that is all


def test_same_seed_gives_same_bits_and_another_seed_does_not(tokenizer, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny_run(tmp_path / name, tokenizer, seed=seed, steps=4)
    assert end_state(tmp_path / "a") == end_state(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_sampling_and_evaluating_change_nothing(tokenizer, tmp_path):
    log = Log()
    tiny_run(tmp_path / "quiet", tokenizer, eval_every=8, save_every=8)
    tiny_run(tmp_path / "loud", tokenizer, log, eval_every=1, save_every=8, sample_every=2, sample_prompt="anna")
    assert losses(tmp_path / "quiet") == losses(tmp_path / "loud")
    samples = log.all("on_sample")
    assert [step for step, _ in samples] == [2, 4, 6, 8]
    assert all(text.startswith("anna") and len(text) > 4 for _, text in samples)


class Clock(Log):
    """Time that passes only by steps, evaluations and checkpoints, in seconds each."""

    def __init__(self, **seconds):
        super().__init__()
        self.now, self.seconds = 0.0, {"on_step": 0.05, "on_eval": 0.3} | seconds

    def hear(self, name, *values, **named):
        super().hear(name, *values, **named)
        self.now += self.seconds.get(name, 0.0)

    def install(self, monkeypatch):
        for module in (loop, trainer):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_budget_in_seconds_fixes_the_steps_once(tokenizer, tmp_path, monkeypatch):
    log = Clock()
    log.install(monkeypatch)
    run = tiny_run(tmp_path / "run", tokenizer, log, steps=None, seconds=20.0, eval_every=0, save_every=0)
    plan = log.all("on_plan")[0][0]
    assert len(log.all("on_plan")) == 1
    assert RunFile.read(run.folder).plan == plan
    assert run.step == run.steps == plan.steps
    assert 18.0 < log.now <= 20.0
    assert plan.warmup == 2
    assert 5 <= plan.measured <= 20
    evaluated = [r["step"] for r in metrics(run.folder) if "held_out_loss" in r]
    assert evaluated == [0, *range(plan.eval_every, plan.steps, plan.eval_every), plan.steps]
    assert 2 <= len(evaluated) - 1 <= 0.05 * 20 / 0.3  # evaluating takes its share of the time, not more


@pytest.mark.parametrize("budget", [{"steps": 40}, {"steps": None, "seconds": 300.0}])
def test_checkpoints_are_at_most_a_minute_apart(tokenizer, tmp_path, monkeypatch, budget):
    log = Clock(on_step=7.0)
    log.install(monkeypatch)
    tiny_run(tmp_path / "run", tokenizer, log, save_every=0, eval_every=1000, **budget)
    times, now = [0.0], 0.0
    for name, *_ in log.said:
        now += log.seconds.get(name, 0.0)
        if name == "on_checkpoint":
            times.append(now)
    assert len(times) > 3
    assert max(b - a for a, b in pairwise(times)) <= 60
    slow = Clock(on_step=7.0, on_checkpoint=30.0)
    slow.install(monkeypatch)
    tiny_run(tmp_path / "slow", tokenizer, slow, save_every=0, eval_every=1000, steps=40)
    saved = [step for step, *_ in slow.all("on_checkpoint")]
    assert saved == [8, 40]  # the first after a minute; then they would take more than a tenth of the time


def test_slow_machine_gets_a_smaller_batch(tokenizer, tmp_path, monkeypatch):
    def config(name, **changes):
        return tiny_config(tmp_path / name, tokenizer, steps=None, save_every=0, eval_every=0, batch=0, **changes)

    clock = Clock(on_step=1.0)
    clock.install(monkeypatch)
    real = Compute.loss

    def loss(self, model, batch):
        clock.now += 0.02 * len(batch.ids) if torch.is_grad_enabled() else 0.0
        return real(self, model, batch)

    monkeypatch.setattr(Compute, "loss", loss)
    train(config("slow", seconds=60.0), documents=texts(200), reporter=clock)  # 93 steps of 32
    recorded = RunFile.read(tmp_path / "slow").config
    assert recorded.batch == 8
    assert "batch 8: with 32, 60 seconds are 94 steps on this machine" in clock.all("on_start")[0][0].choices
    fast = Clock(on_step=1.0)
    fast.install(monkeypatch)
    train(config("fast", seconds=20.0), documents=texts(200), reporter=fast)
    assert RunFile.read(tmp_path / "fast").config.batch == 32
    again = replace(config("slow", seconds=60.0), resume=True)
    assert train(again, documents=texts(200)).step == train(again, documents=texts(200)).step
    assert RunFile.read(tmp_path / "slow").config.batch == 8


def test_tokens_become_steps(tokenizer, tmp_path):
    run = tiny_run(tmp_path / "run", tokenizer, steps=None, tokens=200)
    assert run.steps == math.ceil(200 / (4 * 16))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_a_checkpoint_to_resume_from(tokenizer, tmp_path, number):
    tiny_run(tmp_path / "whole", tokenizer)
    before = signal.getsignal(number)
    log = Log({3: lambda: os.kill(os.getpid(), number)})
    run = tiny_run(tmp_path / "run", tokenizer, log)
    assert run.stopped == number.name
    assert run.step == 4  # the step under way is finished, one more sees the wish
    assert signal.getsignal(number) == before
    again = tiny_run(tmp_path / "run", tokenizer, resume=True)
    assert again.stopped is None
    assert end_state(tmp_path / "run") == end_state(tmp_path / "whole")


def test_second_signal_stops_at_once(tokenizer, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)  # the handler has run when it returns, so two do not become one
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path / "run", tokenizer, Log({3: twice}))
    tiny_run(tmp_path / "whole", tokenizer)
    tiny_run(tmp_path / "run", tokenizer, resume=True)
    assert end_state(tmp_path / "run") == end_state(tmp_path / "whole")


def spoil(monkeypatch, at: int, change):
    """At the `at`-th training pass, `change` the loss."""
    real, calls = Compute.loss, []

    def loss(self, model, rows):
        found = real(self, model, rows)
        if torch.is_grad_enabled():
            calls.append(1)
            return change(found) if len(calls) == at else found
        return found

    monkeypatch.setattr(Compute, "loss", loss)


def test_loss_that_is_not_finite_stops_the_run(tokenizer, tmp_path, monkeypatch):
    spoil(monkeypatch, 5, lambda loss: loss * math.nan)
    with pytest.raises(GlassformerError, match=r"the loss is nan at step 5: .*step-000004.*Lower optim.lr"):
        tiny_run(tmp_path / "run", tokenizer)
    monkeypatch.undo()
    assert [r["step"] for r in metrics(tmp_path / "run") if "loss" in r] == [1, 2, 3, 4]
    tiny_run(tmp_path / "whole", tokenizer)
    tiny_run(tmp_path / "run", tokenizer, resume=True)
    assert end_state(tmp_path / "run") == end_state(tmp_path / "whole")


def test_gradient_that_is_not_finite_stops_the_run(tokenizer, tmp_path, monkeypatch):
    spoil(monkeypatch, 2, lambda loss: torch.sqrt(loss * 0) + loss.detach())  # d sqrt(0) = inf
    with pytest.raises(GlassformerError, match=r"the gradient norm is nan at step 2: .*no checkpoint"):
        tiny_run(tmp_path / "run", tokenizer)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_out_of_memory_raises_capacity_error(tokenizer, tmp_path, monkeypatch, error):
    def fail(_):
        raise error

    spoil(monkeypatch, 3, fail)
    with pytest.raises(CapacityError, match=r"batch 4 x context 16: lower batch .*the context"):
        tiny_run(tmp_path / "run", tokenizer)


def test_failed_allocation_raises_capacity_error(tokenizer, tmp_path, monkeypatch):
    spoil(monkeypatch, 2, lambda _: torch.empty(1 << 60))
    with pytest.raises(CapacityError, match="lower batch"):
        tiny_run(tmp_path / "run", tokenizer)


def test_existing_run_and_missing_run_raise_config_error(tokenizer, tmp_path):
    tiny_run(tmp_path / "run", tokenizer, steps=2)
    before = end_state(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        tiny_run(tmp_path / "run", tokenizer, steps=2)
    assert end_state(tmp_path / "run") == before
    with pytest.raises(ConfigError, match="holds no run to resume"):
        tiny_run(tmp_path / "other", tokenizer, resume=True)


def test_too_small_corpus_raises_data_error(tokenizer, tmp_path):
    with pytest.raises(DataError, match="too small"):
        tiny_run(tmp_path / "run", tokenizer, batch=4096)
    with pytest.raises(DataError, match="there is no training data"):
        train(tiny_config(tmp_path / "none", tokenizer))


def test_continue_from_another_model(tokenizer, tmp_path):
    first = tiny_run(tmp_path / "first", tokenizer, steps=20, eval_every=20, save_every=20)
    second = tiny_run(tmp_path / "second", tokenizer, steps=2, from_model=str(first.folder))
    begun = metrics(second.folder)[0]["held_out_loss"]
    assert begun == metrics(first.folder)[-1]["held_out_loss"]
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        tiny_run(tmp_path / "none", tokenizer, from_model=str(tmp_path))
    shorter = replace(SHAPE, context=99)
    with pytest.raises(ConfigError, match="training sequences of 99 tokens exceed the model's context of 16"):
        tiny_run(tmp_path / "third", tokenizer, steps=2, from_model=str(first.folder), model=shorter)


def test_continued_model_has_lower_rates_and_a_run_that_gets_worse_says_so(tokenizer, tmp_path):
    new, continued = TrainConfig().filled_optim, TrainConfig(from_model="x").filled_optim
    assert (new.lr, new.embed_lr, new.scalar_lr) == (0.02, 0.005, 0.005)
    assert (continued.lr, continued.embed_lr, continued.scalar_lr) == pytest.approx((2e-4, 5e-5, 5e-5))
    given = replace(TrainConfig(from_model="x"), optim=OptimConfig(name="adamw", lr=0.5)).filled_optim
    assert (given.lr, given.embed_lr, given.scalar_lr) == (0.5, 0.5, 0.5)
    first = tiny_run(tmp_path / "first", tokenizer, steps=40, eval_every=40, save_every=40)
    log = Log()
    fine = tiny_run(tmp_path / "fine", tokenizer, log, from_model=str(first.folder))
    evaluated = [r["held_out_loss"] for r in metrics(fine.folder) if "held_out_loss" in r]
    assert max(evaluated) < evaluated[0] + 0.01
    lr = OptimConfig(lr=0.5, embed_lr=0.5, muon_dtype="float32")
    tiny_run(tmp_path / "worse", tokenizer, log, from_model=str(first.folder), optim=lr)
    told = [text for text, *_ in log.all("on_message") if "no checkpoint" in text]
    assert re.match(r"no checkpoint is better than the start: the held-out loss is [\d.]+ at step 0", told[-1])


def test_tokenizer_is_trained_by_default(tmp_path):
    config = replace(tiny_config(tmp_path / "run", ""), tokenizer=TokenizerConfig(kind="char"), steps=2)
    run = train(config, documents=texts)
    assert glassformer.load(run.folder).tokenizer.vocab_size == 22


def test_without_held_out_text_nothing_is_evaluated(tokenizer, tmp_path):
    run = tiny_run(tmp_path / "run", tokenizer, steps=4, held_out=0.0)
    assert run.held_out is None
    assert all("loss" in r for r in metrics(run.folder))
    assert run.best == run.last


def test_failed_compilation_is_reported_and_not_used(tokenizer, tmp_path, monkeypatch):
    def no_compiler(*_, **__):
        def compiled(*_, **__):
            raise RuntimeError("no C++ compiler was found\nand much more")

        return compiled

    monkeypatch.setattr(torch, "compile", no_compiler)
    log = Log()
    tiny_run(tmp_path / "run", tokenizer, log, compile=True)
    assert ("torch.compile is not used: RuntimeError: no C++ compiler was found", True) in log.all("on_message")
    monkeypatch.undo()
    tiny_run(tmp_path / "eager", tokenizer)
    assert losses(tmp_path / "run") == losses(tmp_path / "eager")


def test_tensorboard_has_each_step_once_after_a_crash(tokenizer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Crash):
        tiny_run(tmp_path / "run", tokenizer, Log({7: crash}), save_every=4, tensorboard=True)
    tiny_run(tmp_path / "run", tokenizer, save_every=4, tensorboard=True, resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    assert [event.step for event in events.Scalars("held_out_loss")] == [0, 2, 4, 6, 8]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path / "run"))


def test_wandb_run_is_continued(tokenizer, tmp_path, monkeypatch):
    """With a stand-in for the package, which needs an account: the arguments that its documentation gives."""
    started, logged = [], []
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    run = SimpleNamespace(log=lambda values, step: logged.append(step), finish=lambda: None)
    module.init = lambda **options: started.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    tiny_run(tmp_path / "run", tokenizer, steps=2, wandb=True)
    tiny_run(tmp_path / "run", tokenizer, steps=4, wandb=True, resume=True)
    tiny_run(tmp_path / "other", tokenizer, steps=2, wandb=True)
    ids = [options["id"] for options in started]
    assert ids[0] == ids[1] != ids[2]
    assert all(options["resume"] == "allow" for options in started)
    assert set(logged[:-3]) == {0, 1, 2, 3, 4}

    def fail(**_):
        raise RuntimeError("not logged in")

    module.init = fail
    with pytest.raises(ConfigError, match="could not be started: not logged in"):
        tiny_run(tmp_path / "new", tokenizer, wandb=True)
    assert not (tmp_path / "new").exists()


def test_missing_extra_raises_error_with_install_command(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'glassformer\[wandb\]'"):
        tiny_run(tmp_path / "run", tokenizer, wandb=True)


def test_config_round_trips_through_json():
    config = TrainConfig(
        data=("a", "b"),
        task=LanguageModelTaskConfig(model=SHAPE),
        optim=OptimConfig(betas=(0.8, 0.9)),
        schedule=ScheduleConfig("cosine"),
        tokens=5,
    )
    import json

    assert from_dict(TrainConfig, json.loads(json.dumps(config_dict(config)))) == config
    with pytest.raises(ConfigError, match=r"config.optim has unknown keys: colour"):
        from_dict(TrainConfig, {"optim": {"colour": 1}})
    with pytest.raises(ConfigError, match=r"give one of seconds, steps and tokens, got seconds and steps"):
        TrainConfig(seconds=1.0, steps=2)
    assert TrainConfig().budget_seconds == 120
    assert TrainConfig(steps=5).budget_seconds is None

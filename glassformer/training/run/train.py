"""Training: `train` sets a run up or takes it up again, `Trainer` goes through its steps.

batch -> loss (sum of nats) -> backward      x accumulate micro-batches, on every process
     -> gradients and counts summed over processes -> / counted tokens -> clip -> update
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from glassformer.errors import CapacityError, ConfigError, DataError, GlassformerError
from glassformer.families.common.shape import RecurrentShape
from glassformer.kernels.placement import choose_device
from glassformer.training.config import Plan, TrainConfig, config_dict, make_plan
from glassformer.training.optim.optimizers import Optimizer
from glassformer.training.run import precision
from glassformer.training.run.checkpoint import (
    Checkpoints,
    TrainState,
    read_optimizer,
    read_state,
    rng_state,
    set_rng_state,
)
from glassformer.training.run.distributed import ProcessGroup, local_device, process_group
from glassformer.training.run.loop import RunResult, Trainer
from glassformer.training.run.metrics import (
    MetricsWriter,
    Reporter,
    Sink,
    StartInfo,
    TensorBoard,
    WandB,
    truncate_metrics,
)
from glassformer.training.run.run_file import RUN_FILE, RunFile, check_resume, differences, environment, has_run
from glassformer.training.tasks.evaluate import Compute
from glassformer.training.tasks.language_model import LanguageModelTask
from glassformer.training.tasks.language_model_setup import Documents, compile_blocks
from glassformer.training.tasks.seq2seq import ExampleSource, Seq2SeqTask
from glassformer.training.tasks.task import Task

TASKS = {"lm": LanguageModelTask, "seq2seq": Seq2SeqTask}
Given = Documents | ExampleSource


def train(
    config: TrainConfig,
    *,
    documents: Given | None = None,
    held_out: Given | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train a model from text, or from pairs of texts; everything a run makes lies in the folder `config.out`.

    documents: the text, instead of `config.data`: strings, `Document`s, or a function that gives them; `Pair`s where
    the task is seq2seq. held_out: the same, instead of `config.held_out_data`. Resumes bit for bit on the same machine,
    dtype, versions and threads; what differs is told. Tunes malloc for this process. Under torchrun every process calls
    this.

    Raises ConfigError (settings that contradict, a run that is there already), DataError (unusable text), CapacityError
    (out of memory), CheckpointError (disk full, a damaged run), GlassformerError (the loss is no longer a number).
    """
    precision.tune_malloc()
    if held_out is not None and config.held_out_data:
        raise ConfigError("held_out and held_out_data both say what is held out: give one of them")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(local_device(os.environ, config.device))
    with process_group(device) as world, memory_errors(config):
        trainer = set_up(config, world, device, documents, held_out, (reporter if world.first else None) or Reporter())
        try:
            return trainer.run()
        finally:
            trainer.metrics.close()


@contextmanager
def memory_errors(config: TrainConfig) -> Iterator[None]:
    """Running out of memory becomes a CapacityError that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("out of memory", "can't allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(word in str(error).lower() for word in words):
            raise
        raise CapacityError(
            f"out of memory with batch {config.batch} x context {config.context}: lower batch (and raise accumulate "
            f"by as much, which gives the same result), model.context or the model's size ({error})"
        ) from error


def begin_run(
    config: TrainConfig, world: ProcessGroup, device: torch.device, choice: precision.PrecisionChoice
) -> RunFile:
    """A new run.json, or the one to go on with. ConfigError where a run would be overwritten, or is not there."""
    folder = Path(config.out)
    there = has_run(folder)
    if there and not config.resume:
        raise ConfigError(f"{folder} holds a run already: resume it, or name another folder")
    if config.resume and not there:
        raise ConfigError(f"{folder} holds no run to resume: it has no run.json")
    if there:
        return RunFile.read(folder)
    world.barrier()  # all have looked before the first one writes
    recorded = RunFile(config_dict(config), environment(device, choice.dtype, world.size))
    if world.first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
        recorded.write(folder)
    return recorded


def set_up(
    config: TrainConfig,
    world: ProcessGroup,
    device: torch.device,
    documents: Given | None,
    held_out: Given | None,
    reporter: Reporter,
) -> Trainer:
    """Everything before the first step, new or resumed."""
    folder = Path(config.out)
    choice = precision.choose_precision(
        asked=config.dtype,
        device=device.type,
        features=precision.cpu_features(),
        cuda_bf16=precision.cuda_has_bf16(),
        width=config.model.d_model,
        recurrent=isinstance(config.model, RecurrentShape),
    )
    recorded = begin_run(config, world, device, choice)
    changed: list[str] = []
    if config.resume:
        now = environment(device, choice.dtype, world.size)
        changed = check_resume(recorded, config) + differences(recorded.environment, now)
        recorded = replace(recorded, settings=config_dict(config), environment=now)
    if changed:
        reporter.on_message(f"this run will not go on bit for bit: {'; '.join(changed)}", warning=True)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_last)
    sinks: list[Sink] = []
    kind = TASKS[config.task]
    if world.first:
        sinks = [TensorBoard(folder)] if config.tensorboard else []
        sinks += [WandB(folder, config_dict(config))] if config.wandb else []
        checkpoints.recover()
        if not config.resume or recorded.fingerprint is None:
            try:
                kind.prepare(config, documents, held_out, reporter)  # pyright: ignore[reportArgumentType]
            except GlassformerError:
                if not config.resume:  # nothing to go on with: the same command may be given again, on better data
                    (folder / RUN_FILE).unlink()
                raise
    world.barrier()

    checkpoint = checkpoints.last() if config.resume else None
    torch.manual_seed(config.seed)
    how = Compute(device, choice.torch_dtype)
    task: Task = kind(config, world, how, checkpoint)
    begun = recorded.fingerprint if config.resume else None
    if begun is not None and begun != task.fingerprint:
        raise DataError(
            f"{folder / 'data'} is not the data that this run was begun with (fingerprint {task.fingerprint[:12]}, "
            f"run.json says {begun[:12]}): start a new run"
        )
    same = choice.torch_dtype if config.optim.muon_dtype == "auto" else getattr(torch, config.optim.muon_dtype)
    optimizer = Optimizer(task.model, config.optim, muon_dtype=same)
    state = TrainState(0, 0, 0.0, task.loader.state(), rng_state())
    if checkpoint is not None:
        state = read_state(checkpoint)
        optimizer.load_state_dict(read_optimizer(checkpoint))
        task.loader.load_state(state.loader)
        set_rng_state(state.rng)
    plan = fix_plan(config, recorded, state.step, task)
    if world.first:
        truncate_metrics(folder / "metrics.jsonl", state.step if checkpoint else -1)
        recorded = replace(recorded, fingerprint=task.fingerprint, plan=plan)
        recorded.write(folder)
    world.barrier()

    reasons = [f"device {device}", f"dtype {choice.dtype}: {choice.because}", f"{torch.get_num_threads()} threads"]
    if config.compile:
        failed = compile_blocks(task.model, lambda: trial(task, optimizer))
        reasons.append(failed or "blocks compiled, one code for all")
        if failed:
            reporter.on_message(failed, warning=True)
    rate = precision.measure_matrix_rate(task.matrices, task.batch_tokens, choice.torch_dtype, str(device)) * world.size
    metrics = MetricsWriter(folder / "metrics.jsonl" if world.first else Path(os.devnull), sinks)
    info = StartInfo(
        folder=folder,
        plan=plan,
        step=state.step,
        n_parameters=sum(p.numel() for p in task.model.parameters()),
        train_tokens=task.train_tokens,
        held_out_tokens=task.held_out_tokens,
        matrix_rate=rate,
        choices=tuple(reasons),
    )
    reporter.on_start(info)
    return Trainer(
        config=config,
        world=world,
        task=task,
        optimizer=optimizer,
        plan=plan,
        run_file=recorded,
        checkpoints=checkpoints,
        metrics=metrics,
        reporter=reporter,
        seconds_per_token=task.flops_per_token / rate,
        step=state.step,
        tokens=state.tokens,
        started_at=time.perf_counter() - state.seconds,
    )


def fix_plan(config: TrainConfig, recorded: RunFile, step: int, task: Task) -> Plan:
    """The recorded plan where it still is what is asked; a new one otherwise. By seconds: 0 steps, until measured."""
    old = recorded.plan
    if config.budget_seconds is not None:
        if old is not None and old.seconds == config.budget_seconds:
            return old
        return make_plan(config, 0, measured=step)
    steps = config.steps or task.steps_for(config.tokens or 0)
    if step > steps:
        raise ConfigError(f"{config.out} is at step {step} already, {steps} were asked for")
    return make_plan(config, steps)


def trial(task: Task, optimizer: Optimizer) -> None:
    """One pass forward and back that leaves no trace."""
    before = task.loader.state()
    try:
        task.loss(task.loader.next()).backward()
    finally:
        task.loader.load_state(before)
        optimizer.zero_grad()

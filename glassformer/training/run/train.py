"""`train`: start or resume a training run."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from glassformer.errors import CapacityError, CheckpointError, ConfigError, DataError
from glassformer.families.common.shape import RecurrentShape
from glassformer.kernels.cpu import cpu_features
from glassformer.kernels.placement import choose_device
from glassformer.training.config import DEFAULT_BATCH, Plan, TrainConfig, config_dict, make_plan
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
from glassformer.training.run.loop import RunResult, Trainer, planned_factor
from glassformer.training.run.metrics import (
    MetricsWriter,
    Reporter,
    Sink,
    StartInfo,
    TensorBoard,
    WandB,
    check_trackers,
    truncate_metrics,
)
from glassformer.training.run.run_file import RUN_FILE, RunFile, check_resume, differences, environment, has_run
from glassformer.training.run.run_folder import RunFolder, check_new_folder, open_run_folder
from glassformer.training.tasks.evaluate import Compute
from glassformer.training.tasks.language_model import LanguageModelTask
from glassformer.training.tasks.language_model_setup import Documents, compile_blocks
from glassformer.training.tasks.seq2seq import ExampleSource, Seq2SeqTask
from glassformer.training.tasks.task import Task

MIN_STEPS, MIN_BATCH = 300, 4  # of a budget in seconds, where the batch is not given
TASKS = {"lm": LanguageModelTask, "seq2seq": Seq2SeqTask}
TrainingData = Documents | ExampleSource


def train(
    config: TrainConfig,
    *,
    documents: TrainingData | None = None,
    held_out: TrainingData | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train a model; everything the run writes is in the folder `config.out`.

    A resumed run is bit-identical to an uninterrupted one on the same machine with the same dtype, versions and
    threads; differences are reported. Tunes malloc for this process. Under torchrun every process calls this function.

    Args:
        documents: training data that replaces `config.data`: strings, `Document`s or (task seq2seq)
            `Seq2SeqExample`s, as an iterable or a function that returns one.
        held_out: evaluation data that replaces `config.held_out_data`, in the same forms.
        reporter: receives progress and metrics.

    Raises:
        ConfigError: options contradict each other, the folder holds a run already, or another process trains in it.
        DataError: the data cannot be used.
        CapacityError: out of memory.
        CheckpointError: a file cannot be read or written, the disk is full, or the run to resume is damaged.
        GlassformerError: the loss or the gradient is not finite.
    """
    precision.tune_malloc()
    if held_out is not None and config.held_out_data:
        raise ConfigError("held_out and held_out_data exclude each other: give one of them")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(local_device(os.environ, config.device))
    reporter = reporter or Reporter()
    measure_batch = not config.batch and not config.resume and config.budget_seconds is not None
    with file_errors(config):
        config = with_batch(config)
    with memory_errors(config), file_errors(config), process_group(device) as world:
        choice = check(config, world, device, documents, held_out)
        with run_folder(config, world) as folder:
            shown = reporter if world.first else Reporter()
            trainer = set_up(config, world, device, choice, documents, held_out, shown, measure_batch)
            try:
                return trainer.run()
            finally:
                folder.started = trainer.step > 0
                trainer.metrics.close()


def check(
    config: TrainConfig,
    world: ProcessGroup,
    device: torch.device,
    documents: TrainingData | None,
    held_out: TrainingData | None,
) -> precision.PrecisionChoice:
    """Check everything that can be checked before a file is written or a token made; return the dtype.

    Raises as `train` does.
    """
    check_trackers(config)
    if config.batch % world.size:
        raise ConfigError(f"batch must be a multiple of the {world.size} processes, got {config.batch}")
    if not config.resume:
        check_new_folder(Path(config.out))
        task = TASKS[config.task.kind]
        task.check(config, documents, held_out)  # pyright: ignore[reportArgumentType]
    world.barrier()  # every process has checked before the first one writes
    return precision.choose_precision(
        requested=config.dtype,
        device=device.type,
        features=cpu_features(),
        cuda_bf16=precision.cuda_has_bf16(),
        width=config.task.model.d_model,
        recurrent=isinstance(config.task.model, RecurrentShape),
    )


@contextmanager
def run_folder(config: TrainConfig, world: ProcessGroup) -> Iterator[RunFolder]:
    """Open the run folder in the first process, which alone writes into it; see `open_run_folder`."""
    folder = Path(config.out)
    if world.first:
        with open_run_folder(folder, resume=config.resume) as opened:
            yield opened
    else:
        yield RunFolder(folder)


@contextmanager
def file_errors(config: TrainConfig) -> Iterator[None]:
    """Turn an error of the file system that nothing more specific has handled into a CheckpointError."""
    try:
        yield
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or config.out} could not be read or written: {error.strerror or error}"
        ) from error


@contextmanager
def memory_errors(config: TrainConfig) -> Iterator[None]:
    """Turn an out-of-memory error into a CapacityError that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("out of memory", "can't allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(word in str(error).lower() for word in words):
            raise
        raise CapacityError(
            f"out of memory with batch {config.batch} x context {config.task.context}: lower batch (and raise "
            f"accumulate by the same factor, which gives the same result), the context or the size of the model "
            f"({error})"
        ) from error


def set_up(
    config: TrainConfig,
    world: ProcessGroup,
    device: torch.device,
    choice: precision.PrecisionChoice,
    documents: TrainingData | None,
    held_out: TrainingData | None,
    reporter: Reporter,
    measure_batch: bool,
) -> Trainer:
    """Prepare data, model, optimizer and state of a new or resumed run.

    measure_batch: lower the batch where this machine would make too few steps in the budget of seconds.
    """
    folder = Path(config.out)
    now = environment(device, choice.dtype, world.size)
    run_file = RunFile.read(folder) if config.resume else RunFile(config, now)
    if config.resume:
        if changed := check_resume(run_file, config) + differences(run_file.environment, now):
            reporter.on_message(f"the resumed run is not bit-identical: {'; '.join(changed)}", warning=True)
        run_file = replace(run_file, config=config, environment=now)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_last)
    sinks: list[Sink] = []
    checkpoint, damaged = None, {}
    task_class = TASKS[config.task.kind]
    if world.first:
        if config.resume:
            checkpoint, damaged = checkpoints.latest_complete()
        else:
            run_file.write(folder)
        last = None if checkpoint is None else read_state(checkpoint).step
        sinks = [TensorBoard(folder, last if checkpoint or not config.resume else -1)] if config.tensorboard else []
        sinks += [WandB(folder, config_dict(config), run_file.id)] if config.wandb else []
        for path, problem in damaged.items():
            aside = checkpoints.set_aside(path)
            reporter.on_message(f"{problem}: the checkpoint is now {aside}, the run resumes before it", warning=True)
        checkpoints.recover()
        if run_file.fingerprint is None:
            task_class.prepare(config, documents, held_out, reporter)  # pyright: ignore[reportArgumentType]
        else:
            task_class.verify(folder)
    checkpoint = world.broadcast(checkpoint)

    torch.manual_seed(config.seed)
    task: Task = task_class(config, world, Compute(device, choice.torch_dtype), checkpoint)
    recorded = run_file.fingerprint
    if recorded is not None and recorded != task.fingerprint:
        raise DataError(
            f"{folder / 'data'} is not the data that this run was started with: its fingerprint is "
            f"{task.fingerprint[:12]}, {RUN_FILE} has {recorded[:12]}: start a new run"
        )
    muon_dtype = choice.torch_dtype if config.optim.muon_dtype == "auto" else getattr(torch, config.optim.muon_dtype)
    optimizer = Optimizer(task.model, config.filled_optim, muon_dtype=muon_dtype)
    choices = [f"device {device}", f"dtype {choice.dtype}: {choice.because}", f"threads {torch.get_num_threads()}"]
    if getattr(config.task, "compile", False):
        failure = compile_blocks(task.model, lambda: trial_step(task, optimizer))
        choices.append(failure or "blocks compiled")
        if failure:
            reporter.on_message(failure, warning=True)
    if measure_batch:
        batch, because = world.broadcast(affordable_batch(config, world, task, optimizer))
        if because:
            config = replace(config, batch=batch)
            run_file = replace(run_file, config=config)
            task.set_batch(batch)
            choices.append(because)
    state = TrainState(0, 0, 0.0, task.loader.state(), rng_state())
    if checkpoint is not None:
        state = read_state(checkpoint)
        optimizer.load_state_dict(read_optimizer(checkpoint))
        task.loader.load_state(state.loader)
        set_rng_state(state.rng)
    plan = choose_plan(config, run_file, state, task)
    if checkpoint is not None and run_file.plan not in (None, plan):
        reporter.on_message(schedule_note(config, run_file.plan, plan, state.step))
    if world.first:
        problem = truncate_metrics(folder / "metrics.jsonl", state.step if checkpoint else -1)
        if problem:
            reporter.on_message(problem, warning=True)
        run_file = replace(run_file, fingerprint=task.fingerprint, plan=plan)
        run_file.write(folder)
    world.barrier()

    rate = precision.measure_matrix_rate(task.matrices, task.batch_tokens, choice.torch_dtype, str(device)) * world.size
    metrics = MetricsWriter(folder / "metrics.jsonl" if world.first else Path(os.devnull), sinks)
    reporter.on_start(
        StartInfo(
            folder=folder,
            plan=plan,
            step=state.step,
            n_parameters=sum(p.numel() for p in task.model.parameters()),
            train_tokens=task.train_tokens,
            held_out_tokens=task.held_out_tokens,
            matrix_rate=rate,
            choices=tuple(choices),
        )
    )
    return Trainer(
        config=config,
        world=world,
        task=task,
        optimizer=optimizer,
        plan=plan,
        run_file=run_file,
        checkpoints=checkpoints,
        metrics=metrics,
        reporter=reporter,
        seconds_per_token=task.flops_per_token / rate,
        step=state.step,
        tokens=state.tokens,
        started_at=time.perf_counter() - state.seconds,
    )


def with_batch(config: TrainConfig) -> TrainConfig:
    """Return the configuration with a batch: the given one, that of the run to resume, or the default."""
    if config.batch:
        return config
    folder = Path(config.out)
    recorded = RunFile.read(folder).config.batch if config.resume and has_run(folder) else 0
    return replace(config, batch=recorded or DEFAULT_BATCH)


def affordable_batch(config: TrainConfig, world: ProcessGroup, task: Task, optimizer: Optimizer) -> tuple[int, str]:
    """Return the largest batch with which the budget in seconds has MIN_STEPS steps, and why; "" for the default.

    Measures one training pass, or the second where the first is short and may include initialization.
    """
    budget, seconds = config.budget_seconds or 0.0, math.inf
    for _ in range(2):
        start = time.perf_counter()
        trial_step(task, optimizer)
        seconds = max(1e-9, time.perf_counter() - start)
        if seconds > 0.02 * budget:
            break
    fitting, batch = budget / (seconds * config.accumulate), config.batch
    while fitting * config.batch / batch < MIN_STEPS and batch // 2 >= MIN_BATCH and batch // 2 % world.size == 0:
        batch //= 2
    if batch == config.batch:
        return batch, ""
    return batch, f"batch {batch}: with {config.batch}, {budget:g} seconds are {fitting:,.0f} steps on this machine"


def schedule_note(config: TrainConfig, before: Plan | None, plan: Plan, step: int) -> str:
    """Return what a resumed run with another budget does to the learning rate."""
    peak, schedule = config.filled_optim.peak("hidden"), config.schedule
    last = peak * planned_factor(schedule, before, max(0, step - 1)) if before else 0.0
    rate = peak * planned_factor(schedule, plan, step)
    end = f"follows the schedule of {plan.steps:,} steps" if plan.steps else "is scheduled when the speed is measured"
    return f"resuming after step {step:,}, other budget: the learning rate was {last:.2g}, is {rate:.2g}, and {end}"


def choose_plan(config: TrainConfig, run_file: RunFile, state: TrainState, task: Task) -> Plan:
    """Return the recorded plan where its budget is unchanged, else a new one.

    A new plan for a budget in seconds has 0 steps until the speed is measured.
    """
    recorded, step = run_file.plan, state.step
    if config.budget_seconds is not None:
        if recorded is not None and recorded.seconds == config.budget_seconds:
            return recorded
        if state.seconds >= config.budget_seconds:
            raise ConfigError(
                f"{config.out} has trained for {state.seconds:,.0f} seconds already, which is more than the "
                f"{config.budget_seconds:g} seconds given"
            )
        return make_plan(config, 0, measured=step)
    steps = config.steps or task.steps_for(config.tokens or 0)
    if step > steps:
        raise ConfigError(f"{config.out} is at step {step} already, which is more than the {steps} steps given")
    return make_plan(config, steps)


def trial_step(task: Task, optimizer: Optimizer) -> None:
    """Run one forward and backward pass that changes no state."""
    before = task.loader.state()
    try:
        loss = task.loss(task.loader.next())
        loss.backward()
        loss.item()  # wait for the device
    finally:
        task.loader.load_state(before)
        optimizer.zero_grad()

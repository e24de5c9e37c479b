"""The training loop.

batch -> loss (sum in nats) -> backward      x accumulate micro-batches, on every process
     -> sum gradients and token counts over processes -> divide by counted tokens -> clip -> update
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from glassformer.errors import GlassformerError
from glassformer.formats.find import follow_link
from glassformer.training.config import Plan, ScheduleConfig, TrainConfig, make_plan
from glassformer.training.optim.optimizers import Optimizer
from glassformer.training.optim.schedule import lr_factor
from glassformer.training.run.checkpoint import Checkpoints, TrainState, read_state, rng_state
from glassformer.training.run.distributed import ProcessGroup
from glassformer.training.run.loss_curve import write_loss_curve
from glassformer.training.run.metrics import EvalRecord, MetricsWriter, Reporter, StepRecord, read_metrics
from glassformer.training.run.run_file import RunFile
from glassformer.training.run.signals import StopSignals
from glassformer.training.tasks.evaluate import Evaluation
from glassformer.training.tasks.task import Task

FLUSH_STEPS = 10  # steps whose losses stay on a GPU before they are fetched, which waits for it
PLANNED_SHARE = 0.98  # of a budget in seconds
SAVE_SECONDS = 60.0  # longest time between checkpoints, where their interval is not given
SAVE_SHARE = 0.1  # of the time for these checkpoints
EVAL_SHARE = 0.05  # of a budget in seconds for evaluations and checkpoints, where their interval is not given


@dataclass(frozen=True)
class RunResult:
    """The result of a run: `step` of `steps` are done. `stopped` names the signal that stopped it."""

    folder: Path
    step: int
    steps: int
    tokens: int
    seconds: float
    held_out: Evaluation | None
    stopped: str | None

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest held-out loss."""
        return follow_link(self.folder / "checkpoints" / "best")

    @property
    def last(self) -> Path:
        """The latest checkpoint."""
        return follow_link(self.folder / "checkpoints" / "last")


@dataclass
class PendingStep:
    """A step whose numbers may still be on the device. loss: sum in nats over `counted` targets."""

    step: int
    tokens: int
    counted: int
    loss: Tensor
    norm: Tensor
    lr: float


@dataclass
class Trainer:
    """The state of a run: `step` finished steps and `tokens` counted targets since `started_at` (perf_counter)."""

    config: TrainConfig
    world: ProcessGroup
    task: Task
    optimizer: Optimizer
    plan: Plan
    run_file: RunFile
    checkpoints: Checkpoints
    metrics: MetricsWriter
    reporter: Reporter
    seconds_per_token: float  # of the matrix products alone, at the measured rate
    step: int = 0
    tokens: int = 0
    started_at: float = field(default_factory=time.perf_counter)
    flushed_at: float = field(default_factory=time.perf_counter)
    pending: list[PendingStep] = field(default_factory=list)
    held_out: Evaluation | None = None
    measured_from: tuple[int, float] | None = None  # step and seconds at which the speed measurement starts
    eval_seconds: float = 0.0
    save_seconds: float = 0.0
    saved_at: float = 0.0  # perf_counter, of the last checkpoint or the start
    stepped_at: float = 0.0  # of the last step

    @property
    def seconds(self) -> float:
        """Training time so far, including that before the run was resumed."""
        return time.perf_counter() - self.started_at

    def run(self) -> RunResult:
        """Train until the plan is done or a signal stops the run."""
        stopped = None
        self.saved_at = self.stepped_at = time.perf_counter()
        with StopSignals() as signals:
            if self.step == 0:
                self.evaluate()
            while not self.plan.steps or self.step < self.plan.steps:
                stop = self.update(signals.name is not None)
                if not self.plan.steps:
                    self.measure_speed()
                self.after_step(stop)
                if stop:
                    stopped = signals.name or "another process"
                    break
        if self.world.first and not stopped:
            self.compare_with_start()
        self.world.barrier()
        folder = Path(self.config.out)
        return RunResult(folder, self.step, self.plan.steps, self.tokens, self.seconds, self.held_out, stopped)

    def compare_with_start(self) -> None:
        """Report a run in which no checkpoint has a lower held-out loss than step 0."""
        self.metrics.sync()
        records = read_metrics(Path(self.config.out) / "metrics.jsonl")
        start = next((r["held_out_loss"] for r in records if r["step"] == 0 and "held_out_loss" in r), None)
        best = self.checkpoints.best()
        lowest = None if best is None else read_state(best).held_out_loss
        if best is not None and None not in (start, lowest) and lowest >= start:  # pyright: ignore[reportOperatorIssue]
            self.reporter.on_message(
                f"no checkpoint is better than the start: the held-out loss is {start:.4f} at step 0, and {lowest:.4f} "
                f"in {best.name}. Lower optim.lr, or give other training data",
                warning=True,
            )

    def after_step(self, stop: bool) -> None:
        """Evaluate, sample and save a checkpoint where the plan says so."""
        plan, step = self.plan, self.step
        last = step == plan.steps
        planned = step > plan.measured and plan.steps > 0
        save = last or (planned and step % plan.save_every == 0)
        loss = None
        if save or (planned and step % plan.eval_every == 0):
            loss = self.evaluate()
        if plan.sample_every and planned and (last or step % plan.sample_every == 0):
            self.sample()
        if save or stop or self.save_is_due():
            self.save(loss)
        self.stepped_at = time.perf_counter()

    def save_is_due(self) -> bool:
        """Return whether the next step could end SAVE_SECONDS after the last checkpoint; False with `save_every`.

        Slow checkpoints have longer intervals, so that they take at most SAVE_SHARE of the time.
        """
        now = time.perf_counter()
        interval = max(SAVE_SECONDS, self.save_seconds / SAVE_SHARE)
        return not self.config.save_every and now + (now - self.stepped_at) - self.saved_at > interval

    def update(self, stop: bool) -> bool:
        """Run one step. Returns whether any process received a stop signal."""
        config, optimizer, plan = self.config, self.optimizer, self.plan
        optimizer.zero_grad()
        losses, counted = [], 0
        for _ in range(config.accumulate):
            batch = self.task.loader.next()
            loss = self.task.loss(batch)
            loss.backward()
            losses.append(loss.detach())
            counted += batch.tokens
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        if self.world.size > 1:
            counts = torch.tensor([0.0, counted, stop], dtype=torch.float64, device=loss.device)
            counts[0] = loss
            self.world.all_reduce_step(optimizer.grads, counts)
            loss, counted, stop = counts[0], int(counts[1].item()), bool(counts[2].item())
        norm = optimizer.finish_gradient(max(1, counted))
        factor = planned_factor(config.schedule, plan, self.step)
        self.step += 1
        self.tokens += counted
        lr = factor * optimizer.config.peak("hidden")
        self.pending.append(PendingStep(self.step, self.tokens, counted, loss, norm, lr))
        if self.task.compute.device.type == "cpu" or len(self.pending) == FLUSH_STEPS:
            self.flush()  # before the update on a CPU: a gradient that is not finite never reaches the weights
        optimizer.step(factor)
        return stop

    def flush(self) -> None:
        """Write and report the pending steps. Raises GlassformerError where a number is not finite."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        losses = [p.loss.item() for p in pending]
        norms = [p.norm.item() for p in pending]
        now = time.perf_counter()
        speed = sum(p.counted for p in pending) / max(1e-9, now - self.flushed_at)
        self.flushed_at = now
        for p, loss, norm in zip(pending, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.fail(p.step, loss, norm)
            record = StepRecord(
                step=p.step,
                tokens=p.tokens,
                loss=loss / max(1, p.counted),
                lr=p.lr,
                grad_norm=norm,
                tokens_per_second=round(speed, 1),
                matrix_share=round(speed * self.seconds_per_token, 4),
            )
            self.metrics.write(record)
            self.reporter.on_step(record)

    def fail(self, step: int, loss: float, norm: float) -> None:
        """Raise GlassformerError for a loss or gradient that is not finite."""
        problem = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
        last = self.checkpoints.last()
        checkpoint = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
        raise GlassformerError(
            f"{problem} at step {step}: training stopped, {checkpoint}. Lower optim.lr or optim.embed_lr, or use dtype "
            "float32"
        )

    def evaluate(self) -> float | None:
        """Return the held-out loss in nats per token; None where nothing is held out."""
        self.flush()
        start = time.perf_counter()
        found = self.task.evaluate()
        if found is None:
            return None
        record = EvalRecord(
            step=self.step,
            tokens=self.tokens,
            held_out_loss=found.loss,
            perplexity=found.perplexity,
            bits_per_byte=found.bits_per_byte,
            exact=found.exact,
            unknown=found.unknown_share,
        )
        self.metrics.write(record)
        self.reporter.on_eval(record)
        self.held_out = found
        self.flushed_at = time.perf_counter()
        self.eval_seconds = self.flushed_at - start
        return found.loss

    def sample(self) -> None:
        """Report a generated sample; changes no state of the training."""
        if self.world.first:
            self.reporter.on_sample(self.step, self.task.sample())
        self.flushed_at = time.perf_counter()

    def save(self, loss: float | None) -> None:
        """Save a checkpoint of this step. Raises CheckpointError, and then leaves earlier checkpoints intact."""
        self.flush()
        start = time.perf_counter()
        if self.world.first:
            self.metrics.sync()
            state = TrainState(self.step, self.tokens, self.seconds, self.task.loader.state(), rng_state(), loss)
            tensors = self.optimizer.state_dict()
            n_bytes = 4 * self.optimizer.storage.n_values + sum(t.nbytes for t in tensors.values()) + (1 << 20)
            path = self.checkpoints.save(state, self.task.save, tensors, n_bytes)
            best = self.checkpoints.best()
            write_loss_curve(Path(self.config.out), f"{Path(self.config.out).name}: loss")
            self.reporter.on_checkpoint(self.step, path, best == path)
        self.flushed_at = self.saved_at = time.perf_counter()
        self.save_seconds = self.saved_at - start

    def measure_speed(self) -> None:
        """After a few steps of a run with a budget in seconds, fix the number of steps that fit and record the plan."""
        budget, now = self.plan.seconds or 0.0, self.seconds
        steps = 0
        if self.measured_from is None:
            if self.step - self.plan.measured >= 3 or now > 0.1 * budget:
                self.measured_from = (self.step, now)
        else:
            done, spent = self.step - self.measured_from[0], now - self.measured_from[1]
            if (done >= 5 and spent >= 0.03 * budget) or now > 0.3 * budget:
                steps = self.step + self.steps_that_fit(spent / done, PLANNED_SHARE * budget - now)
        steps, pause = self.world.broadcast((steps, self.pause_seconds()))
        if steps:
            self.plan = make_plan(self.config, steps, measured=self.step, evaluations=affordable(budget, pause))
            self.run_file = replace(self.run_file, plan=self.plan)
            if self.world.first:
                self.run_file.write(Path(self.config.out))
            self.reporter.on_plan(self.plan)

    def pause_seconds(self) -> float:
        """Estimate the seconds of one evaluation, which is measured, and one checkpoint, which is not."""
        return self.eval_seconds + 0.1 + 12 * self.optimizer.storage.n_values / 200e6

    def steps_that_fit(self, per_step: float, left: float) -> int:
        """Return how many more steps fit into `left` seconds; at least one."""
        pause, every = self.pause_seconds(), self.config.eval_every
        if every:
            return max(1, int(left / (per_step + pause / every)))
        return max(1, int((left - affordable(self.plan.seconds or 0.0, pause) * pause) / per_step))


def planned_factor(schedule: ScheduleConfig, plan: Plan, step: int) -> float:
    """Return the factor of the peak learning rate at `step`: see `lr_factor`."""
    measuring = not plan.steps or step < plan.measured
    return lr_factor(
        schedule.kind,
        step,
        total=None if measuring else plan.steps,
        warmup=schedule.warmup if measuring else plan.warmup,
        min_ratio=schedule.min_ratio,
        decay=schedule.decay,
    )


def affordable(budget: float, pause: float) -> int:
    """Return how many evaluations of `pause` seconds take EVAL_SHARE of the budget; from 1 to 20."""
    return max(1, min(20, int(EVAL_SHARE * budget / pause)))

"""The steps of a run.

batch -> loss (sum of nats) -> backward      x accumulate micro-batches, on every process
     -> gradients and counts summed over processes -> / counted tokens -> clip -> update
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from glassformer.errors import GlassformerError
from glassformer.training.config import Plan, TrainConfig, make_plan
from glassformer.training.optim.optimizers import Optimizer
from glassformer.training.optim.schedule import lr_factor
from glassformer.training.run.checkpoint import Checkpoints, TrainState, rng_state
from glassformer.training.run.distributed import ProcessGroup
from glassformer.training.run.loss_curve import write_loss_curve
from glassformer.training.run.metrics import EvalRecord, MetricsWriter, Reporter, StepRecord
from glassformer.training.run.run_file import RunFile
from glassformer.training.run.signals import StopSignals
from glassformer.training.tasks.evaluate import Evaluation
from glassformer.training.tasks.task import Task

LAZY = 10  # steps whose losses a GPU keeps before they are asked for, so that it need not be waited for at each
SLACK = 0.98  # of the seconds asked for are planned
EVAL_SHARE = 0.05  # of the seconds go into evaluating and saving, where their number was not asked for


@dataclass(frozen=True)
class RunResult:
    """What became of a run: `step` of `steps` were done. held_out: the last evaluation. stopped: by which signal."""

    folder: Path
    step: int
    steps: int
    tokens: int
    seconds: float
    held_out: Evaluation | None
    stopped: str | None

    @property
    def best(self) -> Path:
        """The checkpoint of the lowest held-out loss."""
        return (self.folder / "checkpoints" / "best").resolve()

    @property
    def last(self) -> Path:
        return (self.folder / "checkpoints" / "last").resolve()


@dataclass
class PendingStep:
    """A step whose numbers may still be on their way from the device. loss: sum of nats."""

    step: int
    tokens: int
    counted: int
    loss: Tensor
    norm: Tensor
    lr: float


@dataclass
class Trainer:
    """A run under way: `step` steps are done, `tokens` targets were counted, since `begin` (perf_counter)."""

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
    flushed: float = field(default_factory=time.perf_counter)
    pending: list[PendingStep] = field(default_factory=list)
    held_out: Evaluation | None = None
    mark: tuple[int, float] | None = None
    eval_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started_at

    def run(self) -> RunResult:
        stopped = None
        with StopSignals() as signals:
            if self.step == 0:
                self.evaluate()
            while not self.plan.steps or self.step < self.plan.steps:
                stop = self.update(signals.name is not None)
                if not self.plan.steps:
                    self.measure()
                self.after_step(stop)
                if stop:
                    stopped = signals.name or "another process"
                    break
        self.world.barrier()
        return RunResult(
            Path(self.config.out), self.step, self.plan.steps, self.tokens, self.seconds, self.held_out, stopped
        )

    def after_step(self, stop: bool) -> None:
        """Evaluate, sample and save, where the plan says so."""
        plan, step = self.plan, self.step
        last = step == plan.steps
        open_ = step > plan.measured and plan.steps > 0
        save = last or (open_ and step % plan.save_every == 0)
        loss = None
        if save or (open_ and step % plan.eval_every == 0):
            loss = self.evaluate()
        if plan.sample_every and open_ and (last or step % plan.sample_every == 0):
            self.sample()
        if save or stop:
            self.save(loss)

    def update(self, stop: bool) -> bool:
        """One step. Returns whether any process was asked to stop."""
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
            self.world.all_reduce_step(optimizer.flat.grads, counts)
            loss, counted, stop = counts[0], int(counts[1].item()), bool(counts[2].item())
        norm = optimizer.finish_gradient(max(1, counted))
        known = config.schedule
        measuring = not plan.steps or self.step < plan.measured
        factor = lr_factor(
            known.kind,
            self.step,
            total=None if measuring else plan.steps,
            warmup=known.warmup if measuring else plan.warmup,
            min_ratio=known.min_ratio,
            decay=known.decay,
        )
        self.step += 1
        self.tokens += counted
        lr = factor * config.optim.peak("hidden")
        self.pending.append(PendingStep(self.step, self.tokens, counted, loss, norm, lr))
        if self.task.compute.device.type == "cpu" or len(self.pending) == LAZY:
            self.flush()  # on the CPU before the update: a gradient that is no number never reaches the weights
        optimizer.step(factor)
        return stop

    def flush(self) -> None:
        """Write and tell the numbers of the steps since the last time. GlassformerError where one is not a number."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        losses = [p.loss.item() for p in pending]
        norms = [p.norm.item() for p in pending]
        now = time.perf_counter()
        speed = sum(p.counted for p in pending) / max(1e-9, now - self.flushed)
        self.flushed = now
        for p, loss, norm in zip(pending, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.fail(p.step, loss, norm)
            record = StepRecord(
                p.step, p.tokens, loss / max(1, p.counted), p.lr, norm, round(speed, 1),
                round(speed * self.seconds_per_token, 4),
            )  # fmt: skip
            self.metrics.write(record)
            self.reporter.on_step(record)

    def fail(self, step: int, loss: float, norm: float) -> None:
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        good = self.checkpoints.last()
        kept = f"the last good checkpoint is {good}" if good else "no checkpoint was written yet"
        raise GlassformerError(
            f"{what} at step {step}: training stopped, {kept}. Lower optim.lr or optim.embed_lr, or use dtype float32"
        )

    def evaluate(self) -> float | None:
        """The held-out loss in nats per token; None where nothing is held out."""
        self.flush()
        begin = time.perf_counter()
        found = self.task.evaluate()
        if found is None:
            return None
        record = EvalRecord(self.step, self.tokens, found.loss, found.perplexity, found.bits_per_byte, found.exact)
        self.metrics.write(record)
        self.reporter.on_eval(record)
        self.held_out = found
        self.flushed = time.perf_counter()
        self.eval_seconds = self.flushed - begin
        return found.loss

    def sample(self) -> None:
        """Write a little, always with the same seed; it changes nothing in the training."""
        if self.world.first:
            self.reporter.on_sample(self.step, self.task.sample())
        self.flushed = time.perf_counter()

    def save(self, loss: float | None) -> None:
        """A checkpoint of this step. Raises CheckpointError, and leaves the one before it whole."""
        self.flush()
        if self.world.first:
            self.metrics.sync()
            state = TrainState(self.step, self.tokens, self.seconds, self.task.loader.state(), rng_state(), loss)
            tensors = self.optimizer.state_dict()
            need = 4 * self.optimizer.flat.values.numel() + sum(t.nbytes for t in tensors.values()) + (1 << 20)
            path = self.checkpoints.save(state, self.task.save, tensors, need)
            best = self.checkpoints.best()
            write_loss_curve(Path(self.config.out), f"{Path(self.config.out).name}: loss")
            self.reporter.on_checkpoint(self.step, path, best == path)
        self.flushed = time.perf_counter()

    def measure(self) -> None:
        """A run by seconds: after a few steps, fix how many fit, and write it down."""
        budget, now = self.plan.seconds or 0.0, self.seconds
        steps = 0
        if self.mark is None:
            if self.step - self.plan.measured >= 3 or now > 0.1 * budget:
                self.mark = (self.step, now)
        else:
            done, spent = self.step - self.mark[0], now - self.mark[1]
            if (done >= 5 and spent >= 0.03 * budget) or now > 0.3 * budget:
                steps = self.step + self.fitting(spent / done, SLACK * budget - now)
        steps, pause = self.world.broadcast((steps, self.pause()))
        if steps:
            parts = max(1, min(20, int(EVAL_SHARE * budget / pause)))
            self.plan = make_plan(self.config, steps, measured=self.step, parts=parts)
            self.run_file = replace(self.run_file, plan=self.plan)
            if self.world.first:
                self.run_file.write(Path(self.config.out))
            self.reporter.on_plan(self.plan)

    def pause(self) -> float:
        """Seconds that one evaluation and one checkpoint take: the first is measured, the second a guess."""
        return self.eval_seconds + 0.1 + 12 * self.optimizer.flat.values.numel() / 200e6

    def fitting(self, per_step: float, left: float) -> int:
        """How many more steps fit into `left` seconds; at least one."""
        every = self.config.eval_every
        if every:
            return max(1, int(left / (per_step + self.pause() / every)))
        budget = self.plan.seconds or 0.0
        parts = max(1, min(20, int(EVAL_SHARE * budget / self.pause())))
        return max(1, int((left - parts * self.pause()) / per_step))

"""Kill a training run at random moments, resume it, and compare its end with that of a run that nobody killed.

    python tests/soak/kill_cycles.py 200 [--seed 0]

A cycle kills its run once to three times with SIGKILL: at a random time, or at a random one of its calls of write,
fsync, rename and rmtree (just before it, just after it, or with half of the bytes written). Then it is resumed, and its
weights, optimizer, position, metrics.jsonl, links and set of checkpoints must be bit-equal to the uninterrupted run's.
Processes are forked from one that has imported torch, so that a cycle costs little more than its steps.
"""

from __future__ import annotations

import argparse
import builtins
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1] / "training")]
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402
from safetensors import torch as safetensors_torch  # noqa: E402
from tiny_runs import differing, end_state, make_tokenizer, memory_folder, tiny_run  # noqa: E402

from glassformer.formats import save  # noqa: E402
from glassformer.training.run import checkpoint  # noqa: E402
from glassformer.training.run.run_file import has_run  # noqa: E402

SETTINGS = {"steps": 9, "save_every": 3, "eval_every": 3, "keep_last": 2, "sample_every": 0}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Watch:
    """Counts the calls that change the disk, and dies at one of them: `when` is before, half or after."""

    def __init__(self, at: int = 0, when: str = "before", told: Path | None = None):
        self.at, self.when, self.told, self.count = at, when, told, 0

    def call(self, name: str, real: Callable, half: Callable[..., None], *args, **named):
        self.count += 1
        if self.count != self.at:
            return real(*args, **named)
        if self.told is not None:
            fd = os.open(self.told, os.O_WRONLY | os.O_CREAT)
            os.write(fd, f"{name} ({self.when})".encode())
        if self.when == "half":
            half(*args, **named)
        elif self.when == "after":
            real(*args, **named)
        die()
        raise AssertionError("still alive")

    def install(self) -> None:
        """Only in a forked process: its functions are replaced for good."""
        for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (os, "mkdir")):
            setattr(module, name, self.wrapped(name, getattr(module, name), lambda *_, **__: None))
        save_file = self.wrapped("save_file", safetensors_torch.save_file, half_file)
        checkpoint.save_file = save.save_file = save_file
        Path.write_text = self.wrapped("write_text", Path.write_text, half_text)
        real_open = builtins.open

        def watched_open(file, mode="r", *args, **named):
            handle = real_open(file, mode, *args, **named)
            if "w" in mode or "a" in mode:  # a file was made or emptied: nothing is in it yet
                self.call("open", lambda: None, lambda: None)
            return handle

        builtins.open = watched_open

    def wrapped(self, name: str, real: Callable, half: Callable[..., None]) -> Callable:
        return lambda *args, **named: self.call(name, real, half, *args, **named)


def half_file(tensors, filename, *_, **__) -> None:
    data = safetensors_torch.save({name: t.contiguous() for name, t in tensors.items()})
    with open(filename, "wb") as file:
        file.write(data[: len(data) // 2])


def half_text(path, text, *_, **__) -> None:
    path.write_bytes(text.encode()[: len(text) // 2])


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def run_child(out: Path, tokenizer: str, watch: Watch | None = None, counted: Path | None = None) -> int:
    def work() -> None:
        if watch is not None:
            watch.install()
        tiny_run(out, tokenizer, resume=has_run(out), **SETTINGS)
        if counted is not None and watch is not None:
            count = watch.count
            counted.write_text(str(count))

    return fork(work)


def wait(child: int) -> int:
    """The exit status; below 0 the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def cycles(number: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Run `number` cycles; returns where the kills fell, and what went wrong."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    tiny_run(folder / "warm", tokenizer, **SETTINGS)  # what is loaded on first use is loaded before forking
    begin = time.perf_counter()
    assert wait(run_child(folder / "whole", tokenizer)) == 0
    whole_seconds = time.perf_counter() - begin
    whole = end_state(folder / "whole")
    assert wait(run_child(folder / "counted", tokenizer, Watch(), folder / "count")) == 0
    calls = int((folder / "count").read_text())
    assert differing(end_state(folder / "counted"), whole) == []
    where, wrong, chance = Counter(), [], random.Random(seed)
    for cycle in range(number):
        out = folder / f"run-{cycle}"
        for _ in range(chance.choice((1, 1, 2, 3))):
            told = folder / "told"
            told.unlink(missing_ok=True)
            if chance.random() < 0.35:
                child = run_child(out, tokenizer)
                time.sleep(chance.uniform(0, whole_seconds))
                os.kill(child, signal.SIGKILL)
                told.write_text("at a random time")
            else:
                watch = Watch(chance.randint(1, calls), chance.choice(("before", "half", "after")), told)
                child = run_child(out, tokenizer, watch)
            status = wait(child)
            if status == -signal.SIGKILL:
                where[told.read_text()] += 1
            elif status:
                wrong.append(f"cycle {cycle}: a resumed run failed")
            else:
                where["not killed: it ended before"] += 1
        status = wait(run_child(out, tokenizer))
        if status:
            wrong.append(f"cycle {cycle}: the last resumed run failed with {status}")
            continue
        for name in differing(end_state(out), whole):
            wrong.append(f"cycle {cycle}: {name} differs")
        left = [p.name for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]
        wrong += [f"cycle {cycle}: {name} was left" for name in left]
        shutil.rmtree(out)
        if (cycle + 1) % 20 == 0:
            print(f"{cycle + 1} cycles, {sum(where.values())} kills or tries, {len(wrong)} wrong", flush=True)
    return where, wrong


def run_cycles(number: int, seed: int) -> list[str]:
    """Run cycles, print the figures, return what went wrong."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with memory_folder() as folder:  # a killed process loses nothing that it wrote, synced or not: the order counts
        where, wrong = cycles(number, seed, folder)
    for place, count in sorted(where.items()):
        print(f"{count:5} {place}")
    for line in wrong:
        print("WRONG", line)
    kills = sum(count for place, count in where.items() if "not killed" not in place)
    print(f"{number} cycles, {kills} kills, {len(wrong)} wrong, {time.perf_counter() - begin:.0f} s")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cycles", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    return bool(run_cycles(asked.cycles, asked.seed))


if __name__ == "__main__":
    sys.exit(main())

"""Kill a training run at random moments, resume it, and compare its result with that of an uninterrupted run.

    python tests/soak/kill_cycles.py 200 [--seed 0]

A cycle kills its run one to three times with SIGKILL: at a random time, or at a random call of write, fsync, rename or
rmtree (before it, after it, or with half of the bytes written). The run is then resumed. Its weights, optimizer state,
data position, metrics.jsonl, links and set of checkpoints must be bit-equal to those of the uninterrupted run.
Runs are forked from a process that has imported torch, so a cycle costs little more than its training steps.
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
    """Counts the calls that change the disk and kills the process at call number `at`.

    Args:
        at: The number of the call; 0 never kills.
        when: "before", "half" (half of the bytes are written) or "after" the call.
        report: The file that gets the name of the call.
    """

    def __init__(self, at: int = 0, when: str = "before", report: Path | None = None):
        self.at, self.when, self.report, self.count = at, when, report, 0

    def call(self, name: str, real: Callable, half: Callable[..., None], *args, **named):
        self.count += 1
        if self.count != self.at:
            return real(*args, **named)
        if self.report is not None:
            fd = os.open(self.report, os.O_WRONLY | os.O_CREAT)
            os.write(fd, f"{name} ({self.when})".encode())
        if self.when == "half":
            half(*args, **named)
        elif self.when == "after":
            real(*args, **named)
        die()
        raise AssertionError("the process survived SIGKILL")

    def install(self) -> None:
        """Replace the functions of this process permanently; call it only in a forked process."""
        for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (os, "mkdir")):
            setattr(module, name, self.wrapped(name, getattr(module, name), lambda *_, **__: None))
        save_file = self.wrapped("save_file", safetensors_torch.save_file, half_file)
        checkpoint.save_file = save.save_file = save_file
        Path.write_text = self.wrapped("write_text", Path.write_text, half_text)
        real_open = builtins.open

        def watched_open(file, mode="r", *args, **named):
            handle = real_open(file, mode, *args, **named)
            if "w" in mode or "a" in mode:  # the file now exists and is empty
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
    """Run `work` in a forked process; return its process id."""
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
    """Return the exit status; a negative number is the signal that ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def cycles(number: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Run `number` cycles; return a count of each kill location, and the failures."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    tiny_run(folder / "warm", tokenizer, **SETTINGS)  # initialize lazy imports before forking
    begin = time.perf_counter()
    assert wait(run_child(folder / "uninterrupted", tokenizer)) == 0
    run_seconds = time.perf_counter() - begin
    expected = end_state(folder / "uninterrupted")
    assert wait(run_child(folder / "counted", tokenizer, Watch(), folder / "count")) == 0
    calls = int((folder / "count").read_text())
    assert differing(end_state(folder / "counted"), expected) == []
    where, wrong, generator = Counter(), [], random.Random(seed)
    for cycle in range(number):
        out = folder / f"run-{cycle}"
        for _ in range(generator.choice((1, 1, 2, 3))):
            report = folder / "report"
            report.unlink(missing_ok=True)
            if generator.random() < 0.35:
                child = run_child(out, tokenizer)
                time.sleep(generator.uniform(0, run_seconds))
                os.kill(child, signal.SIGKILL)
                report.write_text("at a random time")
            else:
                watch = Watch(generator.randint(1, calls), generator.choice(("before", "half", "after")), report)
                child = run_child(out, tokenizer, watch)
            status = wait(child)
            if status == -signal.SIGKILL:
                where[report.read_text()] += 1
            elif status:
                wrong.append(f"cycle {cycle}: a resumed run failed")
            else:
                where["not killed: the run ended earlier"] += 1
        status = wait(run_child(out, tokenizer))
        if status:
            wrong.append(f"cycle {cycle}: the last resumed run failed with {status}")
            continue
        for name in differing(end_state(out), expected):
            wrong.append(f"cycle {cycle}: {name} differs")
        left = [p.name for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]
        wrong += [f"cycle {cycle}: the temporary file {name} remains" for name in left]
        shutil.rmtree(out)
        if (cycle + 1) % 20 == 0:
            print(f"{cycle + 1} cycles, {sum(where.values())} kills or tries, {len(wrong)} wrong", flush=True)
    return where, wrong


def run_cycles(number: int, seed: int) -> list[str]:
    """Run cycles and print the counts; return the failures."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with memory_folder() as folder:  # in memory, because SIGKILL does not lose unsynced writes
        where, wrong = cycles(number, seed, folder)
    for location, count in sorted(where.items()):
        print(f"{count:5} {location}")
    for line in wrong:
        print("WRONG", line)
    kills = sum(count for location, count in where.items() if "not killed" not in location)
    print(f"{number} cycles, {kills} kills, {len(wrong)} wrong, {time.perf_counter() - begin:.0f} s")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cycles", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    return bool(run_cycles(args.cycles, args.seed))


if __name__ == "__main__":
    sys.exit(main())

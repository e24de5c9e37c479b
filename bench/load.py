"""Loading a checkpoint beside reading its file: seconds, cold and warm, and memory above the start.

    .venv/bin/python bench/load.py [--gb 2.4] [--folder SOMEWHERE] [--rounds 5]

A random Llama of 1.2B parameters in bfloat16 is written to a temporary folder. Then, each in a process of its own:

    read             the file's bytes from end to end, into one piece of memory, again and again
    read and keep    the same into memory as large as the file
    map              `load_model`, as it is by default: nothing is read yet
    map and touch    the same, then every page of every parameter is looked at: all are usable
    copy             `load_model(copy=True)`: every parameter in memory of its own, as training needs it

Ratios are of the seconds of the reading that asks for as much memory: mapping's of "read", copying's of "read and
keep", each within its round. Cold: the file's pages are dropped from the system's cache first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from glassformer.families import ShapeConfig, expand
from glassformer.formats import load_decoder, save_model
from glassformer.formats.load import empty_model

READING = {"read": "read", "read and keep": "read and keep", "map": "read", "map and touch": "read",
           "copy": "read and keep"}  # fmt: skip
WAYS = tuple(READING)
PIECE = 1 << 24


def write_model(folder: Path, gb: float) -> None:
    """A model of 1.2B parameters at 2.4 GB; fewer layers where fewer gigabytes are asked for."""
    layers = max(1, round(16 * (gb - 0.53) / 1.87))
    shape = ShapeConfig("llama", d_model=2048, n_layers=layers, n_heads=32, n_kv_heads=8, d_ff=8192, vocab_size=128_256,
                        context=4096, tied_head=True)  # fmt: skip
    noise = torch.randn(1 << 22).to(torch.bfloat16) * 0.02
    model = empty_model(expand(shape)).to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for p in model.parameters():
            flat = p.view(-1)
            for begin in range(0, len(flat), len(noise)):
                flat[begin : begin + len(noise)] = noise[: len(flat) - begin]
    save_model(model, folder)


def resident(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def measure(way: str, folder: Path) -> dict[str, float]:
    """Seconds, and memory at its peak above the start."""
    torch.empty(1 << 20).fill_(1.0)  # the library's own memory
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.perf_counter()
    if way.startswith("read"):
        kept = []
        for path in files(folder):
            space = torch.empty(PIECE if way == "read" else path.stat().st_size, dtype=torch.uint8).numpy()
            at = 0
            with path.open("rb", buffering=0) as file:
                while n := file.readinto(space[at : at + PIECE]):
                    at += n if way != "read" else 0
            kept.append(space)
    else:
        model = load_decoder(folder, copy=way == "copy")
        if way == "map and touch":
            for p in model.parameters():
                p.detach().view(-1).view(torch.uint8)[::4096].max()
    return {"seconds": time.perf_counter() - begin, "memory": resident("VmHWM") - before}


def drop(folder: Path) -> None:
    """Have the system forget the pages of the files."""
    for path in files(folder):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gb", type=float, default=2.4)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.way:
        print(json.dumps(measure(asked.way, asked.folder)))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        write_model(folder, asked.gb)
        size = sum(path.stat().st_size for path in files(folder))
        seen: dict[tuple[str, str], list[dict[str, float]]] = {}
        for _ in range(asked.rounds):
            for state in ("cold", "warm"):
                for way in WAYS:
                    if state == "cold":
                        drop(folder)
                    command = [sys.executable, __file__, "--way", way, "--folder", name]
                    run = subprocess.run(command, capture_output=True, text=True, check=True)
                    seen.setdefault((way, state), []).append(json.loads(run.stdout))
        print(f"{size / 1e9:.2f} GB; medians of {asked.rounds}; memory above the start, of the file's size")
        print(f"{'':15} {'cold':>9} {'of reading':>11} {'warm':>9} {'of reading':>11} {'memory':>8}")
        for way in WAYS:
            cells = []
            for state in ("cold", "warm"):
                times, reading = ([one["seconds"] for one in seen[which, state]] for which in (way, READING[way]))
                ratio = statistics.median(a / b for a, b in zip(times, reading, strict=True))
                cells.append(f"{statistics.median(times):7.2f} s {ratio:10.2f}x")
            memory = max(one["memory"] for state in ("cold", "warm") for one in seen[way, state]) / size
            print(f"{way:15} {cells[0]} {cells[1]} {memory:7.2f}x")


if __name__ == "__main__":
    main()

"""Measure the time and memory of loading a checkpoint, compared with reading its file.

    python bench/load.py [--gb 2.4] [--folder FOLDER] [--rounds 5]

Saves a random Llama of 1.2B parameters in bfloat16 in a temporary folder, and measures in separate processes:

    read             read the file into one small buffer, which is overwritten
    read all         read the file into a buffer of its size
    map              `load_decoder`, which maps the file and reads nothing yet
    map and touch    the same, then access every page of every parameter
    copy             `load_decoder(copy=True)`: each parameter in its own memory, as in training

Each time is divided by the time of the baseline with as much memory in the same round: "read" for mapping, "read all"
for copying. Cold: the file's pages are removed from the page cache first. Memory: the peak minus that at the start.
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

BASELINES = {"read": "read", "read all": "read all", "map": "read", "map and touch": "read",
           "copy": "read all"}  # fmt: skip
METHODS = tuple(BASELINES)
BLOCK = 1 << 24


def write_model(folder: Path, gb: float) -> None:
    """Save a random model of about `gb` gigabytes: 1.2B parameters for 2.4, fewer layers for less."""
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


def memory_status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def measure(method: str, folder: Path) -> dict[str, float]:
    """Return the seconds and the peak memory of one method."""
    torch.empty(1 << 20).fill_(1.0)  # allocate torch's own memory before the measurement
    before = memory_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.perf_counter()
    if method.startswith("read"):
        buffers = []
        for path in files(folder):
            buffer = torch.empty(BLOCK if method == "read" else path.stat().st_size, dtype=torch.uint8).numpy()
            at = 0
            with path.open("rb", buffering=0) as file:
                while n := file.readinto(buffer[at : at + BLOCK]):
                    at += n if method != "read" else 0
            buffers.append(buffer)
    else:
        model = load_decoder(folder, copy=method == "copy")
        if method == "map and touch":
            for p in model.parameters():
                p.detach().view(-1).view(torch.uint8)[::4096].max()
    return {"seconds": time.perf_counter() - begin, "memory": memory_status("VmHWM") - before}


def drop_page_cache(folder: Path) -> None:
    """Remove the pages of the files from the page cache."""
    for path in files(folder):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        print(json.dumps(measure(args.method, args.folder)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_model(folder, args.gb)
        size = sum(path.stat().st_size for path in files(folder))
        results: dict[tuple[str, str], list[dict[str, float]]] = {}
        for _ in range(args.rounds):
            for state in ("cold", "warm"):
                for method in METHODS:
                    if state == "cold":
                        drop_page_cache(folder)
                    command = [sys.executable, __file__, "--method", method, "--folder", name]
                    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    results.setdefault((method, state), []).append(json.loads(output))
        print(f"{size / 1e9:.2f} GB; medians of {args.rounds}; peak memory relative to the size of the file")
        print(f"{'':15} {'cold':>9} {'relative':>11} {'warm':>9} {'relative':>11} {'memory':>8}")
        for method in METHODS:
            cells = []
            for state in ("cold", "warm"):
                times, baseline = ([run["seconds"] for run in results[m, state]] for m in (method, BASELINES[method]))
                ratio = statistics.median(a / b for a, b in zip(times, baseline, strict=True))
                cells.append(f"{statistics.median(times):7.2f} s {ratio:10.2f}x")
            memory = max(run["memory"] for state in ("cold", "warm") for run in results[method, state]) / size
            print(f"{method:15} {cells[0]} {cells[1]} {memory:7.2f}x")


if __name__ == "__main__":
    main()

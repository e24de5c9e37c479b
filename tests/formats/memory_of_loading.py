"""Run by test_memory.py in a process of its own. Prints what each way of loading took of resident memory, at its peak
and at its end, in units of the weights. Each is measured in a fork, so that none finds another's memory warm."""

import ctypes
import json
import os
import sys
from pathlib import Path

import torch

from glassformer.formats import load_decoder


def resident(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def measure(folder: Path, options: dict) -> dict:
    load_decoder(folder / "small", **options)  # the code itself is resident before we measure
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    model = load_decoder(folder / "large", **options)
    peak, after = resident("VmHWM") - before, resident("VmRSS") - before
    weights = sum(p.nbytes for p in model.parameters())
    return {"peak": peak / weights, "after": after / weights, "weights": weights}


torch.set_num_threads(1)
for ways in ({}, {"copy": True}, {"dtype": torch.bfloat16}):
    if (child := os.fork()) == 0:
        print(json.dumps({"way": str(ways), **measure(Path(sys.argv[1]), ways)}), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

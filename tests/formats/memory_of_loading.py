"""Print the peak and final resident memory of each way to load a model, relative to the size of its weights.

test_memory.py runs this file as a child process. Each measurement runs in its own fork, so none reuses memory that
another has allocated.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

import torch

from glassformer.formats import load_decoder


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(folder: Path, options: dict) -> dict:
    load_decoder(folder / "small", **options)  # make the code resident before the measurement
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    model = load_decoder(folder / "large", **options)
    peak, after = resident("VmHWM") - before, resident("VmRSS") - before
    weights = sum(p.nbytes for p in model.parameters())
    return {"peak": peak / weights, "after": after / weights, "weights": weights}


torch.set_num_threads(1)
for options in ({}, {"copy": True}, {"dtype": torch.bfloat16}):
    if (child := os.fork()) == 0:
        print(json.dumps({"options": str(options), **measure(Path(sys.argv[1]), options)}), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

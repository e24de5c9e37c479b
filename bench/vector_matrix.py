"""Measure vector-matrix products, the cost of decoding one sequence, for both layouts of matrices in checkpoints.

python bench/vector_matrix.py [--threads N] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from compare import add_arguments, alternate, show_ratio, table

MATRICES = ((768, 768), (3072, 768), (768, 3072), (50257, 768))
TOTAL_BYTES = 400e6  # of the matrices of a measurement, so that none is still in a cache


def measure(rows: int, columns: int, dtype: torch.dtype, args: argparse.Namespace) -> list[str]:
    """Multiply [1, in] by matrices stored as [out, in] (nn.Linear) and as [in, out] (GPT-2's checkpoints)."""
    number = max(2, int(TOTAL_BYTES / (rows * columns * dtype.itemsize)))
    matrices = [torch.randn(rows, columns).to(dtype) for _ in range(number)]
    transposed, x, bias = (
        [w.T.contiguous() for w in matrices],
        torch.randn(1, columns).to(dtype),
        torch.zeros(rows).to(dtype),
    )
    sides: dict[str, Callable[[], object]] = {
        "out, in": lambda: [F.linear(x, w, bias) for w in matrices],
        "in, out": lambda: [torch.addmm(bias, x, w) for w in transposed],
    }
    with torch.inference_mode():
        times = alternate(sides, args.rounds, clock=args.clock)
    size = number * rows * columns * dtype.itemsize
    a, b = (f"{size / statistics.median(times[side]) / 1e9:.1f} GB/s" for side in sides)
    name = f"{str(dtype).removeprefix('torch.')} {rows} x {columns}"
    return [name, a, b, show_ratio(times["out, in"], times["in, out"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, {args.clock} clock\n")
    rows = [measure(*size, dtype, args) for dtype in (torch.float32, torch.bfloat16) for size in MATRICES]
    print(table(["matrix", "[out, in]", "[in, out]", "[out, in] is"], rows))


if __name__ == "__main__":
    main()

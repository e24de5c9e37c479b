"""One row times a matrix, in each of the two layouts that checkpoints have: what decoding one text is made of.

python bench/one_row.py [--threads N] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from compare import add_arguments, alternate, show_ratio, table

MATRICES = ((768, 768), (3072, 768), (768, 3072), (50257, 768))
READ = 400e6  # bytes of matrices that are gone through in turn, so that none is still in a cache


def one_row(rows: int, columns: int, dtype: torch.dtype, args: argparse.Namespace) -> list[str]:
    """[1, in] times a matrix stored [out, in], as Linear has it, and [in, out], as GPT-2's checkpoints have it."""
    number = max(2, int(READ / (rows * columns * dtype.itemsize)))
    matrices = [torch.randn(rows, columns).to(dtype) for _ in range(number)]
    turned, x, bias = (
        [w.T.contiguous() for w in matrices],
        torch.randn(1, columns).to(dtype),
        torch.zeros(rows).to(dtype),
    )
    sides: dict[str, Callable[[], object]] = {
        "out, in": lambda: [F.linear(x, w, bias) for w in matrices],
        "in, out": lambda: [torch.addmm(bias, x, w) for w in turned],
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
    rows = [one_row(*size, dtype, args) for dtype in (torch.float32, torch.bfloat16) for size in MATRICES]
    print(table(["matrix", "[out, in]", "[in, out]", "[out, in] is"], rows))


if __name__ == "__main__":
    main()

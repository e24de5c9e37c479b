"""Measure the native products alone, and the share of Python in decoding a model.

    python bench/native.py [--threads 2] [--rounds 7] [--model MODEL]

One row times a matrix larger than the caches, in GB/s of the stored weights, beside `torch.sum` over float32
numbers; 256 rows times a matrix, beside PyTorch's float32 product of the same shape, in turns. Medians of all rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from compare import table

import glassformer
from glassformer.kernels.cpu import cpu_name
from glassformer.kernels.native import ops
from glassformer.kernels.native.library import choose_library
from glassformer.kernels.packed import FORMATS, PackedMatrix, empty_matrix

N_OUT, N_IN, ROWS = 32768, 2048, 256
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_of(name: str) -> torch.Tensor | PackedMatrix:
    if name in FLOATS:
        return torch.full((N_OUT, N_IN), 0.5, dtype=FLOATS[name])
    matrix = empty_matrix(name, N_OUT, N_IN)
    matrix.data.fill_(17)
    return matrix


def products(rounds: int) -> None:
    """Print the rate of one row and of many, for each format."""
    numbers, wide = torch.zeros(64 << 20), torch.full((N_OUT // 8, N_IN), 0.5)
    one, many = torch.randn(1, N_IN), torch.randn(ROWS, N_IN)
    work, lines = 2 * ROWS * wide.numel() / 1e9, []
    for name in (*FLOATS, *FORMATS):
        matrix = matrix_of(name)
        small = matrix[: N_OUT // 8] if isinstance(matrix, torch.Tensor) else empty_matrix(name, *wide.shape)
        size = matrix.nbytes if isinstance(matrix, torch.Tensor) else matrix.data.nbytes
        if isinstance(small, PackedMatrix):
            small.data.fill_(17)
        sides = (
            lambda matrix=matrix: ops.linear(one, matrix), numbers.sum,
            lambda small=small: ops.linear(many, small), lambda: F.linear(many, wide),
        )  # fmt: skip
        times = [[seconds(side) for side in sides] for _ in range(rounds + 1)][1:]
        row, read, rows, torch_rows = map(statistics.median, zip(*times, strict=True))
        ratio = statistics.median(t[3] / t[2] for t in times)
        lines.append([name, *(f"{n / 1e9:.1f}" for n in (size / row, numbers.nbytes / read)),
                      *(f"{work / t:.0f}" for t in (rows, torch_rows)), f"{ratio:.2f}x"])  # fmt: skip
    print(table(["weights", "1 row, GB/s", "read", "256 rows, GFLOP/s", "PyTorch float32", "ratio"], lines))


def decoding(model: str, rounds: int) -> None:
    """Print the time of a token in greedy decoding, and how much of it is outside the native kernels."""
    lm, native, run_list = glassformer.load(model, device="cpu"), [0.0], ops.run_list

    def timed(*arguments: object) -> None:
        native[0] += seconds(lambda: run_list(*arguments))  # pyright: ignore[reportArgumentType]

    ops.run_list = timed
    options = {"max_tokens": 64, "temperature": 0.0, "ignore_eos": True}
    prompt, shares, tokens = list(range(100, 132)), [], []
    for _ in range(rounds):
        native[0] = 0.0
        total = seconds(lambda: lm.generate(prompt, **options))
        shares.append(1 - native[0] / total)
        tokens.append(total / 64 * 1e3)
    ops.run_list = run_list
    print(f"{model}: {statistics.median(tokens):.1f} ms per token, {statistics.median(shares):.0%} outside the kernels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", help="also measure decoding with this model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}, {choose_library().value}\n")
    products(args.rounds)
    if args.model:
        decoding(args.model, args.rounds)


if __name__ == "__main__":
    with torch.inference_mode():
        main()

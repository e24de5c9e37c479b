"""Measure attention over packed sequences, forward and backward, with several ways to separate documents.

    python bench/packed_attention.py [--lengths 128 256 512 1024] [--head-dims 32 64]

4,096 tokens in sequences of T, 6 heads, documents of about T/3 tokens; milliseconds of one layer's attention alone.
`plain` ignores document boundaries. The mask is computed once, as `Step` does for all layers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from compare import add_arguments, alternate, table
from torch import Tensor

from glassformer.kernels.attention import attend_float32, attend_products
from glassformer.nn.attend import KV, AttendSpec, Visibility, attend_reference, attend_sdpa, visible
from glassformer.training.run.precision import tune_malloc

TOKENS, HEADS = 4096, 6


def random_documents(batch: int, length: int) -> Tensor:
    """Return the document index of each token, [B, T], with random boundaries."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(batch, length, generator=generator) < 3 / length).long().cumsum(-1)


def attend_each_document(spec: AttendSpec, q: Tensor, kv: KV, documents: Tensor) -> Tensor:
    """Run SDPA on each document separately."""
    sequences = []
    for b in range(len(q)):
        sizes = documents[b].unique_consecutive(return_counts=True)[1].tolist()
        parts = zip(*(t[b : b + 1].split(sizes, 1) for t in (q, *kv)), strict=True)
        sequences.append(torch.cat([attend_one_document(spec, *part) for part in parts], 1))
    return torch.cat(sequences)


def attend_one_document(spec: AttendSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    positions = torch.arange(q.shape[1])[None]
    return attend_float32(spec, q, KV(k, v), Visibility(positions, positions, None, causal=True))


def sides(length: int, head_dim: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    batch, spec = TOKENS // length, AttendSpec(head_dim**-0.5)
    documents, positions = random_documents(batch, length), torch.arange(length)[None]
    q, k, v = (torch.randn(batch, length, HEADS, head_dim).to(dtype).requires_grad_() for _ in range(3))
    kv, grad = KV(k, v), torch.randn(batch, length, HEADS, head_dim).to(dtype)
    packed = Visibility(positions, positions, visible(spec, positions, positions, documents))
    plain = Visibility(positions, positions, None, causal=True)

    def work(attend: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(), (q, k, v), grad)

    float32 = {
        "plain": work(lambda: attend_float32(spec, q, kv, plain)),
        "SDPA, mask": work(lambda: attend_float32(spec, q, kv, packed)),
        "definition": work(lambda: attend_reference(spec, q, kv, packed)[0]),
        "document by document": work(lambda: attend_each_document(spec, q, kv, documents)),
        "products": work(lambda: attend_products(spec, q, kv, packed)),
    }
    return (
        float32
        if dtype == torch.float32
        else float32 | {"SDPA in bfloat16": work(lambda: attend_sdpa(spec, q, kv, packed))}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 256, 512, 1024])
    parser.add_argument("--head-dims", nargs="+", type=int, default=[32, 64])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tune_malloc()
    rows, names = [], ["plain", "SDPA, mask", "products", "definition", "document by document", "SDPA in bfloat16"]
    for dtype in (torch.float32, torch.bfloat16):
        for head_dim in args.head_dims:
            for length in args.lengths:
                times = alternate(sides(length, head_dim, dtype), args.rounds, clock=args.clock, warmup=1)
                medians = {name: f"{1e3 * statistics.median(t):.1f}" for name, t in times.items()}
                rows.append([str(dtype).removeprefix("torch."), head_dim, length, *(medians.get(n, "") for n in names)])
    print(f"ms, forward and backward; {args.threads} threads, {args.clock} clock\n")
    print(table(["dtype", "head_dim", "T", *names], rows))


if __name__ == "__main__":
    main()

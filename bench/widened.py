"""Measure forward passes in bfloat16 with widened products, with PyTorch's own, and in float32.

python bench/widened.py [--threads N] [--rounds 5] [--tokens 256 8 1]

The shape is that of SmolLM2-135M, with random weights. Loaded models are widened on a CPU without bfloat16 instructions
only; this script widens on every CPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from functools import partial

import torch
from compare import add_arguments, alternate, show_ratio, table

from glassformer.families import find_family
from glassformer.families.common.shape import ShapeConfig
from glassformer.kernels.cpu import cpu_name, multiplies_natively
from glassformer.kernels.linear import widen_layers
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step

SHAPE = ShapeConfig("llama", 576, 30, n_heads=9, n_kv_heads=3, d_ff=1536, context=2048).fill(49152)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=(256, 8, 1))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Decoder(find_family(SHAPE.family).shape(SHAPE))
    half = copy.deepcopy(model).bfloat16()
    widened = copy.deepcopy(half)
    widen_layers(widened)
    native = "has" if multiplies_natively(torch.bfloat16) else "has no"
    print(f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, which {native} bfloat16 instructions")
    print(f"{args.threads} threads, {args.clock} clock\n")
    rows = []
    with torch.inference_mode():
        for n in args.tokens:
            ids = torch.randint(SHAPE.vocab_size, (1, n))
            sides = {
                name: partial(lambda one, ids: one.logits(one.hidden(ids, Step.of(ids))[:, -1], Step.of(ids)), one, ids)
                for name, one in (("widened", widened), ("bfloat16", half), ("float32", model))
            }
            times = alternate(sides, args.rounds, clock=args.clock)
            seconds = [f"{1000 * statistics.median(times[name]):.0f} ms" for name in sides]
            gains = [show_ratio(times["widened"], times[name]) for name in ("bfloat16", "float32")]
            rows.append([n, *seconds, *gains])
    print(table(["tokens", *sides, "widened, to bfloat16", "to float32"], rows))


if __name__ == "__main__":
    main()

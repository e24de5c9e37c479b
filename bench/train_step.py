"""One training step (forward, loss, backward, clipping, AdamW) compared with nanoGPT's model and transformers'.

    python bench/train_step.py [--shapes A B] [--dtypes float32 bfloat16] [--compile] [--malloc default tuned]

Every round also times the matrix products of the step alone (forward and both gradients, at the same shapes and dtype,
into existing memory; without the products inside attention). The last column is that time divided by the time of the
step. GPT-2's activation is the exact GELU in every model, as in nanoGPT; transformers' default is the tanh form, which
takes twice the time on this CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from compare import add_arguments, alternate, ratios, show_ratio, table
from reference import PlainGPT, transformers_model
from torch import Tensor, nn

from glassformer.config import change
from glassformer.families import expand
from glassformer.families.common.shape import ShapeConfig
from glassformer.kernels.attention import ATTENTION, choose_attention
from glassformer.kernels.cross_entropy import next_token_loss
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step
from glassformer.training.config import OptimConfig
from glassformer.training.init import init_weights
from glassformer.training.optim.optimizers import Optimizer
from glassformer.training.run.precision import matrix_flops_per_token, matrix_shapes, tune_malloc

VOCABULARY, RATE, DECAY, CLIP = 4096, 3e-4, 0.1, 1.0
SHAPES = {
    "A": (16, {"n_layers": 6, "d_model": 384, "n_heads": 6, "context": 256}),
    "B": (32, {"n_layers": 4, "d_model": 128, "n_heads": 4, "context": 128}),
}
KV_HEADS = {"gpt2": {"A": 6, "B": 4}, "llama": {"A": 2, "B": 2}}


def our_step(model: Decoder, ids: Tensor, targets: Tensor, dtype: torch.dtype) -> Callable[[], float]:
    optimizer = Optimizer(model, OptimConfig("adamw", lr=RATE, weight_decay=DECAY, clip=CLIP))
    attend = ATTENTION[choose_attention(model.config, "cpu", dtype, "training", ids.shape[1]).value]

    def step() -> float:
        with autocast(dtype):
            loss = next_token_loss(model, ids, targets, Step.of(ids, attend=attend), dtype)
        loss.backward()
        optimizer.finish_gradient(targets.numel())
        optimizer.step(1.0)
        optimizer.zero_grad()
        return loss.item() / targets.numel()

    return step


def their_step(model: nn.Module, loss_of: Callable[[], Tensor], dtype: torch.dtype) -> Callable[[], float]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        with autocast(dtype):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def autocast(dtype: torch.dtype):
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


def make_sides(
    family: str, name: str, dtype: torch.dtype, compiled: bool
) -> tuple[dict[str, Callable[[], float]], Decoder]:
    """Return the step of each model on the same tokens; `compiled` compiles ours per block, the others at once."""
    batch, sizes = SHAPES[name]
    shape = ShapeConfig(family=family, n_kv_heads=KV_HEADS[family][name], **sizes).fill(VOCABULARY)
    tokens = torch.randint(VOCABULARY, (batch, shape.context + 1), generator=torch.Generator().manual_seed(0))
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    config = expand(shape)
    if family == "gpt2":
        for i in range(config.n_layers):
            config = change(config, f"layers.{i}.mlp.activation", "gelu")
    ours = init_weights(Decoder(config), seed=0)
    theirs = transformers_model(shape)
    sides: dict[str, Callable[[], float]] = {}
    if compiled:
        for block in ours.blocks:
            block.compile()
        theirs.compile()
    sides["ours"] = our_step(ours, ids, targets, dtype)
    if family == "gpt2":
        plain = PlainGPT(shape)
        if compiled:
            plain.compile()
        sides["nanoGPT's model"] = their_step(plain, lambda: plain(ids, targets), dtype)
        assert count(plain) == count(ours)
    assert count(theirs) == count(ours)
    # transformers shifts the labels itself: one target fewer per sequence
    sides[f"transformers {family}"] = their_step(
        theirs, lambda: theirs(input_ids=ids, labels=ids, use_cache=False).loss, dtype
    )
    return sides, ours


def products(model: Decoder, tokens: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return the matrix products of one step, without anything else."""
    work = []
    for (rows, columns), number in matrix_shapes(model).items():
        x, g, w = (torch.randn(n, m).to(dtype) for n, m in ((tokens, columns), (tokens, rows), (rows, columns)))
        out = torch.empty_like(g), torch.empty_like(x), torch.empty_like(w)
        work += [(x, g, w, out)] * number

    def step() -> None:
        for x, g, w, (y, dx, dw) in work:
            torch.mm(x, w.T, out=y)
            torch.mm(g, w, out=dx)
            torch.mm(g.T, x, out=dw)

    return step


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def measure(family: str, name: str, dtype: torch.dtype, args: argparse.Namespace) -> list[list[str]]:
    sides, ours = make_sides(family, name, dtype, args.compile)
    first = {}
    for side, work in sides.items():  # the first step includes compilation
        begin = time.perf_counter()
        work()
        first[side] = time.perf_counter() - begin
    batch, sizes = SHAPES[name]
    tokens = batch * sizes["context"]
    times = alternate(sides | {"products": products(ours, tokens, dtype)}, args.rounds, clock=args.clock)
    matrix_seconds = times.pop("products")
    rate = matrix_flops_per_token(matrix_shapes(ours)) * tokens / statistics.median(matrix_seconds)
    rows = []
    for side, seconds in times.items():
        median = statistics.median(seconds)
        rows.append([
            f"{name} {count(ours) / 1e6:.1f}M", family, str(dtype).removeprefix("torch."), side,
            f"{median * 1e3:.0f} ms", f"{tokens / median:,.0f}",
            "" if side == "ours" else show_ratio(times["ours"], seconds),
            f"{ratios(seconds, matrix_seconds)[0]:.0%} of {rate / 1e9:.0f} GFLOP/s",
            *([f"{first[side] - median:.0f} s"] if args.compile else []),
        ])  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--families", nargs="+", choices=list(KV_HEADS), default=list(KV_HEADS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="compile all models with torch.compile")
    parser.add_argument("--malloc", choices=("default", "tuned"), default="tuned", help="malloc thresholds of glibc")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.malloc == "tuned":
        tune_malloc()
    head = ["shape", "family", "dtype", "side", "step", "tokens/s", "speedup", "matrix share"]
    print(
        f"{'compiled' if args.compile else 'eager'}, {args.threads} threads, malloc {args.malloc}, {args.clock} clock\n"
    )
    rows = []
    for name in args.shapes:
        for family in args.families:
            for dtype in args.dtypes:
                rows += measure(family, name, getattr(torch, dtype), args)
                print(".", end="", flush=True)
    print("\n" + table([*head, *(["compiling"] if args.compile else [])], rows))


if __name__ == "__main__":
    main()

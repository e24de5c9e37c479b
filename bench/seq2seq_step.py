"""Encoder-decoders: a training step compared with torch.nn.Transformer, decoding with transformers' MarianMTModel.

    python bench/seq2seq_step.py [--only train generate] [--dtypes float32 bfloat16] [--source 64] [--target 64]
                                 [--vocab 8192]

The model is the default `Seq2SeqShape`: 6 + 6 layers, d_model 256, 8 heads, post-norm, sinusoidal positions, one table
for source, target and head. Both models have the same weights and sources, whose lengths range from half of `--source`
to `--source`. A training step is forward, loss, backward, clipping and AdamW, with one loop and one optimizer for both;
each model uses its own attention and loss, and the losses must agree.

Generation is one call of `glassformer.generate.beam_search.search` or `generate`, from token ids to token ids, with the
encoder's forward pass; neither may end before `--target` tokens. In float32 both must generate the same ids.
Glassformer also returns the log-probability of each text. The last column is the encoder's fraction of a call.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from compare import add_arguments, alternate, ratios, show_ratio, table
from seq2seq_reference import TorchSeq2Seq, marian_model
from torch import Tensor, nn

from glassformer.families.common.shape import Seq2SeqShape
from glassformer.generate.beam_search import BeamSearch, search
from glassformer.generate.session import pad
from glassformer.kernels.cross_entropy import next_token_loss
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.step import Step
from glassformer.training.config import OptimConfig
from glassformer.training.init import init_glorot
from glassformer.training.optim.optimizers import Optimizer
from glassformer.training.run.precision import tune_malloc
from glassformer.training.tasks.evaluate import Compute

BEGIN = 1


def make_model(args: argparse.Namespace) -> EncoderDecoder:
    shape = Seq2SeqShape(context=max(256, args.source, args.target))
    model = EncoderDecoder(shape.expand(args.vocab))
    init_glorot(model, seed=0)
    return model


def make_sources(args: argparse.Namespace) -> list[list[int]]:
    """Return random sources of `--source` / 2 to `--source` token ids."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(args.source // 2, args.source, args.batch).round().int().tolist()
    return [torch.randint(3, args.vocab, (length,), generator=generator).tolist() for length in lengths]


def train_step(model: nn.Module, loss_of: Callable[[], Tensor], tokens: int) -> Callable[[], float]:
    """Return the training step of either model."""
    optimizer = Optimizer(model, OptimConfig("adamw", lr=3e-4, weight_decay=0.1, clip=1.0))

    def step() -> float:
        loss = loss_of()
        loss.backward()
        optimizer.finish_gradient(tokens)
        optimizer.step(1.0)
        optimizer.zero_grad()
        return loss.item() / tokens

    return step


def train(dtype: torch.dtype, args: argparse.Namespace) -> list[list[str]]:
    ours, sources = make_model(args), make_sources(args)
    theirs = TorchSeq2Seq(ours)
    ids, lengths = pad(sources, torch.device("cpu"))
    padding = torch.arange(ids.shape[1]) >= torch.tensor(lengths)[:, None]
    text = torch.randint(args.vocab, (args.batch, args.target + 1), generator=torch.Generator().manual_seed(1))
    inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    compute = Compute(torch.device("cpu"), dtype)

    def our_loss() -> Tensor:
        with compute.autocast():
            attend = compute.attention_for(ours.config, max(args.source, args.target))
            source = ours.encode(ids, Step.of(ids, lengths, attend=attend))
            step = Step.of(inputs, attend=attend, source=source)
            return next_token_loss(ours, inputs, targets, step, dtype)

    def their_loss() -> Tensor:
        with compute.autocast():
            logits = theirs(ids, padding, inputs)
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    sides = {
        "ours": train_step(ours, our_loss, targets.numel()),
        "torch.nn.Transformer": train_step(theirs, their_loss, targets.numel()),
    }
    assert count(ours) == count(theirs)
    first = [work() for work in sides.values()]
    assert abs(first[0] - first[1]) < (1e-4 if dtype == torch.float32 else 2e-2), first
    times = alternate(sides, args.rounds, clock=args.clock)
    size = sum(lengths) + targets.numel()
    return [
        [
            f"{count(ours) / 1e6:.1f}M", dtype_name(dtype), side, f"{statistics.median(seconds) * 1e3:.0f} ms",
            f"{size / statistics.median(seconds):,.0f}",
            "" if side == "ours" else show_ratio(times["ours"], seconds),
        ]
        for side, seconds in times.items()
    ]  # fmt: skip


def generate(dtype: torch.dtype, args: argparse.Namespace) -> list[list[str]]:
    ours, sources = make_model(args), make_sources(args)
    with torch.no_grad():
        for name, p in ours.named_parameters():  # small random weights repeat one token
            p.mul_(3.0) if p.ndim >= 2 and "embed" not in name else None
    theirs = marian_model(ours, BEGIN).to(dtype)
    ours = ours.to(dtype).eval()
    ids, lengths = pad(sources, torch.device("cpu"))
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    beam, end = BeamSearch(max_tokens=args.target), args.vocab - 1

    def our_call() -> list[list[int]]:
        found = search(ours, sources, beam, begin=BEGIN, end=end, spelled=end)  # `end` is never generated
        return [list(best.ids) for best, *_ in found]

    def their_call() -> list[list[int]]:
        out = theirs.generate(ids, attention_mask=mask, max_new_tokens=args.target, do_sample=False, num_beams=1)
        return out[:, 1:].tolist()

    def encode() -> None:
        with torch.inference_mode():
            ours.encode(ids, Step.of(ids, lengths))

    mine, others = our_call(), their_call()
    assert {len(ids) for ids in mine + others} == {args.target}, "a model ended early"
    assert dtype != torch.float32 or mine == others, "the two models generate different tokens"
    distinct = len({token for ids in mine for token in ids})
    times = alternate(
        {"ours": our_call, "transformers' Marian": their_call, "encoder": encode}, args.rounds, clock=args.clock
    )
    encoder = times.pop("encoder")
    return [
        [
            f"{count(ours) / 1e6:.1f}M", dtype_name(dtype), side, f"{statistics.median(seconds) * 1e3:.0f} ms",
            f"{args.batch * args.target / statistics.median(seconds):,.0f}",
            "" if side == "ours" else show_ratio(times["ours"], seconds),
            f"{ratios(seconds, encoder)[0]:.0%}", f"{distinct}",
        ]
        for side, seconds in times.items()
    ]  # fmt: skip


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    parser.add_argument("--only", nargs="+", choices=("train", "generate"), default=["train", "generate"])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=32, help="examples per batch")
    parser.add_argument("--source", type=int, default=64, help="tokens of the longest source")
    parser.add_argument("--target", type=int, default=64, help="tokens of every target")
    parser.add_argument("--vocab", type=int, default=8192)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tune_malloc()
    print(
        f"{args.threads} threads, {args.clock} clock, {args.batch} examples of {args.source // 2} to {args.source} and "
        f"{args.target} tokens, a vocabulary of {args.vocab}"
    )
    dtypes = [getattr(torch, name) for name in args.dtypes]
    if "train" in args.only:
        head = ["training", "dtype", "side", "step", "tokens/s", "speedup"]
        print("\n" + table(head, [row for dtype in dtypes for row in train(dtype, args)]), flush=True)
    if "generate" in args.only:
        head = ["generation", "dtype", "side", "call", "tokens/s", "speedup", "encoder", "distinct tokens"]
        print("\n" + table(head, [row for dtype in dtypes for row in generate(dtype, args)]))


if __name__ == "__main__":
    main()

"""Measure prefill and greedy decoding with the KV cache, compared with transformers on the same weights.

    python bench/decode.py [--models 124M 360M] [--dtypes float32 bfloat16] [--batches 1 8] [--prompt 512] [--new 64]

Each run is one call of `glassformer.generate.decode.decode` or of `transformers`' `generate`. Prefill is the time until
the first token, decode the rest of the call. In float32 both must generate the same tokens. The last columns are the
bytes that a step reads (every matrix once, and the average size of the cache) and the rate at which Glassformer reads
them, as a fraction of the rate at which this machine reads one large tensor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable

import torch
from compare import CLOCKS, add_arguments, show_ratio, table
from reference import transformers_model
from torch import Tensor, nn

from glassformer.families.common.shape import ShapeConfig
from glassformer.formats import load_decoder
from glassformer.generate.decode import decode
from glassformer.generate.request import GenerationRequest
from glassformer.generate.sampling import Sampling
from glassformer.kernels.linear import widen
from glassformer.nn.model import Decoder

MODELS = {
    "124M": ShapeConfig("gpt2", d_model=768, n_layers=12, n_heads=12, context=1024).fill(50257),
    "360M": ShapeConfig("llama", 960, 32, n_heads=15, n_kv_heads=5, d_ff=2560, context=2048).fill(49152),
}
Run = Callable[[], tuple[float, float, list[list[int]]]]  # seconds until the first token, seconds of the rest, tokens


def our_run(model: Decoder, ids: Tensor, new: int, now: Callable[[], float]) -> Run:
    request = GenerationRequest(ids.tolist(), max_tokens=new, sampling=Sampling(temperature=0.0))

    def run() -> tuple[float, float, list[list[int]]]:
        generated: list[list[int]] = [[] for _ in request.prompts]
        begin, first = now(), 0.0
        for event in decode(model, request):
            first = first or now()
            assert event.id is not None
            generated[event.sequence].append(event.id)
        return first - begin, now() - first, generated

    return run


def their_run(model: nn.Module, ids: Tensor, new: int, now: Callable[[], float]) -> Run:
    mask = torch.ones_like(ids)

    def run() -> tuple[float, float, list[list[int]]]:
        times: list[float] = []

        def stamp(*_, **__) -> Tensor:  # called after each token
            times.append(now())
            return torch.zeros(len(ids), dtype=torch.bool)

        begin = now()
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, stopping_criteria=[stamp]
        )
        return times[0] - begin, now() - times[0], out[:, ids.shape[1] :].tolist()

    return run


def bytes_per_step(model: Decoder, batch: int, cached: float) -> int:
    """Return the bytes that a step reads: each matrix once, and the keys and values of `cached` tokens per sequence."""
    matrices = [m.weight for m in model.blocks.modules() if isinstance(m, nn.Linear)] + [model.head.weight]
    kv_size = sum(2 * a.n_kv_heads * a.head_dim for a in (layer.attention for layer in model.config.layers))
    return sum(w.nbytes for w in matrices) + int(batch * cached * kv_size * model.head.weight.itemsize)


def memory_rate(now: Callable[[], float], size: int = 1 << 28) -> float:
    """Return the maximum of ten measurements of bytes read per second from a tensor larger than any CPU cache."""
    data, best = torch.ones(size // 4), float("inf")
    for _ in range(10):
        begin = now()
        data.sum()
        best = min(best, now() - begin)
    return size / best


def measure(name: str, dtype: torch.dtype, args: argparse.Namespace) -> list[list[str]]:
    now, theirs = CLOCKS[args.clock], transformers_model(MODELS[name]).to(dtype).eval()
    with torch.no_grad():
        for p in theirs.parameters():  # small random weights repeat one token
            p.mul_(2.0) if p.ndim >= 2 else None
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_decoder(folder, copy=True)
        widen(ours)
    rows = []
    for batch in args.batches:
        ids = torch.randint(MODELS[name].vocab_size, (batch, args.prompt), generator=torch.Generator().manual_seed(0))
        sides = {"ours": our_run(ours, ids, args.new, now), "theirs": their_run(theirs, ids, args.new, now)}
        prefill: dict[str, list[float]] = {side: [] for side in sides}
        decode: dict[str, list[float]] = {side: [] for side in sides}
        for round_ in range(args.rounds + 1):  # the first is warm-up
            generated = {}
            for side in sorted(sides, reverse=round_ % 2 == 0):
                before, after, generated[side] = sides[side]()
                if round_:
                    prefill[side].append(before)
                    decode[side].append(after / (args.new - 1))
            if dtype == torch.float32:
                assert generated["ours"] == generated["theirs"], "the two models generate different tokens"
        rate, size = memory_rate(now), bytes_per_step(ours, batch, args.prompt + args.new / 2)
        share = size / statistics.median(decode["ours"]) / rate
        tokens = {side: batch / statistics.median(seconds) for side, seconds in decode.items()}
        prefill_rate = {side: batch * args.prompt / statistics.median(seconds) for side, seconds in prefill.items()}
        rows.append([
            name, str(dtype).removeprefix("torch."), str(batch),
            f"{prefill_rate['ours']:,.0f} : {prefill_rate['theirs']:,.0f}",
            show_ratio(prefill["ours"], prefill["theirs"]),
            f"{tokens['ours']:.1f} : {tokens['theirs']:.1f}", show_ratio(decode["ours"], decode["theirs"]),
            f"{size / 1e6:,.0f} MB", f"{share:.0%} of {rate / 1e9:.1f} GB/s",
        ])  # fmt: skip
        print(".", end="", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"tokens/s ours : transformers; {args.threads} threads, prompt {args.prompt}, {args.new} new, "
        f"{args.clock} clock\n"
    )
    rows = [row for name in args.models for dtype in args.dtypes for row in measure(name, getattr(torch, dtype), args)]
    head = ["model", "dtype", "batch", "prefill", "speedup", "decode", "speedup", "bytes per step", "read rate"]
    print("\n" + table(head, rows))


if __name__ == "__main__":
    main()

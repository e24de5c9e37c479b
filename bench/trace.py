"""Measure a trace, compared with transformers' output_attentions and output_hidden_states, for GPT-2's shape at 124M.

    python bench/trace.py [--tokens 512] [--rounds 5] [--threads N]

Both models have the same random weights and store the output of each block, keys and values, and the attention
probabilities of all layers ("everything") or of one layer. Each row of the table is a setting: transformers computes
the logits of all tokens by default, a trace on request. The time of a trace includes checks of its recomputed values.
Memory is the size of the tensors that are stored at the end. The last table is the cost of disabled taps as a
fraction of a decode step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
from compare import add_arguments, alternate, show_ratio, table
from reference import transformers_model
from torch import Tensor, nn

from glassformer.cache.dense import DenseCache
from glassformer.families.common.shape import ShapeConfig
from glassformer.kernels.attention import attend_fused
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load
from glassformer.nn.model import Decoder
from glassformer.nn.step import LayerStep, Step

SHAPE = ShapeConfig("gpt2", d_model=768, n_layers=12, n_heads=12, context=1024).fill(50257)
LAYER = 5
THEIRS, THEIRS_LAST = "theirs", "theirs, logits of the last token"


def make_models(tokens: int) -> tuple[LanguageModel, nn.Module, Tensor]:
    """Return both models with the same weights, and random token ids."""
    theirs = transformers_model(SHAPE).eval()
    theirs.set_attn_implementation("eager")  # pyright: ignore  # eager attention returns probabilities
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)  # pyright: ignore
        lm = load(folder, dtype="float32", device="cpu")
    return lm, theirs, torch.randint(50257, (tokens,), generator=torch.Generator().manual_seed(0))


def storage_bytes(tensors: list[Tensor]) -> int:
    """Return the bytes of the storages of these tensors, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm, model, ids = make_models(args.tokens)
    text, n = ids.tolist(), SHAPE.n_layers
    stored: dict[str, list[Tensor]] = {}

    def theirs(side: str, logits: int) -> None:
        with torch.inference_mode():
            out = model(ids[None], output_attentions=True, output_hidden_states=True, logits_to_keep=logits)
        cache = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
        stored[side] = [*out.hidden_states, *out.attentions, *cache, out.logits]

    def traced(side: str, layers: range, capture: tuple[str, ...]) -> None:
        t = lm.trace(text, capture=capture)
        tensors = [t[f"blocks.{i}.resid_post"].tensor for i in range(n)]
        tensors += [t[f"blocks.{i}.attn.probs"].tensor for i in layers]
        tensors += [t["final.logits"].tensor] if "final.logits" in capture else []
        stored[side] = [*tensors, *t.captured.tensors.values()]

    one_layer = range(LAYER, LAYER + 1)
    sides = {
        THEIRS: lambda: theirs(THEIRS, 0),
        THEIRS_LAST: lambda: theirs(THEIRS_LAST, 1),
        "everything, and all logits": lambda: traced(
            "everything, and all logits", range(n), ("*.attn.probs", "final.logits")
        ),
        "everything": lambda: traced("everything", range(n), ("*.attn.probs",)),
        "one layer": lambda: traced("one layer", one_layer, (f"blocks.{LAYER}.attn.probs",)),
    }
    times = alternate(sides, args.rounds, clock=args.clock, warmup=1)
    check(lm, model, ids)
    print(f"\n124M, {args.tokens} tokens, float32, {args.threads} threads, {args.clock} clock\n")
    rows, baselines = [], (THEIRS, THEIRS_LAST)
    for side in sides:
        size = storage_bytes(stored[side])
        faster = ["", ""] if side in baselines else [show_ratio(times[side], times[other]) for other in baselines]
        share = f"{size / storage_bytes(stored[THEIRS]):.2f}"
        rows.append([side, f"{statistics.median(times[side]) * 1e3:.0f} ms", *faster, f"{size / 1e6:.0f} MB", share])
    print(table(["side", "time", "speedup", "speedup over last logits", "memory", "relative"], rows))
    print()
    print(table(["taps", ""], taps_off(lm.model, args.rounds)))


@torch.inference_mode()
def check(lm: LanguageModel, model: nn.Module, ids: Tensor) -> None:
    """Check that both models compute the same values."""
    out = model(ids[None], output_attentions=True, output_hidden_states=True, use_cache=False)
    t = lm.trace(ids.tolist())
    for i in range(SHAPE.n_layers):
        torch.testing.assert_close(t[f"blocks.{i}.attn.probs"].tensor, out.attentions[i][0], rtol=1e-3, atol=1e-5)
        if i:
            torch.testing.assert_close(t[f"blocks.{i}.resid_pre"].tensor, out.hidden_states[i][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(t["final.logits"].tensor, out.logits[0], rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def taps_off(model: Decoder, rounds: int) -> list[list[str]]:
    """Return the number of tap calls in a decode step, the time of one disabled call, and the time of the step."""
    ids, cache = torch.zeros(1, 1, dtype=torch.long), DenseCache.of(model.config, 1, 256)
    calls, see = 0, LayerStep.see

    def see_and_count(self: LayerStep, name: str, value: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return see(self, name, value)

    def decode_step() -> None:
        step = Step(cache.extend([1]), cache=cache, attend=attend_fused)
        model.logits(model.hidden(ids, step)[:, 0], step)

    LayerStep.see = see_and_count
    decode_step()
    LayerStep.see = see
    # taps outside the blocks, and the checks for edits of heads, scores and probabilities in each block
    calls += 4 + 3 * model.config.n_layers
    times = []
    for _ in range(10 * rounds):
        begin = time.perf_counter()
        decode_step()
        times.append(time.perf_counter() - begin)
    step, x = Step(torch.zeros(1, 1, dtype=torch.long)).layer(0), torch.zeros(1)
    call_times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(100_000):
            step.see("attn.z", x)
        call_times.append((time.perf_counter() - begin) / 100_000)
    step_time, cost = statistics.median(times), statistics.median(call_times)
    return [
        ["calls in a decode step", f"{calls}"],
        ["one call", f"{cost * 1e9:.0f} ns"],
        ["a decode step", f"{step_time * 1e3:.1f} ms"],
        ["share", f"{calls * cost / step_time:.4%}"],
    ]


if __name__ == "__main__":
    main()

"""Measure decoding and prefill on a CPU, compared with llama.cpp and transformers on the same weights.

    GLASSFORMER_LLAMA_CPP=build/llama-cpp/bin/python \\
    python bench/cpu.py [--model 124M 362M 1.24B] [--format F32 BF16 Q8_0 Q4_0 Q4_K_M]
                        [--work decode batch-8 batch-32 prefill-256 prefill-1024]
                        [--rounds 3] [--threads 2] [--clock cpu] [--json]

Writes a model with random weights once per size and format, as a GGUF file in --folder, which Glassformer and llama.cpp
run; transformers runs the same weights in float32 and bfloat16. All are interleaved in one run: see
`glassformer/generate/speed.py`. Decoding starts after a prompt of 32 tokens, the prefill ends with the first token. A
share is that of the measured rate of memory reads (decoding) or of float32 matrix products (prefill), for the weights
as the file stores them. Calls and barriers are those of the native kernels per forward pass.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from compare import table
from torch import Tensor

from glassformer.errors import ConfigError
from glassformer.families import expand
from glassformer.families.common.shape import ShapeConfig
from glassformer.formats.checkpoint import open_checkpoint
from glassformer.formats.save import GgufKind, save_model
from glassformer.generate.limits import CLOCKS, Limits, measure_limits, resident_bytes
from glassformer.generate.llama_cpp_process import (
    INTERPRETER_VARIABLE,
    NAME,
    LlamaCpp,
    find_interpreter,
    save_without_tokenizer,
)
from glassformer.generate.speed import OURS, ModelSize, Run, Timing, Workload, measure, our_run, report
from glassformer.kernels.cpu import NOTABLE_FEATURES, cpu_features, cpu_name
from glassformer.models.language_model import LanguageModel
from glassformer.nn.model import Decoder

MODELS = {  # the sizes of GPT-2 small, SmolLM2-360M and Llama-3.2-1B; every context holds all workloads
    "124M": ShapeConfig("gpt2", 768, 12, n_heads=12, context=2048).fill(50257),
    "362M": ShapeConfig("llama", 960, 32, n_heads=15, n_kv_heads=5, d_ff=2560, context=2048).fill(49152),
    "1.24B": ShapeConfig("llama", 2048, 16, n_heads=32, n_kv_heads=8, d_ff=8192, context=2048).fill(128256),
}
FORMATS: tuple[GgufKind, ...] = ("F32", "BF16", "Q8_0", "Q4_0", "Q4_K_M")
HF_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
WORKS = {
    "decode": Workload("decode", 32, 64),
    "batch-8": Workload("decode, batch 8", 32, 32, 8),
    "batch-32": Workload("decode, batch 32", 32, 32, 32),
    "prefill-256": Workload("prefill 256", 256),
    "prefill-1024": Workload("prefill 1,024", 1024),
}


def random_model(shape: ShapeConfig) -> Decoder:
    """Return a model with random weights, the same at every call."""
    torch.manual_seed(0)
    model = Decoder(expand(shape))
    with torch.no_grad():
        for p in model.parameters():  # small random weights repeat one token
            p.mul_(2.0) if p.ndim >= 2 else None
    return model.eval()


def gguf_file(name: str, kind: GgufKind, args: argparse.Namespace) -> Path:
    """Return the GGUF file of a size and format; it is written if it does not exist."""
    path: Path = args.folder / f"{name}-{kind}.gguf"
    if path.exists():
        return path
    print(f"writing {path}", file=sys.stderr)
    save_without_tokenizer(random_model(MODELS[name]), path, kind)
    return path


def hf_run(name: str, dtype: torch.dtype, args: argparse.Namespace) -> Run:
    """Return transformers' implementation, with the same weights."""
    import transformers

    now = CLOCKS[args.clock]
    path = args.folder / f"{name}-{str(dtype).removeprefix('torch.')}"
    if not path.exists():
        save_model(random_model(MODELS[name]), path, dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def run(prompts: list[list[int]], new_tokens: int) -> Timing:
        ids, times = torch.tensor(prompts), []

        def stamp(*_, **__) -> Tensor:  # called after each token
            times.append(now())
            return torch.zeros(len(ids), dtype=torch.bool)

        begin = now()
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens + 1, do_sample=False, pad_token_id=0,
            eos_token_id=None, stopping_criteria=[stamp],
        )  # fmt: skip
        return Timing(times[0] - begin, times[-1] - times[0], found[:, ids.shape[1] :].tolist())

    return run


def measure_file(name: str, kind: GgufKind, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results of all workloads with one size and format. Runs in a process of its own."""
    torch.set_num_threads(args.threads)
    path, cpu, results = gguf_file(name, kind, args), torch.device("cpu"), []
    size, before = ModelSize.of(open_checkpoint(path)), resident_bytes() or 0
    begin = time.perf_counter()
    lm = LanguageModel.load(path)
    facts = {"model": name, "format": kind, "file": path.stat().st_size, "load_seconds": time.perf_counter() - begin}
    facts["choices"] = {choice.what: choice.value for choice in lm.choices}
    sides: dict[str, Run] = {OURS: our_run(lm.model, args.clock)}
    with ExitStack() as stack:
        other = None
        if args.interpreter:
            other = stack.enter_context(LlamaCpp(path, args.interpreter, args.threads, args.clock))
            sides[NAME] = other.run
            facts[NAME] = {"version": other.version, "system": other.system}
        for key in args.work:
            our_run(lm.model)(WORKS[key].prompts(lm.config.vocab_size), 1)
            memory = (resident_bytes() or 0) - before
            if kind in HF_DTYPES and args.transformers and "transformers" not in sides:
                sides["transformers"] = hf_run(name, HF_DTYPES[kind], args)
            done = measure(WORKS[key], sides, lm.config.vocab_size, rounds=args.rounds)
            limits = measure_limits(cpu, args.clock)
            result = facts | {"limits": asdict(limits)} | report(done, limits, size)
            result["memory"] = {OURS: memory} | ({} if other is None else {NAME: other.memory})
            results.append(result)
            print(f"{name} {kind} {WORKS[key].name}", *cells(result)[3:], file=sys.stderr, sep=" | ")
    return results


def cells(result: dict[str, Any]) -> list[str]:
    """Return one row of the table."""
    row = [result["model"], result["format"], result["name"]]
    for side in (OURS, NAME, "transformers"):
        found = result["sides"].get(side)
        if found is None:
            row += ["-"] * 3
            continue
        row += [f"{found['tokens_per_second']:,.1f}", f"{100 * found['share']:.0f}%"]
        if side == OURS:
            row.append(f"{found['native']['calls']:.0f}, {found['native']['barriers']:.0f}")
        else:
            row.append(f"{found['ratio']:.2f}x ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})")
    return [*row, *(f"{result['memory'].get(side, 0) / 1e6:,.0f}" for side in (OURS, NAME))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: CPU time of one thread, on a busy machine"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where the models are stored")
    parser.add_argument("--no-transformers", dest="transformers", action="store_false")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu measures one thread: add --threads 1")
    try:
        args.interpreter = find_interpreter(os.environ.get(INTERPRETER_VARIABLE))
    except ConfigError as error:
        print(f"without {NAME}: {error}", file=sys.stderr)
        args.interpreter = ""
    args.folder.mkdir(parents=True, exist_ok=True)
    files = [(name, kind) for name in args.model for kind in args.format]
    for name, kind in files:
        gguf_file(name, kind, args)
    processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, processes, max_tasks_per_child=1) as pool:  # so that the memory is that of one model
        parts = pool.map(measure_file, *zip(*files, strict=True), [args] * len(files))
        results = [result for part in parts for result in part]
    features = [name for name in NOTABLE_FEATURES if name in cpu_features()]
    best = Limits(*(max(result["limits"][rate] for result in results) for rate in ("memory_rate", "matrix_rate")))
    head = {"cpu": cpu_name(), "features": features, "torch": torch.__version__}
    head |= {"threads": args.threads, "clock": args.clock}
    if args.json:
        print(json.dumps(head | {"limits": asdict(best), "rounds": args.rounds, "results": results}))
        return
    print(
        f"{head['cpu']} ({' '.join(features)}), torch {torch.__version__}, {args.threads} threads, {args.clock} clock"
    )
    rates = f"memory {best.memory_rate / 1e9:.1f} GB/s, matrix {best.matrix_rate / 1e9:.0f} GFLOP/s"
    print(f"limits: {rates}. Speed in tokens/s, memory in MB.")
    columns = [
        OURS,
        "share",
        "calls, barriers",
        NAME,
        "share",
        "ratio",
        "transformers",
        "share",
        "ratio",
        "memory",
        f"{NAME}'s",
    ]
    print("\n" + table(["model", "format", "work", *columns], [cells(result) for result in results]))


if __name__ == "__main__":
    main()

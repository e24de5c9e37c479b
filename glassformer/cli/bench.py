"""`glassformer bench`: prefill and decode speed, compared with this machine's limits and with llama.cpp."""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from glassformer.cli.common import IgnoreKeys, Json, Machine, open_model, out, print_json, progress
from glassformer.counted import counted
from glassformer.errors import ConfigError

if TYPE_CHECKING:
    from glassformer.formats.save import GgufKind
    from glassformer.models.language_model import LanguageModel

CHAT_TOKENS = 200  # the least length of the chat prompt for the time to the first token
GGUF_KINDS: dict[str, GgufKind] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def bench(
    model: str,
    *,
    batch: Annotated[tuple[int, ...], Parameter(negative="")] = (1, 8, 32),
    prefill: Annotated[tuple[int, ...], Parameter(negative="")] = (256, 1024),
    prompt_tokens: int = 32,
    new_tokens: int = 32,
    rounds: int = 3,
    clock: Literal["wall", "cpu"] = "wall",
    compare: Literal["llama.cpp"] | None = None,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Measure the speed of decoding and prefill, and its share of this machine's limits.

    Decoding is bound by the rate of memory reads, prefill by that of matrix products. Both are measured with PyTorch.

    Parameters
    ----------
    model
        A decoder-only model: a model folder or file, a run folder, `stories`, `smollm2`, or a name on the hub.
    batch
        Sequences to decode at a time. Repeat the option for several sizes.
    prefill
        Tokens of a prompt. Repeat the option for several lengths; those beyond the context are omitted.
    prompt_tokens
        Tokens of each prompt before decoding.
    new_tokens
        Tokens to decode per sequence.
    rounds
        Rounds; medians are reported.
    clock
        `cpu` measures the CPU time of one thread, with `--threads 1`, for a machine that is busy with other work.
    compare
        `llama.cpp`: run the same weights in llama.cpp, interleaved. Needs llama-cpp-python, in this environment or in
        that of the Python interpreter that GLASSFORMER_LLAMA_CPP names. A model in another format than GGUF is
        exported in its dtype; quantized matrices must come from a GGUF file.
    """
    import torch

    from glassformer.formats.checkpoint import open_checkpoint
    from glassformer.generate.limits import measure_limits, resident_bytes
    from glassformer.generate.llama_cpp_process import INTERPRETER_VARIABLE, LlamaCpp, find_interpreter
    from glassformer.generate.sampling import check_number
    from glassformer.generate.speed import OURS, ModelSize, Run, measure, our_run, report, workloads
    from glassformer.kernels.cpu import NOTABLE_FEATURES, cpu_features, cpu_name
    from glassformer.models.language_model import LanguageModel

    for name, values, least in (
        ("batch", batch, 1), ("prefill", prefill, 1), ("rounds", (rounds,), 1), ("prompt_tokens", (prompt_tokens,), 1),
        ("new_tokens", (new_tokens,), 1),
    ):  # fmt: skip
        for value in values:
            check_number(name, value, least, 1 << 20)
    interpreter = find_interpreter(os.environ.get(INTERPRETER_VARIABLE)) if compare else ""
    before = resident_bytes()
    lm = open_model(LanguageModel, model, machine, ignore_key, quiet=json)
    context = lm.config.context_length
    works = workloads(context, prefill=prefill, batch=batch, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    if not works:
        raise ConfigError(f"nothing to measure: no workload fits the model's context of {context} tokens")
    threads = torch.get_num_threads()
    if clock == "cpu" and (threads != 1 or lm.device.type != "cpu"):
        raise ConfigError(f"--clock cpu measures one CPU thread, got {threads} on {lm.device}: add --threads 1")
    with ExitStack() as stack, progress(quiet=json) as tick:
        sides: dict[str, Run] = {OURS: our_run(lm.model, clock)}
        other = None
        if compare:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            other = stack.enter_context(LlamaCpp(gguf_file(lm, folder), interpreter, threads, clock))
            sides[compare] = other.run
        done, memory = [], None
        for work in works:
            done.append(measure(work, sides, lm.config.vocab_size, rounds=rounds, tick=tick))
            after = resident_bytes()
            memory = after - before if memory is None and after and before else memory
        chat = _time_chat(lm, rounds, clock)
    limits = measure_limits(lm.device, clock)
    size = ModelSize.of(open_checkpoint(lm.path, ignore_key))
    facts = {
        "model": lm.path,
        "parameters": lm.n_parameters,
        "cpu": cpu_name(),
        "features": [name for name in NOTABLE_FEATURES if name in cpu_features()],
        "threads": threads,
        "clock": clock,
        "torch": torch.__version__,
        "choices": [asdict(choice) for choice in lm.choices],
        "limits": asdict(limits),
        "memory": {OURS: memory} | ({} if other is None else {str(compare): other.memory}),
        "compare": None if other is None else {"name": compare, "version": other.version, "system": other.system},
        "rounds": rounds,
        "workloads": [report(measurement, limits, size) for measurement in done],
        "chat": chat,
    }
    if json:
        print_json(facts)
    else:
        _print(facts)


def _time_chat(lm: LanguageModel, rounds: int, clock: str) -> dict[str, Any] | None:
    """Measure the seconds from a message to the first token of the answer; None without a chat template."""
    from glassformer.generate.limits import CLOCKS
    from glassformer.text.chat.chat_template import ChatTemplate

    if lm.tokenizer is None or not lm.tokenizer.chat_templates or lm.config.context_length <= CHAT_TOKENS:
        return None
    template, message = ChatTemplate(lm.tokenizer), {"role": "user", "content": ""}
    while len(ids := template.encode([message], add_generation_prompt=True)) < CHAT_TOKENS:
        message["content"] += " ".join(["the"] * (CHAT_TOKENS - len(ids))) + "\n"
    now, seconds = CLOCKS[clock], []
    for _ in range(rounds + 1):  # the first is warm-up
        begin = now()
        next(lm.stream(template.encode([message], add_generation_prompt=True), max_tokens=1, temperature=0.0))
        seconds.append(now() - begin)
    return {"prompt_tokens": len(ids), "seconds": seconds[1:]}


def gguf_file(lm: LanguageModel, folder: Path) -> Path:
    """Return the model's GGUF file; another format is exported to `folder` in the dtype of its matrices.

    Raises:
        ConfigError: the matrices are quantized, and not by a GGUF file.
    """
    from glassformer.generate.llama_cpp_process import NAME, save_without_tokenizer

    path, placement = Path(lm.path), lm.placement
    assert placement is not None
    is_gguf = path.suffix.lower() == ".gguf"
    if placement.quantizes or (placement.packed and not is_gguf):
        raise ConfigError(
            f"{NAME} cannot run these quantized matrices: compare a GGUF file, such as one that "
            "`glassformer convert MODEL model.gguf --to Q4_K_M` makes"
        )
    if is_gguf:
        return path
    save_without_tokenizer(lm.model, folder / "model.gguf", GGUF_KINDS[str(placement.dtype).removeprefix("torch.")])
    return folder / "model.gguf"


def _print(facts: dict[str, Any]) -> None:
    from glassformer.generate.speed import OURS

    threads = counted(facts["threads"], "thread")
    head = f"{facts['cpu']} ({' '.join(facts['features'])}), {threads}, torch {facts['torch']}"
    head += ", CPU time" if facts["clock"] == "cpu" else ""
    out.print(head, markup=False)
    for choice in facts["choices"]:
        out.print(f"{choice['what']}: {choice['value']}, {choice['because']}", markup=False)
    others = [] if facts["compare"] is None else [facts["compare"]["name"]]
    table = Table(box=None, pad_edge=False)
    for column in ("", "tokens/s", "share of limit", *(head for name in others for head in (name, "share", "ratio"))):
        table.add_column(column, justify="right" if column else "left")
    for work in facts["workloads"]:
        ours, *rest = work["sides"].values()
        cells = [f"{ours['tokens_per_second']:,.1f}", f"{_percent(ours['share'])} of {work['bound']}"]
        for side in rest:
            ratio = f"{side['ratio']:.2f}x ({side['ratio_min']:.2f} to {side['ratio_max']:.2f})"
            cells += [f"{side['tokens_per_second']:,.1f}", _percent(side["share"]), ratio]
        table.add_row(work["name"], *cells)
    out.print(table)
    native = facts["workloads"][0]["sides"][OURS].get("native")
    if native and native["calls"]:
        counts = ", ".join(f"{count:,.0f} {name}" for name, count in native.items())
        out.print(f"native kernels per forward pass of {facts['workloads'][0]['name']}: {counts}")
    if chat := facts["chat"]:
        median = statistics.median(chat["seconds"])
        out.print(f"time to first token after a chat prompt of {chat['prompt_tokens']} tokens: {median:.2f} s")
    limits = facts["limits"]
    out.print(
        f"limits: memory {limits['memory_rate'] / 1e9:,.1f} GB/s, matrix {limits['matrix_rate'] / 1e9:,.0f} GFLOP/s, "
        "measured after the workloads",
        style="dim",
    )
    memory = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in facts["memory"].items() if size)
    out.print(f"memory of the model and its cache: {memory or 'not known'}", style="dim")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"

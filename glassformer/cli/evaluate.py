"""`glassformer eval`: loss, perplexity and bits per byte of a text."""

from __future__ import annotations

import tempfile
import time

from glassformer.cli.common import (
    DataName,
    IgnoreKeys,
    Json,
    Machine,
    Read,
    open_model,
    out,
    print_json,
    progress,
    say,
)
from glassformer.counted import counted
from glassformer.errors import DataError, RequestError
from glassformer.training.data.read_options import DEFAULT_READ


def evaluate(
    model: str,
    *data: DataName,
    batch: int = 16,
    overlap: int = 0,
    max_tokens: int | None = None,
    read: Read = DEFAULT_READ,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Compute the loss of a model on text.

    Parameters
    ----------
    model
        A model folder, a run folder, `stories` or `smollm2`.
    data
        Files, folders, globs, pipes, or `-` for stdin: text, JSONL, JSON, CSV, TSV, Parquet or Arrow, also with .gz or
        .zst. Every token counts once.
    batch
        Sequences per batch.
    overlap
        Tokens that a sequence repeats from the end of the one before, as context only. 0 is as in training; half the
        context length gives every token at least that much context, at twice the cost.
    max_tokens
        Maximum number of tokens.
    """
    import torch

    from glassformer.models.language_model import LanguageModel
    from glassformer.training.data.packing import packed_eval_batches
    from glassformer.training.data.prepare import prepare, reading_report
    from glassformer.training.data.sources import DocumentFiles
    from glassformer.training.tasks.evaluate import Compute
    from glassformer.training.tasks.evaluate import evaluate as evaluate_batches

    for name, value, low in (("batch", batch, 1), ("overlap", overlap, 0), ("max-tokens", max_tokens, 1)):
        if value is not None and value < low:
            raise RequestError(f"--{name} must be at least {low}, got {value}", param=name)
    if not data:
        raise DataError("DATA is missing: give files, folders, globs or - for stdin")
    lm = open_model(LanguageModel, model, machine, ignore_key, quiet=json)
    if lm.tokenizer is None:
        raise RequestError("evaluation of text needs a tokenizer, and this model has none", param="model")
    files = DocumentFiles([str(name) for name in data], read, announce=None if json else say)
    with tempfile.TemporaryDirectory() as folder, progress(quiet=json) as advance:
        shards = prepare(
            files,
            lm.tokenizer,
            f"{folder}/data",
            held_out=0,
            progress=advance,
        )
        documents = shards.train
        batches = packed_eval_batches(documents, lm.config.context_length, batch, max_tokens, overlap=overlap)
        total = min(documents.n_tokens, max_tokens or documents.n_tokens)
        start = time.perf_counter()
        found = evaluate_batches(
            lm.model,
            batches,
            Compute(lm.device, torch.float32),
            unk_id=lm.tokenizer.unk_id,
            progress=lambda tokens: advance(min(tokens, total), total, "evaluating"),
        )
        seconds = time.perf_counter() - start
    facts = {
        "model": lm.path,
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
        "bytes": round(found.bytes),
        "unknown_tokens": found.unknown,
        "skipped": shards.index["skipped"],
        "notes": shards.index["notes"],
        "seconds": seconds,
        "tokens_per_second": found.tokens / seconds,
    }
    if json:
        print_json(facts)
        return
    for line in reading_report(shards):
        say(line)
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits per byte"
    out.print(f"loss {found.loss:.4f} nats per token, perplexity {found.perplexity:.2f}{bits}")
    if found.unknown:
        share = f"{counted(found.unknown, 'token')} ({found.unknown_share:.2%})"
        say(f"{share} are unknown to the tokenizer: their text is not predicted, so there are no bits per byte")
    out.print(
        f"{counted(found.tokens, 'token')} in {seconds:.1f} s, {found.tokens / seconds:,.0f} tokens/s", style="dim"
    )

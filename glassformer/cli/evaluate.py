"""`glassformer eval`: loss, perplexity and bits per byte on a text."""

from __future__ import annotations

import tempfile
import time

from glassformer.cli.common import IgnoreKeys, Json, Machine, open_model, out, print_json, progress
from glassformer.errors import DataError, RequestError


def evaluate(
    model: str,
    *data: str,
    batch: int = 16,
    overlap: int = 0,
    max_tokens: int | None = None,
    text_field: str = "text",
    separator: str | None = None,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Measure how well a model predicts files, folders, globs, JSONL or `-` for stdin.

    Parameters
    ----------
    model
        A model folder, a run folder, or `stories`.
    data
        What to predict; every token counts once.
    batch
        Rows at a time.
    overlap
        Tokens that a row shows again of the row before, uncounted: 0 is as in training, half the context gives every
        token at least half a context before it, at twice the cost.
    max_tokens
        Stop after so many tokens.
    """
    import torch

    from glassformer.models.language_model import LanguageModel
    from glassformer.training.data.packing import packed_eval_batches
    from glassformer.training.data.prepare import prepare
    from glassformer.training.tasks.evaluate import Compute, Evaluation
    from glassformer.training.tasks.evaluate import evaluate as run

    if not data:
        raise DataError("there is no DATA to evaluate on: name files, folders, globs, JSONL, or - for stdin")
    lm = open_model(LanguageModel, model, machine, ignore_key, quiet=json)
    if lm.tokenizer is None:
        raise RequestError("this model has no tokenizer, and evaluation reads text", param="model")
    how = Compute(lm.device, torch.float32)
    with tempfile.TemporaryDirectory() as folder, progress(quiet=json) as advance:
        shards = prepare(
            list(data),
            lm.tokenizer,
            f"{folder}/data",
            held_out=0,
            text_field=text_field,
            separator=separator,
            progress=advance,
        )
        view = shards.train
        rows = packed_eval_batches(view, lm.config.context_length, batch, max_tokens, overlap=overlap)
        total = min(view.n_tokens, max_tokens or view.n_tokens)
        begin, nats, tokens, size = time.perf_counter(), 0.0, 0, 0.0
        for row in rows:
            one = run(lm.model, [row], how)
            nats, tokens, size = nats + one.loss * one.tokens, tokens + one.tokens, size + one.bytes
            advance(min(tokens, total), total, "evaluating")
        found = Evaluation(nats / max(1, tokens), tokens, size)
        seconds = time.perf_counter() - begin
    facts = {
        "model": lm.path,
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
        "bytes": round(found.bytes),
        "seconds": seconds,
        "tokens_per_second": found.tokens / seconds,
    }
    if json:
        print_json(facts)
        return
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits per byte"
    out.print(f"loss {found.loss:.4f} nats per token, perplexity {found.perplexity:.2f}{bits}")
    out.print(f"{found.tokens:,} tokens in {seconds:.1f} s, {found.tokens / seconds:,.0f} tokens/s", style="dim")

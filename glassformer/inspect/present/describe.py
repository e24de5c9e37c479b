"""Traces, tokens and errors as the JSON values that the server, notebooks and reports send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glassformer.errors import GlassformerError
from glassformer.inspect.trace.offsets import spans
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.result import plain


def describe_trace(
    trace: Trace,
    id: str,
    model: str,
    *,
    created: int = 0,
    n_bytes: int = 0,
) -> dict[str, Any]:
    """Return a trace's metadata, without its text and tokens."""
    return {
        "id": id,
        "object": "trace",
        "model": model,
        "kind": trace.kind,
        "created": created,
        "n_tokens": len(trace.ids),
        "n_prompt": trace.n_prompt,
        "edits": [edit.json for edit in trace.edits],
        "bytes": n_bytes,
        "finish": trace.finish,
        "seed": trace.seed,
    }


def describe_text(trace: Trace, logprobs: Sequence[float | None] = ()) -> dict[str, Any]:
    """Return a trace's text and tokens; of models with a source, also `source` and `target`.

    Args:
        logprobs: The log-probabilities of the generated tokens, if known. The view `summary` computes those of all.
    """
    found = _text(trace, trace.ids, trace.tokens, [None] * trace.n_prompt + list(logprobs))
    if trace.source is not None:
        found["source"] = _text(trace, trace.source.ids, trace.source.tokens)
        found["target"] = _text(trace, trace.target, trace.target_tokens)
    return found


def _text(
    trace: Trace, ids: Sequence[int], texts: Sequence[str], logprobs: Sequence[float | None] = ()
) -> dict[str, Any]:
    tokenizer = trace.lm.tokenizer
    text, offsets = spans(tokenizer, ids)
    tokens = []
    for i, (id, token, (start, end)) in enumerate(zip(ids, texts, offsets, strict=True)):
        data = None if tokenizer is None else tokenizer.find_bytes(id)
        logprob = plain(logprobs[i]) if i < len(logprobs) else None
        tokens.append(
            {
                "id": id,
                "text": token,
                "bytes": None if data is None else list(data),
                "start": start,
                "end": end,
                "logprob": logprob,
            }
        )
    return {"text": text, "tokens": tokens}


def describe_points(trace: Trace, id: str) -> dict[str, Any]:
    """Return the points of a trace, with their axes and shapes."""
    points = [{"name": name, "axes": trace.axes(name), "shape": trace.shape(name)} for name in trace.names()]
    return plain({"id": id, "points": points})


def describe_error(error: GlassformerError) -> dict[str, Any]:
    """Return an error in the shape that every transport uses."""
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    return {"error": {"message": str(error), "type": "invalid_request_error", "param": param, "code": code}}

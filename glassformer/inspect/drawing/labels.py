"""Labels of the rows and columns of drawings."""

from __future__ import annotations

from typing import Any

from glassformer.inspect.drawing.panels import show_token
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.layer import AttentionKind


def token_labels(t: Trace) -> tuple[str, ...]:
    return tuple(map(show_token, t.tokens))


def query_key_labels(t: Any, attention: AttentionKind) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens of the queries and of the keys."""
    return token_labels(t.source if attention == "encoder" else t), token_labels(t if attention == "attn" else t.source)


def block_labels(n: int) -> tuple[str, ...]:
    return tuple(f"block {i}" for i in range(n))


def head_labels(n: int) -> tuple[str, ...]:
    return tuple(f"head {i}" for i in range(n))


def stream_labels(n: int) -> tuple[str, ...]:
    """Return the source of the residual stream at each of `n` depths: the embedding, then each block."""
    return ("embedding", *block_labels(n - 1))

"""Checked access to a layer, a head, a position and the values of a trace, for the views of one layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.seq2seq import Seq2seqTrace
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.trace.value import Value
from glassformer.nn.attention import Attention
from glassformer.nn.block import Block
from glassformer.nn.latent import LatentAttention

MAX_PATTERN_BYTES = 64 << 20  # of the attention pattern of one layer that is computed at once
AttentionKind = Literal["attn", "cross", "encoder"]  # self-attention, cross-attention, self-attention of the encoder


def get_block(t: Trace, layer: int) -> Block:
    """Return a block. RequestError if the layer is out of range."""
    check_number("layer", layer, 0, t.config.n_layers - 1)
    block = t.model.blocks[layer]
    assert isinstance(block, Block)
    return block


def get_attention(t: Trace, layer: int, head: int = 0, kind: AttentionKind = "attn") -> Attention | LatentAttention:
    """Return an attention module. RequestError if the layer, head or module does not exist."""
    attention = getattr(get_block(t, layer), kind, None)
    if attention is None:
        raise RequestError(f"block {layer} has no {kind!r} attention: this model has no source", param="attention")
    assert isinstance(attention, Attention | LatentAttention)
    check_number("head", head, 0, attention.config.n_heads - 1)
    return attention


def select_stack(t: Trace, kind: AttentionKind) -> tuple[Trace, AttentionKind]:
    """Return the trace of the stack that has this attention, and its name there: the encoder's is "attn"."""
    if kind != "encoder":
        return t, kind
    if not isinstance(t, Seq2seqTrace):
        raise RequestError(
            "attention='encoder' needs an encoder-decoder: leave it out for this model", param="attention"
        )
    return t.source, "attn"


def resolve_position(t: Trace, name: str, position: int) -> int:
    """Return a position from 0; -1 is the last token. RequestError if it is out of range."""
    check_number(name, position, -len(t.ids), len(t.ids) - 1)
    return position % len(t.ids)


def patterns_of(t: Trace, name: str, queries: Iterable[range]) -> Iterator[Value]:
    """Yield scores or probabilities [H, N, S] of some queries at a time, which bounds the memory for a long text.

    A small pattern is computed once, and cached by the trace.
    """
    if math.prod(t.shape(name)) * 4 <= MAX_PATTERN_BYTES:
        pattern = t[name]
        yield from (pattern[:, some.start : some.stop] for some in queries)
    else:
        yield from (t.rows(name, query=some) for some in queries)


def values_at(t: Trace, name: str, position: int | None = None) -> Tensor:
    """Return the values of a point in float32, at one position or at all positions."""
    return (t[name] if position is None else t.at(name, position)).tensor.detach().float()

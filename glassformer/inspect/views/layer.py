"""What views of a layer share: which block and head are meant, and what one row of a trace holds there."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.seq2seq import Seq2seqTrace
from glassformer.inspect.trace.trace import Trace
from glassformer.nn.attention import Attention
from glassformer.nn.block import Block
from glassformer.nn.latent import LatentAttention

Which = Literal["attn", "cross", "encoder"]  # a block's own attention, that to the source, or the encoder's


def block_of(t: Trace, layer: int) -> Block:
    """RequestError for a layer that the model does not have."""
    check_number("layer", layer, 0, t.config.n_layers - 1)
    block = t.model.blocks[layer]
    assert isinstance(block, Block)
    return block


def attention_of(t: Trace, layer: int, head: int = 0, which: Which = "attn") -> Attention | LatentAttention:
    """RequestError for a layer, a head or a kind of attention that the model does not have."""
    attention = getattr(block_of(t, layer), which, None)
    if attention is None:
        raise RequestError(
            f"this model reads no source: block {layer} has no attention of the kind {which!r}", param="attention"
        )
    assert isinstance(attention, Attention | LatentAttention)
    check_number("head", head, 0, attention.config.n_heads - 1)
    return attention


def side_of(t: Trace, which: Which) -> tuple[Trace, Which]:
    """The trace that has this attention, and its name there. RequestError where the model has no encoder."""
    if which != "encoder":
        return t, which
    if not isinstance(t, Seq2seqTrace):
        raise RequestError("this model has no encoder beside it: leave out `attention`", param="attention")
    return t.source, "attn"


def position_of(t: Trace, name: str, position: int) -> int:
    """A token's place in the text; -1 is the last. RequestError past its ends."""
    check_number(name, position, -len(t.ids), len(t.ids) - 1)
    return position % len(t.ids)


def at(t: Trace, name: str, position: int | None = None) -> Tensor:
    """A point's values at one token, or at all of them, in float32."""
    return (t[name] if position is None else t.at(name, position)).tensor.detach().float()

"""What views of a layer share: which block and head are meant, and what one row of a trace holds there."""

from __future__ import annotations

from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace import Trace
from glassformer.nn.attention import Attention
from glassformer.nn.residual import Block


def block_of(t: Trace, layer: int) -> Block:
    """RequestError for a layer that the model does not have."""
    check_number("layer", layer, 0, t.config.n_layers - 1)
    block = t.model.blocks[layer]
    assert isinstance(block, Block)
    return block


def attention_of(t: Trace, layer: int, head: int = 0) -> Attention:
    """RequestError for a layer or head that the model does not have, or attention that has no row of W_q for each."""
    attention = block_of(t, layer).attn
    if not isinstance(attention, Attention):
        raise RequestError(
            f"block {layer} makes its keys and values of a latent: they have no matrices of their own to show here; "
            f'its numbers are t["blocks.{layer}.attn.q"] and the other points',
            param="view",
        )
    check_number("head", head, 0, attention.config.n_heads - 1)
    return attention


def position_of(t: Trace, name: str, position: int) -> int:
    """A token's place in the text; -1 is the last. RequestError past its ends."""
    check_number(name, position, -len(t.ids), len(t.ids) - 1)
    return position % len(t.ids)


def at(t: Trace, name: str, position: int | None = None) -> Tensor:
    """A point's values at one token, or at all of them, in float32."""
    return (t[name] if position is None else t.at(name, position)).tensor.detach().float()

"""Where a model looked in its source while it wrote each token of the target. View 14.

Transformer   blocks.i.cross.probs [H, T, S], one head's or the mean of several
recurrent     rnn.probs [T, S]: context_t = sum_j probs_tj h_j (Bahdanau et al. 2015, equation 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.recompute import larger
from glassformer.inspect.trace.trace import ModelKind, Receipt, Trace

NONE = "this model has no attention: it writes from the encoder's last state alone, and nothing aligns"


@dataclass(frozen=True)
class AlignmentSide:
    """A token of either text."""

    id: int
    text: str


@dataclass(frozen=True)
class Aligned:
    """`probs` [T, S]: how much of each token of the source was taken when each one of the target was to be written;
    rows sum to 1. `ended`: the last target token is the one that ends the text. `layer`, `head`: None is the mean over
    all `n_layers`, or all `n_heads`; of a recurrent model there is one of either.
    """

    kind: ModelKind
    source: tuple[AlignmentSide, ...]
    target: tuple[AlignmentSide, ...]
    ended: bool
    layer: int | None
    head: int | None
    n_layers: int
    n_heads: int
    probs: Float[Tensor, "T S"]
    receipt: Receipt


@torch.no_grad()
def alignment(t: Trace, *, layer: int | None = None, head: int | None = None) -> Aligned:
    """What each token that was written looked at in the source: one head's shares, or the mean over layers and heads.

    RequestError for a layer or head that there is not, a head of no layer, or a model without attention.
    """
    pair: Any = t
    if head is not None and layer is None:
        raise RequestError("a head is one of a layer's: give `layer` too", param="layer")
    if not t.has_blocks:
        probs, line, identity, error, n_layers, n_heads = _recurrent(pair, layer, head)
    else:
        probs, line, identity, error, n_layers, n_heads = _cross(pair, layer, head)
    source, target = (
        tuple(AlignmentSide(*one) for one in zip(ids, tokens, strict=True))
        for ids, tokens in ((pair.source.ids, pair.source.tokens), (pair.target, pair.target_tokens))
    )
    ended = bool(pair.target) and pair.target[-1] == pair.lm.end_id
    return Aligned(t.kind, source, target, ended, layer, head, n_layers, n_heads, probs, Receipt(line, identity, error))


def _recurrent(t: Any, layer: int | None, head: int | None) -> tuple[Tensor, str, str | None, float | None, int, int]:
    if t.config.attention is None:
        raise RequestError(NONE, param="view")
    check_number("layer", layer, 0, 0, optional=True)
    check_number("head", head, 0, 0, optional=True)
    value = t["rnn.probs"]
    return value.tensor.float(), 't["rnn.probs"]', value.identity, value.error, 1, 1


def _cross(t: Any, layer: int | None, head: int | None) -> tuple[Tensor, str, str | None, float | None, int, int]:
    n_layers = t.config.n_layers
    check_number("layer", layer, 0, n_layers - 1, optional=True)
    counts = [one.cross.n_heads for one in t.config.layers]
    n_heads = counts[0 if layer is None else layer]
    check_number("head", head, 0, n_heads - 1, optional=True)
    layers = range(n_layers) if layer is None else (layer,)
    values = [t.rows(f"blocks.{i}.cross.probs", head) for i in layers]
    error, identity = 0.0, values[0].identity
    for value in values:
        error = larger(error, value.error)
    if head is not None:
        return values[0].tensor.float(), f't["blocks.{layer}.cross.probs"][{head}]', identity, error, n_layers, n_heads
    probs = torch.cat([value.tensor.float() for value in values]).mean(0)
    line = "t.alignment().probs" if layer is None else f't["blocks.{layer}.cross.probs"].tensor.mean(0)'
    return probs, line, identity, error, n_layers, n_heads

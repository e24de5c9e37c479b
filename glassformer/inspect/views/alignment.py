"""The attention of each target token to the source tokens. View 14.

Transformer   blocks.i.cross.probs [H, T, S], of one head or the mean of several
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

NO_ATTENTION = "this model has no attention: it generates from the encoder's last state alone, so there is no alignment"


@dataclass(frozen=True)
class AlignmentToken:
    """A token of the source or the target."""

    id: int
    text: str


@dataclass(frozen=True)
class Alignment:
    """The result of `alignment`.

    probs [T, S]: the attention with which each target token was generated, over the source; rows sum to 1. ended: the
    last target token is the end token. layer, head: None is the mean over all `n_layers` or `n_heads`; a recurrent
    model has one of each.
    """

    kind: ModelKind
    source: tuple[AlignmentToken, ...]
    target: tuple[AlignmentToken, ...]
    ended: bool
    layer: int | None
    head: int | None
    n_layers: int
    n_heads: int
    probs: Float[Tensor, "T S"]
    receipt: Receipt


@torch.no_grad()
def alignment(t: Trace, *, layer: int | None = None, head: int | None = None) -> Alignment:
    """The attention of each target token to the source: of one head, or the mean over layers and heads.

    Raises:
        RequestError: A layer or head is out of range, `head` has no `layer`, or the model has no attention.
    """
    seq2seq: Any = t
    if head is not None and layer is None:
        raise RequestError("head needs a layer: set `layer` too", param="layer")
    if not t.has_blocks:
        probs, line, identity, error, n_layers, n_heads = _recurrent(seq2seq, layer, head)
    else:
        probs, line, identity, error, n_layers, n_heads = _cross(seq2seq, layer, head)
    source, target = (
        tuple(AlignmentToken(*one) for one in zip(ids, tokens, strict=True))
        for ids, tokens in ((seq2seq.source.ids, seq2seq.source.tokens), (seq2seq.target, seq2seq.target_tokens))
    )
    ended = bool(seq2seq.target) and seq2seq.target[-1] == seq2seq.lm.end_id
    return Alignment(
        t.kind, source, target, ended, layer, head, n_layers, n_heads, probs, Receipt(line, identity, error)
    )


def _recurrent(t: Any, layer: int | None, head: int | None) -> tuple[Tensor, str, str | None, float | None, int, int]:
    if t.config.attention is None:
        raise RequestError(NO_ATTENTION, param="view")
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
    error, identity = 0.0, None
    total: Tensor | None = None
    for i in layers:  # one layer's probabilities at a time
        value = t.rows(f"blocks.{i}.cross.probs", head)
        error, identity = larger(error, value.error), value.identity
        part = value.tensor.float() if head is not None else value.tensor.float().sum(0)
        total = part if total is None else total + part
    assert total is not None
    if head is not None:
        return total, f't["blocks.{layer}.cross.probs"][{head}]', identity, error, n_layers, n_heads
    probs = total / sum(counts[i] for i in layers)
    line = "t.alignment().probs" if layer is None else f't["blocks.{layer}.cross.probs"].tensor.mean(0)'
    return probs, line, identity, error, n_layers, n_heads

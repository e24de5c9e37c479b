"""Scaled dot-product attention: its definition, and its fast twin.

"Attention Is All You Need" (Vaswani et al. 2017), equation 1: softmax(q k^T * scale) v, per head.

    q [B, T, H, Dh] --.
    k [B, S, Hkv, Dh] -+-> scores [B, H, T, S] -> softcap -> bias -> mask -> softmax = probs -.
    v [B, S, Hkv, Dv] -----------------------------------------------------------------------+-> z [B, T, H, Dv]

Query head h reads key/value head h // (H / Hkv): grouped queries (Ainslie et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class AttendSpec:
    """What an attention does beside its weights. `source`: it reads an encoder's keys (cross-attention)."""

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    source: bool = False


class KV(NamedTuple):
    """Keys [B, S, Hkv, Dh] and values [B, S, Hkv, Dv] in full: what `keep` returns where nothing is paged."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Visibility:
    """What the queries of one pass may look at. `mask` None with `causal` False hides nothing; `causal` is T = S."""

    queries: Int[Tensor, "#B T"]
    keys: Int[Tensor, "#B S"]
    mask: Bool[Tensor, "#B T S"] | None
    causal: bool = False

    def visible(self) -> Bool[Tensor, "#B T S"]:
        """The mask in full: True where a query may look."""
        if self.mask is not None:
            return self.mask
        shape = (1, self.queries.shape[-1], self.keys.shape[-1])
        everything = torch.ones(shape, dtype=torch.bool, device=self.keys.device)
        return everything.tril() if self.causal else everything


def visible(
    spec: AttendSpec,
    queries: Int[Tensor, "#B T"],
    keys: Int[Tensor, "#B S"],
    documents: Int[Tensor, "#B T"] | None = None,
) -> Bool[Tensor, "#B T S"]:
    """The mask from positions. A key at -1 is empty; a query at -1 is padding, sees all, and is read by nobody."""
    q, k = queries[..., :, None], keys[..., None, :]
    mask = (k >= 0).expand(*torch.broadcast_shapes(q.shape, k.shape))
    if spec.causal:
        mask = mask & (k <= q)
    if spec.window is not None:
        mask = mask & (q - k < spec.window)
    if documents is not None:
        mask = mask & (documents[..., :, None] == documents[..., None, :])
    return mask | (q < 0)


MANY_HEADS = 64  # heads of all rows together, from which on products of a batch of them are quicker than SDPA on a CPU

Attend = Callable[..., Tensor]
See = Callable[[str, Tensor], Tensor]


def attend_math(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    kv: KV,
    view: Visibility,
    bias: Float[Tensor, "*#BH #T S"] | None = None,
    sinks: Float[Tensor, "H"] | None = None,
    see: See | None = None,
) -> tuple[Float[Tensor, "B T H Dv"], Float[Tensor, "B H T S"], Float[Tensor, "B H T S"]]:
    """The definition of attention. Returns what flows on, the scores and the probabilities behind it.

    `bias` is added to the scaled scores (T5, ALiBi). `sinks` are one more score per head, whose probability goes
    nowhere (gpt-oss). `see` may change scores and probabilities on their way.
    """
    group = q.shape[-2] // kv.k.shape[-2]
    k, v = (t.repeat_interleave(group, -2) for t in kv)  # [B, S, H, Dh]
    scores = torch.einsum("bthd,bshd->bhts", q.float(), k.float()) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~view.visible().unsqueeze(-3), -math.inf)
    if see is not None:
        scores = see("scores", scores)
    if sinks is None:
        probs = scores.softmax(-1)
    else:
        column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        probs = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    if see is not None:
        probs = see("probs", probs)
    return torch.einsum("bhts,bshd->bthd", probs, v.float()).to(q.dtype), scores, probs


def attend_sdpa(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    kv: KV,
    view: Visibility,
    bias: Float[Tensor, "*#BH #T S"] | None = None,
    sinks: Float[Tensor, "H"] | None = None,
) -> Float[Tensor, "B T H Dv"]:
    """The fast twin: torch's scaled_dot_product_attention. It has no softcap and no sinks: they take the definition.

    Its kernels that never hold all scores want values as wide as keys: narrower ones are filled up with zeros.
    """
    if spec.softcap is not None or sinks is not None:
        return attend_math(spec, q, kv, view, bias, sinks)[0]
    mask = None if view.mask is None else view.mask.unsqueeze(-3)  # [B, 1, T, S]
    if bias is not None:
        hidden = ~view.visible().unsqueeze(-3)
        mask = bias.to(q.dtype).expand(*torch.broadcast_shapes(bias.shape, hidden.shape)).masked_fill(hidden, -math.inf)
    q, k, v = (t.transpose(-2, -3) for t in (q, *kv))  # [B, H, T, Dh], [B, Hkv, S, Dh]
    n_heads, n_kv_heads, length = q.shape[-3], k.shape[-3], q.shape[-2]
    grouped = n_heads != n_kv_heads
    if length == 1 and bias is None:
        many = not grouped and q.device.type == "cpu" and q.shape[0] * n_heads >= MANY_HEADS
        if many and (q.dtype == torch.bfloat16 or spec.source):  # in float32 only keys that lie without gaps gain
            return _one_query(spec, q, k, v, view)
        # the queries of a group read the same keys: let them be rows of one product
        q = q.reshape(*q.shape[:-3], n_kv_heads, n_heads // n_kv_heads, q.shape[-1])
        lone = not grouped and q.dtype == torch.bfloat16 and q.device.type == "cpu"
        rows = q.repeat_interleave(2, -2) if lone else q  # torch 2.13 takes twice as long for one such row as for two
        z = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=spec.scale)[..., : q.shape[-2], :]
        return z.reshape(*z.shape[:-3], 1, n_heads, z.shape[-1])
    width = v.shape[-1]
    v = F.pad(v, (0, k.shape[-1] - width)) if width < k.shape[-1] else v
    z = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=view.causal and mask is None, scale=spec.scale, enable_gqa=grouped
    )
    return z[..., :width].transpose(-2, -3)  # [B, T, H, Dv]


def _one_query(
    spec: AttendSpec,
    q: Float[Tensor, "B H 1 Dh"],
    k: Float[Tensor, "B H S Dh"],
    v: Float[Tensor, "B H S Dv"],
    view: Visibility,
) -> Float[Tensor, "B 1 H Dv"]:
    """One query in every row and head, as two batched products of a matrix and a vector: for many heads on a CPU.

    SDPA goes from head to head there, and in bfloat16 spends most of the time between two of them.
    """
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # [B H, S, Dh]
    scores = torch.bmm(k, (q * spec.scale).flatten(0, 1).mT).view(*q.shape[:2], -1)  # [B, H, S]
    if view.mask is not None:
        scores = scores.masked_fill(~view.mask, -math.inf)
    z = torch.bmm(scores.softmax(-1).flatten(0, 1).unsqueeze(1), v)  # [B H, 1, Dv]
    return z.view(q.shape[0], 1, q.shape[1], -1)


def attend_products(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    kv: KV,
    view: Visibility,
    bias: Float[Tensor, "*#BH #T S"] | None = None,
    sinks: Float[Tensor, "H"] | None = None,
) -> Float[Tensor, "B T H Dv"]:
    """Two batched products in the pass' own dtype, all scores held: for training on CPUs that multiply bfloat16.

    There it takes half of SDPA's time, forward and backward, on rows of up to 256 tokens, and as long at 1024.
    """
    if spec.softcap is not None or bias is not None or sinks is not None:
        return attend_math(spec, q, kv, view, bias, sinks)[0]
    group = q.shape[-2] // kv.k.shape[-2]
    k, v = (t.transpose(1, 2).flatten(0, 1) for t in kv)  # [B Hkv, S, Dh]
    rows = q.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3).flatten(0, 1)  # [B Hkv, H/Hkv T, Dh]
    hidden = ~view.visible()[:, None, None]
    mask = torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, -math.inf)  # [#B, 1, 1, T, S]
    mask = mask.expand(q.shape[0], kv.k.shape[-2], group, -1, -1).flatten(2, 3).flatten(0, 1)
    probs = torch.baddbmm(mask, rows, k.mT, alpha=spec.scale).softmax(-1)  # [B Hkv, H/Hkv T, S]
    z = torch.bmm(probs, v).unflatten(0, (q.shape[0], -1)).unflatten(2, (group, -1))
    return z.permute(0, 3, 1, 2, 4).flatten(2, 3)  # [B, T, H, Dv]

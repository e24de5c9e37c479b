"""Scaled dot-product attention: its definition, its masks, and PyTorch's fused implementation.

"Attention Is All You Need" (Vaswani et al. 2017), equation 1: softmax(q k^T * scale) v, per head.

    q [B, T, H, Dh] --.
    k [B, S, Hkv, Dh] -+-> scores [B, H, T, S] -> softcap -> bias -> mask -> softmax = probs -.
    v [B, S, Hkv, Dv] -----------------------------------------------------------------------+-> z [B, T, H, Dv]

Query head h attends to key/value head h // (H / Hkv): grouped-query attention (Ainslie et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class AttendSpec:
    """The settings of an attention product. `source`: the keys are an encoder's (cross-attention)."""

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    source: bool = False


class KV(NamedTuple):
    """Keys [B, S, Hkv, Dh] and values [B, S, Hkv, Dv]."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Visibility:
    """Which keys each query of a forward pass may see.

    `mask` None with `causal` False hides nothing; `causal` requires T = S and hides the keys after each query.
    A backend stores in `derived` what it computes from these, once for all layers.
    """

    queries: Int[Tensor, "#B T"]
    keys: Int[Tensor, "#B S"]
    mask: Bool[Tensor, "#B T S"] | None
    causal: bool = False
    derived: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def visible(self) -> Bool[Tensor, "#B T S"]:
        """Return the mask as a tensor: True where a query may see a key."""
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
    """Return the mask for these positions.

    A key at -1 is an empty slot or padding and is hidden. A query at -1 is padding: it sees every key, so that its
    softmax is defined, and its output is ignored. `documents`: queries see keys of their own document only.
    """
    q, k = queries[..., :, None], keys[..., None, :]
    mask = (k >= 0).expand(*torch.broadcast_shapes(q.shape, k.shape))
    if spec.causal:
        mask = mask & (k <= q)
    if spec.window is not None:
        mask = mask & (q - k < spec.window)
    if documents is not None:
        mask = mask & (documents[..., :, None] == documents[..., None, :])
    return mask | (q < 0)


Attend = Callable[..., Tensor]
See = Callable[[str, Tensor], Tensor]


def attend_reference(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    kv: KV,
    view: Visibility,
    bias: Float[Tensor, "*#BH #T S"] | None = None,
    sinks: Float[Tensor, "H"] | None = None,
    see: See | None = None,
) -> tuple[Float[Tensor, "B T H Dv"], Float[Tensor, "B H T S"], Float[Tensor, "B H T S"]]:
    """The definition of attention. Returns z, the scores and the probabilities, computed in float32.

    `bias` is added to the scaled scores (T5, ALiBi). `sinks` add one score per head to the softmax, whose probability
    is dropped (gpt-oss). `see(name, value)` may replace the scores and the probabilities.
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


def has_fused_product(softcap: float | None, sinks: object) -> bool:
    """Whether `scaled_dot_product_attention` can compute this attention: it has no softcap and no sinks."""
    return softcap is None and sinks is None


def attend_sdpa(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    kv: KV,
    view: Visibility,
    bias: Float[Tensor, "*#BH #T S"] | None = None,
    sinks: Float[Tensor, "H"] | None = None,
) -> Float[Tensor, "B T H Dv"]:
    """Return z by torch's `scaled_dot_product_attention`, or by `attend_reference` if torch's does not support it.

    The kernels that do not store all scores need values as wide as keys, so narrower values are padded with zeros.
    """
    if not has_fused_product(spec.softcap, sinks):
        return attend_reference(spec, q, kv, view, bias, sinks)[0]
    mask = additive_mask(q, view, bias)
    q, k, v = (t.transpose(-2, -3) for t in (q, *kv))  # [B, H, T, Dh], [B, Hkv, S, Dh]
    width = v.shape[-1]
    v = F.pad(v, (0, k.shape[-1] - width)) if width < k.shape[-1] else v
    z = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=view.causal and mask is None,
        scale=spec.scale,
        enable_gqa=q.shape[-3] != k.shape[-3],
    )
    return with_nan(z[..., :width], q, k).transpose(-2, -3)  # [B, T, H, Dv]


def with_nan(
    z: Float[Tensor, "B H T Dv"], q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B Hkv S Dh"]
) -> Float[Tensor, "B H T Dv"]:
    """Return z of `scaled_dot_product_attention`, NaN for a query whose scores are not numbers.

    On a CPU torch returns zeros for a query without a finite score (https://github.com/pytorch/pytorch/issues/141128),
    so damaged weights would give fluent text. Where z has no 0, as almost always, it is only read once.
    """
    if z.device.type != "cpu" or torch.compiler.is_compiling() or int(z.count_nonzero()) == z.numel():
        return z
    finite = q.isfinite().all(-1) & k.isfinite().flatten(1).all(-1)[:, None, None]  # [B, H, T]
    return z.masked_fill(((z == 0).all(-1) & ~finite)[..., None], math.nan)


def additive_mask(
    q: Tensor, view: Visibility, bias: Float[Tensor, "*#BH #T S"] | None
) -> Float[Tensor, "*#BH T S"] | Bool[Tensor, "#B 1 T S"] | None:
    """Return `attn_mask` of `scaled_dot_product_attention`: True where visible, or the bias and -inf where hidden."""
    if bias is None:
        return None if view.mask is None else view.mask.unsqueeze(-3)
    hidden = ~view.visible().unsqueeze(-3)
    return bias.to(q.dtype).expand(*torch.broadcast_shapes(bias.shape, hidden.shape)).masked_fill(hidden, -math.inf)

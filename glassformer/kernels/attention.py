"""Fast implementations of attention, each equal to `attend_reference`, and the choice between them.

reference     the definition, all scores in float32: for layers with a softcap or sinks
sdpa          PyTorch's fused product; a single query per sequence (decoding) in the shape that is fastest
products      two batched matrix products, all scores stored: training in bfloat16 on a CPU, short sequences
sdpa float32  the fused product in float32: training in bfloat16 on a CPU, long sequences
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.config import AttentionConfig, EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.kernels.placement import Choice
from glassformer.nn.attend import (
    KV,
    Attend,
    AttendSpec,
    Visibility,
    additive_mask,
    attend_reference,
    attend_sdpa,
    has_fused_product,
    with_nan,
)

Purpose = Literal["inference", "training"]
MANY_HEADS = 64  # heads x sequences; from here on, batched products are faster than SDPA for one query on a CPU
PRODUCTS_LENGTH = 512  # tokens; up to here `attend_products` is faster in bfloat16 (bench/packed_attention.py)


def choose_attention(
    config: ModelConfig | EncoderConfig | RecurrentConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    purpose: Purpose = "inference",
    length: int = 0,
) -> Choice:
    """Choose how a model computes attention; `ATTENTION[choice.value]` is the function.

    Args:
        length: tokens per sequence, which decides between the two ways to train in bfloat16 on a CPU.
    """
    if isinstance(config, RecurrentConfig):
        if config.attention is None:
            return Choice("attention", "none", "this model has no attention")
        return Choice("attention", "reference", "PyTorch has no fused product for a recurrent model's attention")
    attentions = all_attentions(config)
    slow = [i for i, a in enumerate(attentions) if not has_fused_product(a.softcap, a.sinks or None)]
    fields = " and ".join(name for name in ("softcap", "sinks") if any(getattr(attentions[i], name) for i in slow))
    if len(slow) == len(attentions):
        return Choice("attention", "reference", f"PyTorch's fused product has no {fields}, which this model needs")
    value, because = "sdpa", "PyTorch's fused product is the fastest here"
    if purpose == "training" and torch.device(device).type == "cpu" and dtype == torch.bfloat16:
        value, because = "sdpa float32", "on a CPU its backward pass is 3 times faster in float32 than in bfloat16"
        if length <= PRODUCTS_LENGTH and config.relative is None:
            value = "products"
            because = f"on a CPU, in bfloat16 and up to {PRODUCTS_LENGTH} tokens, matrix products are faster than SDPA"
    if slow:
        because += f"; {len(slow)} of {len(attentions)} layers have {fields} and use the reference implementation"
    return Choice("attention", value, because)


def all_attentions(config: ModelConfig | EncoderConfig) -> list[AttentionConfig]:
    """Return the configuration of every attention of a model, cross-attention and an encoder's included."""
    attentions = [one for layer in config.layers for one in (layer.attention, layer.cross) if one is not None]
    encoder = config.encoder if isinstance(config, ModelConfig) else None
    return attentions if encoder is None else attentions + all_attentions(encoder)


def attend_fused(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    kv: KV,
    view: Visibility,
    bias: Float[Tensor, "*#BH #T S"] | None = None,
    sinks: Float[Tensor, "H"] | None = None,
) -> Float[Tensor, "B T H Dv"]:
    """`attend_sdpa`, faster for one query per sequence (decoding)."""
    if q.shape[1] > 1 or bias is not None or not has_fused_product(spec.softcap, sinks):
        return attend_sdpa(spec, q, kv, view, bias, sinks)
    mask = additive_mask(q, view, bias)
    q, k, v = (t.transpose(-2, -3) for t in (q, *kv))  # [B, H, 1, Dh], [B, Hkv, S, Dh]
    n_heads, n_kv_heads = q.shape[1], k.shape[1]
    single = n_heads == n_kv_heads and q.device.type == "cpu"  # on a CPU, one query per key/value head
    if single and q.shape[0] * n_heads >= MANY_HEADS and (q.dtype == torch.bfloat16 or spec.source):
        return _one_query(spec, q, k, v, view)  # in float32 faster only with contiguous keys (a source's)
    # the queries of a group share their keys, so they are the rows of one product
    q = q.reshape(q.shape[0], n_kv_heads, n_heads // n_kv_heads, q.shape[-1])
    twice = single and q.dtype == torch.bfloat16  # torch 2.13 computes two such rows in half the time of one
    rows = q.repeat_interleave(2, -2) if twice else q
    z = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=spec.scale)[..., : q.shape[-2], :]
    z = with_nan(z, q, k)
    return z.reshape(z.shape[0], 1, n_heads, z.shape[-1])


def _one_query(
    spec: AttendSpec,
    q: Float[Tensor, "B H 1 Dh"],
    k: Float[Tensor, "B H S Dh"],
    v: Float[Tensor, "B H S Dv"],
    view: Visibility,
) -> Float[Tensor, "B 1 H Dv"]:
    """Attend with one query per head, as two batched matrix-vector products.

    SDPA on a CPU computes heads sequentially, and in bfloat16 spends most of its time on overhead between them.
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
    """Two batched products in q's dtype, all scores stored: for training on CPUs with bfloat16 instructions.

    Takes half of SDPA's time, forward and backward, on sequences of up to 256 tokens, and the same time at 1,024.
    """
    if bias is not None or not has_fused_product(spec.softcap, sinks):
        return attend_reference(spec, q, kv, view, bias, sinks)[0]
    group = q.shape[-2] // kv.k.shape[-2]
    k, v = (t.transpose(1, 2).flatten(0, 1) for t in kv)  # [B Hkv, S, Dh]
    rows = q.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3).flatten(0, 1)  # [B Hkv, H/Hkv T, Dh]
    hidden = ~view.visible()[:, None, None]
    mask = torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, -math.inf)  # [#B, 1, 1, T, S]
    mask = mask.expand(q.shape[0], kv.k.shape[-2], group, -1, -1).flatten(2, 3).flatten(0, 1)
    probs = torch.baddbmm(mask, rows, k.mT, alpha=spec.scale).softmax(-1)  # [B Hkv, H/Hkv T, S]
    z = torch.bmm(probs, v).unflatten(0, (q.shape[0], -1)).unflatten(2, (group, -1))
    return z.permute(0, 3, 1, 2, 4).flatten(2, 3)  # [B, T, H, Dv]


def attend_float32(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    kv: KV,
    view: Visibility,
    bias: Float[Tensor, "*#BH #T S"] | None = None,
    sinks: Float[Tensor, "H"] | None = None,
) -> Float[Tensor, "B T H Dv"]:
    """`attend_sdpa` in float32, whatever the dtype of q and autocast; returns q's dtype."""
    with torch.autocast(q.device.type, enabled=False):
        return attend_sdpa(spec, q.float(), KV(kv.k.float(), kv.v.float()), view, bias, sinks).to(q.dtype)


ATTENTION: dict[str, Attend] = {
    "reference": lambda *args: attend_reference(*args)[0],
    "sdpa": attend_fused,
    "products": attend_products,
    "sdpa float32": attend_float32,
}

"""Latent attention (MLA): one short vector is kept of each token, and keys and values of all heads are made from it.

    x -> kv -> [key R | latent C] -> the key turned, the latent normed -> kept [B, S, 1, R + C], for all heads
    x -> q  -> [R | N] of each head -> R turned

Of a token whose latent is c, head h has the key k_h = [key, K_h c] and the value v_h = V_h c. Two ways to the same z:

    expanded   K_h c and V_h c are made of all S tokens, for all H heads; then attention as always
    absorbed   q_h·k_h = [R of q_h, K_h^T N of q_h]·[key, c] and sum p v_h = V_h (sum p c): attention to what is kept
               itself, one head of keys which are the values too; nothing is made of the S tokens

"DeepSeek-V2" (DeepSeek-AI 2024), sections 2.1.2 and 2.1.3.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import AttentionConfig
from glassformer.nn.attend import KV, Visibility
from glassformer.nn.attention import MultiHead, spec_of
from glassformer.nn.linear import HeadLinear
from glassformer.nn.norm import RMSNorm
from glassformer.nn.rope import rotate
from glassformer.nn.step import LayerStep


class LatentAttention(MultiHead):
    """Attention whose keys and values are made of latents. It expands or absorbs, whichever multiplies fewer numbers.

    `attn.latent` is what is kept of a token (beside its one turned key): a change there is what later passes see too.
    `attn.k`, `attn.v` and `attn.k_rot` are [key, K_h c] and V_h c of this pass' tokens, made for whoever looks, also
    where the pass absorbs and has no use for them. A change of these is of this pass alone, which then expands.
    """

    sinks = None  # there are none

    def __init__(self, config: AttentionConfig, d_model: int):
        super().__init__()
        latent, rope = config.latent, config.rope
        assert latent is not None
        assert rope is not None
        assert rope.dim is not None
        self.config, self.spec, self.rope = config, spec_of(config), rope
        self.parts = [rope.dim, latent.rank]
        width = config.n_heads * config.head_dim
        self.q = nn.Linear(d_model, width, bias=False)
        if latent.q_rank is not None:
            self.q = nn.Sequential(
                OrderedDict(
                    reduce=nn.Linear(d_model, latent.q_rank, config.bias),
                    norm=RMSNorm(latent.q_rank, latent.eps),
                    expand=nn.Linear(latent.q_rank, width, bias=False),
                )
            )
        self.kv = nn.Linear(d_model, config.cached_per_token, config.bias)
        self.kv_norm = RMSNorm(latent.rank, latent.eps)
        self.expand_k = HeadLinear(latent.rank, config.n_heads, config.head_dim - rope.dim)
        self.expand_v = HeadLinear(latent.rank, config.n_heads, latent.v_dim)
        self.o = nn.Linear(config.n_heads * latent.v_dim, d_model, config.out_bias)

    def heads(self, x: Float[Tensor, "*B HD"]) -> Float[Tensor, "*B H D"]:
        """A token's row as one of heads."""
        return x.unflatten(-1, (self.config.n_heads, -1))

    def forward(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        turns = step.rotation(self.rope, self.config.head_dim)
        q = step.see("attn.q", self.heads(self.q(x)))  # [B, T, H, R + N]
        key, latent = self.kv(x).split(self.parts, -1)  # [B, T, R], [B, T, C]
        latent = step.see("attn.latent", self.kv_norm(latent))
        q, changed = self.turned(q, key, latent, turns, step)
        token = torch.cat([rotate(key.unsqueeze(-2), *turns), latent.unsqueeze(-2)], -1)  # [B, T, 1, R + C]
        kept, _ = step.keep(token, token[..., :0])  # [B, S, 1, R + C]; there are no values beside
        if changed is None and absorbs(self.config, q.shape[1], kept.shape[1]):
            z = self.absorbed(q, kept, step)  # [B, T, H, Dv]
        else:
            kv = self.expanded(*kept.squeeze(-2).split(self.parts, -1))
            if changed is not None:
                kv = changed if step.slot is None else put(changed, kv, step.view(self.spec))
            z = step.attend(self.spec, q, kv)
        return self.output(z, step, "attn")

    def turned(
        self,
        q: Float[Tensor, "B T H Dh"],
        key: Float[Tensor, "B T R"],
        latent: Float[Tensor, "B T C"],
        turns: tuple[Tensor, Tensor],
        step: LayerStep,
    ) -> tuple[Float[Tensor, "B T H Dh"], KV | None]:
        """The queries, turned; and this pass' own keys and values, where a tap has changed any of them."""
        if not step.wants("attn.k", "attn.v", "attn.k_rot"):
            return step.see("attn.q_rot", rotate(q, *turns)), None
        own = self.expanded(key, latent)
        k, v = step.see("attn.k", own.k), step.see("attn.v", own.v)
        q, turned = step.see("attn.q_rot", rotate(q, *turns)), rotate(k, *turns)
        k_rot = step.see("attn.k_rot", turned)
        only_seen = k is own.k and v is own.v and k_rot is turned
        return q, None if only_seen else KV(k_rot, v)

    def expanded(self, key: Float[Tensor, "B S R"], latent: Float[Tensor, "B S C"]) -> KV:
        """Keys [B, S, H, R + N] and values [B, S, H, Dv] of all heads, written out."""
        still = self.expand_k(latent)  # [B, S, H, N]
        k = torch.cat([key.unsqueeze(-2).expand(-1, -1, self.config.n_heads, -1), still], -1)
        return KV(k, self.expand_v(latent))

    def absorbed(
        self, q: Float[Tensor, "B T H Dh"], kept: Float[Tensor, "B S 1 RC"], step: LayerStep
    ) -> Float[Tensor, "B T H Dv"]:
        """The same z, and k and v never made. Of what is weighed, the turned key is no value, and left out again."""
        turned, still = q.split([self.parts[0], q.shape[-1] - self.parts[0]], -1)
        q = torch.cat([turned, self.expand_k.transposed(still)], -1)  # [B, T, H, R + C]
        _, z = step.attend(self.spec, q, KV(kept, kept)).split(self.parts, -1)  # [B, T, H, C]
        return self.expand_v.per_head(z)


def absorbs(config: AttentionConfig, n_new: int, n_seen: int) -> bool:
    """Whether that multiplies fewer numbers, in a head, for `n_new` queries to `n_seen` kept tokens."""
    latent = config.latent
    assert latent is not None
    still = config.head_dim - (config.cached_per_token - latent.rank)
    once = latent.rank * (still + latent.v_dim)  # a token's k and v from its latent; or its q into, and z out of them
    expanded = n_seen * (once + n_new * (config.head_dim + latent.v_dim))
    return n_new * (once + n_seen * 2 * config.cached_per_token) < expanded


def put(own: KV, kv: KV, view: Visibility) -> KV:
    """All keys and values, those of the pass' own tokens in their places."""
    here = (view.queries[..., :, None] == view.keys[..., None, :]) & (view.queries >= 0)[..., :, None]  # [#B, T, S]
    row, place, slot = here.expand(len(kv.k), -1, -1).nonzero(as_tuple=True)
    k, v = (old.index_put((row, slot), new[row, place]) for old, new in zip(kv, own, strict=True))
    return KV(k, v)

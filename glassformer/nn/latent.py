"""Multi-head latent attention (MLA): the cache stores one short vector per token, for the keys and values of all heads.

    x -> kv -> [key R | latent C] -> rotated key, normalized latent -> cached [B, S, 1, R + C], for all heads
    x -> q  -> [R | N] of each head -> R rotated

For a token with latent c, head h has the key k_h = [key, K_h c] and the value v_h = V_h c. Two ways to compute z:

    expanded   compute K_h c and V_h c of all S tokens and H heads; then ordinary attention
    absorbed   q_h·k_h = [R of q_h, K_h^T N of q_h]·[key, c] and sum p v_h = V_h (sum p c): attention over the cached
               vectors themselves, one head of keys that are also the values

"DeepSeek-V2" (DeepSeek-AI 2024), sections 2.1.2 and 2.1.3.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import AttentionConfig
from glassformer.nn.attend import KV, Visibility
from glassformer.nn.attention import MultiHead, attend_spec
from glassformer.nn.linear import HeadLinear
from glassformer.nn.norm import RMSNorm
from glassformer.nn.rope import rotate
from glassformer.nn.step import LayerStep


class LatentAttention(MultiHead):
    """Latent attention. Expands or absorbs: uses the variant that needs fewer multiplications.

    An edit of `attn.latent` changes the cache, so it affects later forward passes too. `attn.k`, `attn.v` and
    `attn.k_rot` are [key, K_h c] and V_h c of the new tokens, computed only if a tap wants them. An edit of these
    affects the current forward pass only, which then expands.
    """

    sinks = None  # the same attribute as `Attention`

    def __init__(self, config: AttentionConfig, d_model: int):
        super().__init__()
        latent, rope = config.latent, config.rope
        assert latent is not None
        assert rope is not None
        assert rope.dim is not None
        self.config, self.spec, self.rope = config, attend_spec(config), rope
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
        """Split the last axis into heads."""
        return x.unflatten(-1, (self.config.n_heads, -1))

    def forward(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        cos_sin = step.rotation(self.rope, self.config.head_dim)
        q = step.see("attn.q", self.heads(self.q(x)))  # [B, T, H, R + N]
        key, latent = self.kv(x).split(self.parts, -1)  # [B, T, R], [B, T, C]
        latent = step.see("attn.latent", self.kv_norm(latent))
        q, changed = self.edited(q, key, latent, cos_sin, step)
        token = torch.cat([rotate(key.unsqueeze(-2), *cos_sin), latent.unsqueeze(-2)], -1)  # [B, T, 1, R + C]
        cached, _ = step.keep(token, token[..., :0])  # [B, S, 1, R + C]; no separate values
        if changed is None and absorbs(self.config, q.shape[1], cached.shape[1]):
            z = self.absorbed(q, cached, step)  # [B, T, H, Dv]
        else:
            kv = self.expanded(*cached.squeeze(-2).split(self.parts, -1))
            if changed is not None:
                kv = changed if step.slot is None else replace_own(changed, kv, step.view(self.spec))
            z = step.attend(self.spec, q, kv)
        return self.output(z, step, "attn")

    def edited(
        self,
        q: Float[Tensor, "B T H Dh"],
        key: Float[Tensor, "B T R"],
        latent: Float[Tensor, "B T C"],
        cos_sin: tuple[Tensor, Tensor],
        step: LayerStep,
    ) -> tuple[Float[Tensor, "B T H Dh"], KV | None]:
        """Return the rotated queries, and the new tokens' keys and values if a tap has changed any of them."""
        if not step.wants("attn.k", "attn.v", "attn.k_rot"):
            return step.see("attn.q_rot", rotate(q, *cos_sin)), None
        own = self.expanded(key, latent)
        k, v = step.see("attn.k", own.k), step.see("attn.v", own.v)
        q, rotated = step.see("attn.q_rot", rotate(q, *cos_sin)), rotate(k, *cos_sin)
        k_rot = step.see("attn.k_rot", rotated)
        unchanged = k is own.k and v is own.v and k_rot is rotated
        return q, None if unchanged else KV(k_rot, v)

    def expanded(self, key: Float[Tensor, "B S R"], latent: Float[Tensor, "B S C"]) -> KV:
        """Return the keys [B, S, H, R + N] and values [B, S, H, Dv] of all heads."""
        unrotated = self.expand_k(latent)  # [B, S, H, N]
        k = torch.cat([key.unsqueeze(-2).expand(-1, -1, self.config.n_heads, -1), unrotated], -1)
        return KV(k, self.expand_v(latent))

    def absorbed(
        self, q: Float[Tensor, "B T H Dh"], cached: Float[Tensor, "B S 1 RC"], step: LayerStep
    ) -> Float[Tensor, "B T H Dv"]:
        """Compute z without k and v. The rotated key is not part of the value and is dropped."""
        rotated, unrotated = q.split([self.parts[0], q.shape[-1] - self.parts[0]], -1)
        q = torch.cat([rotated, self.expand_k.transposed(unrotated)], -1)  # [B, T, H, R + C]
        _, z = step.attend(self.spec, q, KV(cached, cached)).split(self.parts, -1)  # [B, T, H, C]
        return self.expand_v.per_head(z)


def absorbs(config: AttentionConfig, n_new: int, n_seen: int) -> bool:
    """Whether absorbing needs fewer multiplications per head, for `n_new` queries over `n_seen` cached tokens."""
    latent = config.latent
    assert latent is not None
    unrotated = config.head_dim - (config.cached_per_token - latent.rank)
    once = latent.rank * (unrotated + latent.v_dim)  # k and v from a latent; or q into the latent space and z out
    expanded = n_seen * (once + n_new * (config.head_dim + latent.v_dim))
    return n_new * (once + n_seen * 2 * config.cached_per_token) < expanded


def replace_own(own: KV, kv: KV, view: Visibility) -> KV:
    """Return all keys and values, with `own` at the positions of the new tokens."""
    here = (view.queries[..., :, None] == view.keys[..., None, :]) & (view.queries >= 0)[..., :, None]  # [#B, T, S]
    sequence, index, slot = here.expand(len(kv.k), -1, -1).nonzero(as_tuple=True)
    k, v = (old.index_put((sequence, slot), new[sequence, index]) for old, new in zip(kv, own, strict=True))
    return KV(k, v)

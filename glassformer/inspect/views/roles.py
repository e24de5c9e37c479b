"""Head roles: the attention of each head to keys with a known relation to the query.

    a b c d  a b c d
             ^ of this a:  previous token: the d before it     duplicate: the first a      self: itself
                           induction: the b after the first a  first token: the a that begins the text
("In-context Learning and Induction Heads", Olsson et al. 2022; "Efficient Streaming Language Models with Attention
Sinks", Xiao et al. 2024.) Measured on a text, or on repeated random tokens, where only the repetition predicts the
next token.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glassformer.inspect.capture.derive import derive
from glassformer.inspect.capture.points import needs
from glassformer.inspect.capture.recorder import RecorderTap
from glassformer.inspect.trace.recompute import ATTENDED, MAX_SCORES, attend, larger
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.result import last
from glassformer.nn.linear import device_of
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step

MEANINGS = {
    "previous_token": "attention to the previous token",
    "duplicate": "attention to earlier copies of the query's token",
    "induction": "attention to tokens that follow an earlier copy of the query's token",
    "first_token": "attention to the first token of the text",
    "self": "attention to the query itself",
    "entropy": "entropy of attention over all visible keys: 1 is uniform, 0 is on one key",
}


class RoleScores(NamedTuple):
    """For each layer and head, [L, H], the mean probability on keys of a role, over the queries that have such keys.

    entropy: divided by the logarithm of the number of visible keys. NaN if no query has such a key.
    """

    previous_token: Float[Tensor, "L H"]
    duplicate: Float[Tensor, "L H"]
    induction: Float[Tensor, "L H"]
    first_token: Float[Tensor, "L H"]
    self: Float[Tensor, "L H"]
    entropy: Float[Tensor, "L H"]


class Evidence(NamedTuple):
    """The cell with the largest probability among a head's cells of one role."""

    query: int
    key: int
    share: float


@dataclass(frozen=True, eq=False)
class RoleRow:
    """The scores and evidence of one layer's heads, by role. Evidence is None if no query has such a key."""

    layer: int
    scores: dict[str, Float[Tensor, "H"]]
    evidence: dict[str, tuple[Evidence | None, ...]]


@dataclass(frozen=True, eq=False)
class Roles:
    """The scores and evidence of all heads, by role, layer and head. n_queries: of each role, those that have a key."""

    scores: RoleScores
    evidence: dict[str, tuple[tuple[Evidence | None, ...], ...]]
    n_queries: dict[str, int]
    meanings: dict[str, str]
    receipt: Receipt


def role_masks(ids: Int[Tensor, "T"], queries: Int[Tensor, "N"]) -> dict[str, Bool[Tensor, "N T"]]:
    """Return the mask of the keys of each role for each query, from the tokens alone."""
    keys = torch.arange(len(ids), device=ids.device)[None]
    at, own = queries[:, None], ids[queries][:, None]
    follows = torch.cat([torch.zeros_like(ids[:1]) - 1, ids[:-1]])[None]  # the token before each key
    return {
        "previous_token": keys == at - 1,
        "duplicate": (ids[None] == own) & (keys < at),
        "induction": (follows == own) & (keys < at),
        "first_token": (keys == 0) & (at > 0),
        "self": keys == at,
    }


class RoleCounter:
    """Accumulates, over batches of queries, the attention of each head to the keys of each role."""

    def __init__(self, n_heads: int):
        self.sums = {role: torch.zeros(n_heads, dtype=torch.float64) for role in MEANINGS}
        self.n = dict.fromkeys(MEANINGS, 0)
        self.best: dict[str, list[Evidence | None]] = {role: [None] * n_heads for role in MEANINGS}

    def add(
        self,
        probs: Float[Tensor, "H N S"],
        visible: Bool[Tensor, "N S"],
        roles: dict[str, Bool[Tensor, "N S"]],
        start: int = 0,
    ) -> None:
        """Add some queries, the first of them at position `start`."""
        for role, keys in roles.items():
            keys = keys & visible
            self.n[role] += int(keys.any(-1).sum())
            query, key = keys.nonzero(as_tuple=True)  # few cells in most roles
            values = probs[:, query, key]
            self.sums[role] += values.sum(-1, dtype=torch.float64).cpu()
            if len(query):
                self._update_evidence(role, values, start + query, key)
        n_keys = visible.sum(-1)
        several = n_keys > 1
        entropy = torch.special.entr(probs).sum(-1)[:, several] / n_keys[several].float().log()
        self.n["entropy"] += int(several.sum())
        self.sums["entropy"] += entropy.sum(-1).double().cpu()

    def _update_evidence(
        self, role: str, values: Float[Tensor, "H pairs"], query: Int[Tensor, "pairs"], key: Int[Tensor, "pairs"]
    ) -> None:
        """Update the cell with the largest probability of each head."""
        shares, index = values.max(-1)
        found = zip(query[index].tolist(), key[index].tolist(), shares.tolist(), strict=True)
        for head, one in enumerate(map(Evidence._make, found)):
            best = self.best[role][head]
            if one.share > (0.0 if best is None else best.share):
                self.best[role][head] = one

    def means(self) -> dict[str, Float[Tensor, "H"]]:
        return {role: (self.sums[role] / self.n[role]).float() for role in MEANINGS}


def roles(t: Trace) -> Roles:
    """The roles of all heads on this text: the attention of each to keys with a known relation to the query."""
    return last(role_rows(t))


def role_rows(t: Trace) -> Generator[RoleRow, None, Roles]:
    """Yield the roles of each layer as they are computed; return the complete `Roles`."""
    rows: list[RoleRow] = []
    error, queries = 0.0, {}
    for i in range(t.config.n_layers):
        counter, off = layer_roles(t, i)
        error, queries = larger(error, off), queries or counter.n
        rows.append(RoleRow(i, counter.means(), {role: tuple(best) for role, best in counter.best.items()}))
        yield rows[-1]
    evidence = {role: tuple(row.evidence[role] for row in rows) for role in MEANINGS}
    receipt = Receipt("t.roles()", ATTENDED, error)
    return Roles(_stacked([row.scores for row in rows]), evidence, queries, MEANINGS, receipt)


@torch.no_grad()
def layer_roles(t: Trace, i: int) -> tuple[RoleCounter, float]:
    """Return the roles of one layer's heads, and the error of the identity of their probabilities."""
    layer, n_heads = f"blocks.{i}.attn", t.config.layers[i].attention.n_heads
    counter, error = RoleCounter(n_heads), 0.0
    for some in t.captured.positions.split(max(1, MAX_SCORES // (n_heads * len(t)))):
        found, off = attend(t.captured, layer, ["probs"], None, some)
        counter.add(found["probs"], t.visible(layer, some.tolist()), role_masks(t.captured.ids, some), int(some[0]))
        error = larger(error, off)
    return counter, error


@torch.no_grad()
def head_roles(model: Decoder, *, period: int = 24, rows: int = 16, seed: int = 0) -> RoleScores:
    """Return the roles of all heads on `rows` sequences of `period` random tokens repeated once.

    The queries are those of the second half. `period` is at most the vocabulary size and half the context length.
    """
    period = min(period, model.config.vocab_size, model.config.context_length // 2)
    generator = torch.Generator().manual_seed(seed)
    once = torch.stack([torch.randperm(model.config.vocab_size, generator=generator)[:period] for _ in range(rows)])
    ids = once.repeat(1, 2).to(device_of(model))
    names = [f"blocks.{i}.attn.probs" for i in range(model.config.n_layers)]
    tap = RecorderTap(*(need for name in names for need in needs(model.config, name)))
    step = Step.of(ids, tap=tap)
    model.hidden(ids, step)
    captured, layers = {name: value for name, (value,) in tap.items()}, []
    queries = torch.arange(period, 2 * period, device=ids.device)
    for name, block in zip(names, model.blocks, strict=True):
        view = step.view(block.attn.spec)  # pyright: ignore
        probs, counter = derive(model, name, captured, view).value, RoleCounter(block.attn.config.n_heads)  # pyright: ignore
        for row, weights in zip(ids, probs, strict=True):
            counter.add(weights[:, queries], view.visible()[0, queries], role_masks(row, queries))
        layers.append(counter.means())
    return _stacked(layers)


def _stacked(layers: Iterable[dict[str, Tensor]]) -> RoleScores:
    """Stack the scores of all layers, [L, H]; NaN if a layer has fewer heads than another."""
    layers = list(layers)
    return RoleScores(
        **{
            role: torch.nn.utils.rnn.pad_sequence([layer[role] for layer in layers], True, torch.nan)
            for role in MEANINGS
        }
    )

"""What a head does: how much of its attention goes to keys that stand in a known relation to the query.

    a b c d  a b c d
             ^ of this a:  previous token: the d before it     duplicate: the first a      self: itself
                           induction: the b after the first a  first token: the a that begins the text
("In-context Learning and Induction Heads", Olsson et al. 2022; "Efficient Streaming Language Models with Attention
Sinks", Xiao et al. 2024.) On a text that is given, or on random tokens said twice, where nothing but the repetition
tells what comes next.
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
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step

MEANINGS = {
    "previous_token": "attention that goes to the token before",
    "duplicate": "to earlier tokens that are the same as the query's",
    "induction": "to tokens that follow an earlier one that is the same as the query's",
    "first_token": "to the first token of the text",
    "self": "to the query's own token",
    "entropy": "how evenly it is spread over all keys that it may look at: 1 is evenly, 0 is on one",
}


class RoleScores(NamedTuple):
    """For each layer and head, [L, H], the mean probability (0 to 1) that queries which see such keys give to them.

    entropy: of the probabilities, by the logarithm of how many keys there are. NaN where no query sees such a key.
    """

    previous_token: Float[Tensor, "L H"]
    duplicate: Float[Tensor, "L H"]
    induction: Float[Tensor, "L H"]
    first_token: Float[Tensor, "L H"]
    self: Float[Tensor, "L H"]
    entropy: Float[Tensor, "L H"]


class Evidence(NamedTuple):
    """Where a head plays a role most clearly: the query that gives a single such key most, and how much."""

    query: int
    key: int
    share: float


@dataclass(frozen=True, eq=False)
class RoleRow:
    """The heads of one layer: their scores by role, and the `evidence` for each; None where no query sees such a key,
    and for entropy, which is of no key.
    """

    layer: int
    scores: dict[str, Float[Tensor, "H"]]
    evidence: dict[str, tuple[Evidence | None, ...]]


@dataclass(frozen=True, eq=False)
class Roles:
    """The scores of all heads on one text, and the evidence for each, by role, layer and head, as in `RoleRow`;
    `queries`: how many of its tokens see a key of each role (in layer 0).
    """

    scores: RoleScores
    evidence: dict[str, tuple[tuple[Evidence | None, ...], ...]]
    queries: dict[str, int]
    meanings: dict[str, str]
    receipt: Receipt


def relations(ids: Int[Tensor, "T"], queries: Int[Tensor, "N"]) -> dict[str, Bool[Tensor, "N T"]]:
    """Which keys stand to each query in each role, by the tokens alone."""
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


class Counting:
    """Sums over queries, a few at a time, of what each head gives to each role."""

    def __init__(self, n_heads: int):
        self.sums = {role: torch.zeros(n_heads, dtype=torch.float64) for role in MEANINGS}
        self.n = dict.fromkeys(MEANINGS, 0)
        self.best: dict[str, list[Evidence | None]] = {role: [None] * n_heads for role in MEANINGS}

    def add(
        self,
        probs: Float[Tensor, "H N S"],
        seen: Bool[Tensor, "N S"],
        roles: dict[str, Bool[Tensor, "N S"]],
        start: int = 0,
    ) -> None:
        """What some queries, the first of them at `start`, gave to the keys that they saw."""
        for role, keys in roles.items():
            keys = keys & seen
            self.n[role] += int(keys.any(-1).sum())
            query, key = keys.nonzero(as_tuple=True)  # few of all pairs, in most roles
            given = probs[:, query, key]
            self.sums[role] += given.sum(-1, dtype=torch.float64).cpu()
            if len(query):
                self._keep(role, given, start + query, key)
        many = seen.sum(-1)
        asked = many > 1
        spread = torch.special.entr(probs).sum(-1)[:, asked] / many[asked].float().log()
        self.n["entropy"] += int(asked.sum())
        self.sums["entropy"] += spread.sum(-1).double().cpu()

    def _keep(
        self, role: str, given: Float[Tensor, "H pairs"], query: Int[Tensor, "pairs"], key: Int[Tensor, "pairs"]
    ) -> None:
        """The largest single share of each head, where it is the largest so far."""
        shares, places = given.max(-1)
        found = zip(query[places].tolist(), key[places].tolist(), shares.tolist(), strict=True)
        for head, one in enumerate(map(Evidence._make, found)):
            best = self.best[role][head]
            if one.share > (0.0 if best is None else best.share):
                self.best[role][head] = one

    def means(self) -> dict[str, Float[Tensor, "H"]]:
        return {role: (self.sums[role] / self.n[role]).float() for role in MEANINGS}


def roles(t: Trace) -> Roles:
    """The roles of all heads on the text of a trace, layer by layer, with a part of its attention held at a time."""
    return last(role_rows(t))


def role_rows(t: Trace) -> Generator[RoleRow, None, Roles]:
    """`roles`, each layer's as soon as it is computed; what they come to is the generator's result."""
    rows: list[RoleRow] = []
    error, queries = 0.0, {}
    for i in range(t.config.n_layers):
        counting, off = layer_roles(t, i)
        error, queries = larger(error, off), queries or counting.n
        rows.append(RoleRow(i, counting.means(), {role: tuple(best) for role, best in counting.best.items()}))
        yield rows[-1]
    evidence = {role: tuple(row.evidence[role] for row in rows) for role in MEANINGS}
    receipt = Receipt("t.roles()", ATTENDED, error)
    return Roles(_stacked([row.scores for row in rows]), evidence, queries, MEANINGS, receipt)


@torch.no_grad()
def layer_roles(t: Trace, i: int) -> tuple[Counting, float]:
    """What the heads of one layer do, and how far the identity of their probabilities is off."""
    layer, n_heads = f"blocks.{i}.attn", t.config.layers[i].attention.n_heads
    counting, error = Counting(n_heads), 0.0
    for some in t.captured.positions.split(max(1, MAX_SCORES // (n_heads * len(t)))):
        found, off = attend(t.captured, layer, ["probs"], None, some)
        counting.add(found["probs"], t.visible(layer, some.tolist()), relations(t.captured.ids, some), int(some[0]))
        error = larger(error, off)
    return counting, error


@torch.no_grad()
def head_roles(model: Decoder, *, period: int = 24, rows: int = 16, seed: int = 0) -> RoleScores:
    """Roles of all heads, over `rows` texts of `period` different random tokens said twice; second half's queries.

    Fewer tokens where vocabulary or context hold no more.
    """
    period = min(period, model.config.vocab_size, model.config.context_length // 2)
    generator = torch.Generator().manual_seed(seed)
    once = torch.stack([torch.randperm(model.config.vocab_size, generator=generator)[:period] for _ in range(rows)])
    ids = once.repeat(1, 2).to(model.embed.weight.device)
    names = [f"blocks.{i}.attn.probs" for i in range(model.config.n_layers)]
    tap = RecorderTap(*(need for name in names for need in needs(model.config, name)))
    step = Step.of(ids, tap=tap)
    model.hidden(ids, step)
    kept, layers = {name: value for name, (value,) in tap.items()}, []
    asked = torch.arange(period, 2 * period, device=ids.device)
    for name, block in zip(names, model.blocks, strict=True):
        view = step.view(block.attn.spec)  # pyright: ignore
        probs, counting = derive(model, name, kept, view).value, Counting(block.attn.config.n_heads)  # pyright: ignore
        for row, weights in zip(ids, probs, strict=True):
            counting.add(weights[:, asked], view.visible()[0, asked], relations(row, asked))
        layers.append(counting.means())
    return _stacked(layers)


def _stacked(layers: Iterable[dict[str, Tensor]]) -> RoleScores:
    """[L, H] of each role; NaN where a layer has fewer heads than another."""
    layers = list(layers)
    return RoleScores(
        **{
            role: torch.nn.utils.rnn.pad_sequence([layer[role] for layer in layers], True, torch.nan)
            for role in MEANINGS
        }
    )

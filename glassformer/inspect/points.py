"""Every place in a model where a tap may look: one registry, which the documentation, tests and menus are made from.

A **live** point passes through the tap while the model runs; what the tap returns flows on. A **derived** one is
computed afterwards from live ones (`derive.py`), and is live only under an edit that needs it.

    embed.out -> resid_pre -> attn.x -> q k v -> q_rot k_rot -> (scores, probs) -> z -> (heads) -> out -> add
                                                                                                          |
        next block <- resid_post <- mlp.add <- mlp.out <- act <- gate up <- mlp.x <- resid_mid <----------'
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from glassformer.config import LayerConfig, ModelConfig
from glassformer.errors import RequestError


@dataclass(frozen=True)
class Point:
    """One place. `name` has `{i}` for the block's number; `needs` are the live points a derived one is computed from.

    `only` says which models have it (`i` is 0 outside the blocks); None is all of them.
    """

    name: str
    meaning: str
    axes: str
    kind: Literal["live", "derived"] = "live"
    needs: tuple[str, ...] = ()
    only: Callable[[ModelConfig, LayerConfig], bool] | None = None


def _block(end: str, meaning: str, axes: str, only: Callable[[ModelConfig, LayerConfig], bool] | None = None) -> Point:
    return Point(f"blocks.{{i}}.{end}", meaning, axes, only=only)


def _derived(end: str, meaning: str, axes: str, *needs: str) -> Point:
    return Point(f"blocks.{{i}}.{end}", meaning, axes, "derived", tuple(f"blocks.{{i}}.{need}" for need in needs))


PRODUCT = ("attn.q_rot", "attn.k_rot", "attn.v", "attn.z")  # what scores and probabilities are computed from

EMBED = (
    Point("embed.tokens", "the rows of the embedding table that the tokens look up", "B T D"),
    Point("embed.positions", "what is added for each position", "#B T D", only=lambda m, _: m.positions is not None),
    Point("embed.out", "what enters block 0", "B T D"),
)
BLOCK = (
    _block("resid_pre", "the residual stream before the block", "B T D"),
    _block("attn.x", "what attention reads: after its norm", "B T D"),
    _block("attn.q", "queries: projected with bias, before their norm and rotation", "B T H Dh"),
    _block("attn.k", "keys: projected with bias, before their norm and rotation", "B T Hkv Dh"),
    _block("attn.v", "values: projected with bias", "B T Hkv Dh"),
    _block("attn.q_rot", "queries after their norm and rotation: what the product uses", "B T H Dh"),
    _block("attn.k_rot", "keys after their norm and rotation: what the product uses", "B T Hkv Dh"),
    _derived("attn.scores", "q·k after scale, softcap, bias and mask", "B H T S", *PRODUCT),
    _derived("attn.probs", "how much each query takes of each key: scores after softmax", "B H T S", *PRODUCT),
    _block("attn.z", "probabilities · values of each head, before W_o", "B T H Dh"),
    _derived("attn.heads", "each head's z through its own slice of W_o", "B T H D", "attn.z", "attn.out"),
    _block("attn.out", "what attention writes: after W_o", "B T D"),
    _block("attn.add", "what enters the residual stream (differs from attn.out where a norm follows)", "B T D"),
    _block("resid_mid", "the residual stream after attention is added", "B T D"),
    _block("mlp.x", "what the feed-forward layer reads: after its norm", "B T D"),
    _block("mlp.up", "up projection", "B T F"),
    _block("mlp.gate", "gate projection, before the activation", "B T F", only=lambda _, layer: layer.mlp.gated),
    _block("mlp.act", "the hidden neurons, as the down projection reads them", "B T F"),
    _block("mlp.out", "what the feed-forward layer writes", "B T D"),
    _block("mlp.add", "what enters the residual stream (differs from mlp.out where a norm follows)", "B T D"),
    _block("resid_post", "the residual stream after the block", "B T D"),
)
FINAL = (
    Point("final.norm", "what the language-modelling head reads: the last residual, normed", "B T D"),
    Point("final.logits", "the score of every possible next token, as the model defines it", "B T V"),
)


def points(config: ModelConfig) -> dict[str, Point]:
    """Every point of a model, layers written out, in the order in which a pass comes to them."""
    found = {}
    for part, layers in ((EMBED, config.layers[:1]), (BLOCK, config.layers), (FINAL, config.layers[:1])):
        for i, layer in enumerate(layers):
            for point in part:
                if point.only is None or point.only(config, layer):
                    found[point.name.replace("{i}", str(i))] = point
    return found


def live(config: ModelConfig) -> list[str]:
    """Names of the points that pass through a tap."""
    return [name for name, point in points(config).items() if point.kind == "live"]


def derived(config: ModelConfig) -> list[str]:
    """Names of the points that are computed from live ones."""
    return [name for name, point in points(config).items() if point.kind == "derived"]


def find(config: ModelConfig, name: str) -> Point:
    """The point of this name. RequestError says which name is nearest where the model has none."""
    known = points(config)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise RequestError(f"this model has no point {name!r}; the nearest is {near[0]!r}", param="point")
    return known[name]


def needs(config: ModelConfig, name: str) -> list[str]:
    """The live points to keep for one that is wanted: itself, or what it is computed from."""
    point = find(config, name)
    if point.kind == "live":
        return [name]
    return [need.replace("{i}", name.split(".")[1]) for need in point.needs]

"""The registry of points: every value in a model that a tap can see, by name. Documentation and menus are made from it.

A **live** point goes through the tap while the model runs, and the model continues with what the tap returns. A
**derived** point is computed afterwards from live ones (`derive.py`); it is live only under an edit of it. An encoder
has the same points under `encoder.`; a decoder with a source has `cross.*` as well as `attn.*`, whose keys and values
are computed only once per source.

    embed.out -> resid_pre -> attn.x -> q k v -> q_rot k_rot -> (scores, probs) -> z -> (heads) -> out -> add
                                                                                                          |
        next block <- resid_post <- mlp.add <- mlp.out <- act <- gate up <- mlp.x <- resid_mid <----------'

Latent attention: attn.x -> q, latent -> k v -> ...; an edit of the latent affects later forward passes, an edit of k, v
or k_rot does not.
Parallel blocks: mlp.x is computed from resid_pre, as attn.x is, and there is no resid_mid.
Experts: mlp.x -> mlp.router -> mlp.out; each expert processes only some tokens. A shared expert has act, gate and up.
With a source: resid_mid -> cross.x -> q q_rot, of the source k v k_rot -> z -> out -> add -> resid_cross -> mlp.x

Recurrent: rnn.states (-> rnn.scores -> rnn.probs -> rnn.context, once per target token or for all) -> final.logits
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

from glassformer.config import EncoderConfig, LayerConfig, ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.errors import RequestError
from glassformer.families.common.family import AnyConfig

ENCODER = "encoder."  # prefix of the points of a seq2seq model's encoder
Only = Callable[[ModelConfig | EncoderConfig, LayerConfig], bool]


@dataclass(frozen=True)
class Point:
    """One point. In `points()` the `{i}` of `name` is replaced by the block's number.

    axes: T the tokens of the forward pass, in an encoder those of the source; S the keys, of the text or of a source;
        Dr the width of a recurrent state; Dv the width of a head's values, Dh except in latent attention; C the width
        of a latent.
    needs: the live points that a derived point is computed from.
    only: which layers have the point; None is all of them.
    """

    name: str
    meaning: str
    axes: str
    kind: Literal["live", "derived"] = "live"
    needs: tuple[str, ...] = ()
    only: Only | None = None


def _block(end: str, meaning: str, axes: str, only: Only | None = None) -> Point:
    return Point(f"blocks.{{i}}.{end}", meaning, axes, only=only)


def _derived(end: str, meaning: str, axes: str, *needs: str, only: Only | None = None) -> Point:
    needs = tuple(f"blocks.{{i}}.{need}" for need in needs)
    return Point(f"blocks.{{i}}.{end}", meaning, axes, "derived", needs, only)


def _cross(_: ModelConfig | EncoderConfig, layer: LayerConfig) -> bool:
    return layer.cross is not None


def _latent(_: ModelConfig | EncoderConfig, layer: LayerConfig) -> bool:
    return layer.attention.latent is not None


def _neurons(_: ModelConfig | EncoderConfig, layer: LayerConfig) -> bool:
    return layer.experts is None or layer.experts.shared_d_ff is not None


def _types(config: ModelConfig | EncoderConfig, _: LayerConfig) -> bool:
    return isinstance(config, TextEncoderConfig) and config.n_token_types > 0


PRODUCT = ("attn.q_rot", "attn.k_rot", "attn.v", "attn.z")  # inputs of scores and probabilities
CROSS_PRODUCT = ("cross.q_rot", "cross.k_rot", "cross.v", "cross.z")

EMBED = (
    Point("embed.tokens", "the rows of the embedding table for the tokens", "B T D"),
    Point("embed.types", "what is added for each type of token", "B T D", only=_types),
    Point("embed.positions", "what is added for each position", "#B T D", only=lambda m, _: m.positions is not None),
    Point("embed.out", "what enters block 0", "B T D"),
)
BLOCK = (
    _block("resid_pre", "the residual stream before the block", "B T D"),
    _block("attn.x", "input of attention, after its norm", "B T D"),
    _block("attn.q", "queries: projected with bias (and clipped), before norm and rotation", "B T H Dh"),
    _block(
        "attn.latent",
        "the vector that keys and values are computed from, after its norm: all that the cache stores",
        "B T C",
        _latent,
    ),
    _block("attn.k", "keys: projected with bias (and clipped), before norm and rotation", "B T Hkv Dh"),
    _block("attn.v", "values: projected with bias (and clipped)", "B T Hkv Dv"),
    _block("attn.q_rot", "queries after their norm and rotation, as used in the dot product", "B T H Dh"),
    _block("attn.k_rot", "keys after their norm and rotation, as used in the dot product", "B T Hkv Dh"),
    _derived("attn.scores", "q·k after scale, softcap, bias and mask", "B H T S", *PRODUCT),
    _derived("attn.probs", "the weight of each key for each query: scores after softmax", "B H T S", *PRODUCT),
    _block("attn.z", "probabilities · values of each head, before W_o", "B T H Dv"),
    _derived("attn.heads", "each head's z times its own slice of W_o", "B T H D", "attn.z", "attn.out"),
    _block("attn.out", "output of attention, after W_o", "B T D"),
    _block("attn.add", "what is added to the residual stream (differs from attn.out where a norm follows)", "B T D"),
    _block("resid_mid", "the residual stream after attention is added", "B T D", lambda _, layer: not layer.parallel),
    _block("cross.x", "input of cross-attention, after its norm", "B T D", _cross),
    _block("cross.q", "queries of cross-attention: projected with bias, before their norm", "B T H Dh", _cross),
    _block(
        "cross.q_rot", "queries of cross-attention after their norm, as used in the dot product", "B T H Dh", _cross
    ),
    _block("cross.k", "the source's keys: projected with bias, before their norm", "B S Hkv Dh", _cross),
    _block("cross.v", "the source's values: projected with bias", "B S Hkv Dh", _cross),
    _block("cross.k_rot", "the source's keys after their norm, as used in the dot product", "B S Hkv Dh", _cross),
    _derived("cross.scores", "q·k after scale and mask", "B H T S", *CROSS_PRODUCT, only=_cross),
    _derived(
        "cross.probs",
        "the weight of each source token for each query: scores after softmax",
        "B H T S",
        *CROSS_PRODUCT,
        only=_cross,
    ),
    _block("cross.z", "probabilities · values of each head, before W_o", "B T H Dh", _cross),
    _derived("cross.heads", "each head's z times its own slice of W_o", "B T H D", "cross.z", "cross.out", only=_cross),
    _block("cross.out", "output of cross-attention, after W_o", "B T D", _cross),
    _block(
        "cross.add",
        "what is added to the residual stream (differs from cross.out where a norm follows)",
        "B T D",
        _cross,
    ),
    _block("resid_cross", "the residual stream after cross-attention is added", "B T D", _cross),
    _block("mlp.x", "input of the feed-forward layer, after its norm", "B T D"),
    _block("mlp.router", "the score of each expert, before softmax", "B T E", lambda _, layer: bool(layer.experts)),
    _block("mlp.up", "up projection (with experts: of the shared expert)", "B T F", _neurons),
    _block(
        "mlp.gate", "gate projection, before the activation", "B T F", lambda *of: _neurons(*of) and of[1].mlp.gated
    ),
    _block("mlp.act", "the hidden neurons: input of the down projection", "B T F", _neurons),
    _block("mlp.out", "output of the feed-forward layer", "B T D"),
    _block("mlp.add", "what is added to the residual stream (differs from mlp.out where a norm follows)", "B T D"),
    _block("resid_post", "the residual stream after the block", "B T D"),
)
FINAL = (
    Point("final.norm", "the last residual stream after the final norm: input of the head, or of a decoder", "B T D"),
)
POOLED = (Point("final.pooled", "the pooler's output for the first state", "B D"),)
HEAD = (Point("final.logits", "the score of every possible next token, as the model defines it", "B T V"),)
FOLLOWS = (Point("final.follows", "the scores of: the second text follows the first, and it does not", "B 2"),)
MASKED = (Point("final.logits", "the score of every token for this position", "B T V"),)
STATES = (
    Point(
        "rnn.states",
        "the encoder's states, both directions concatenated; the decoder starts from the last ones",
        "B S Dr",
    ),
)
ALIGN = (  # T values [B, 1, ...] where the step of a target token depends on the previous one
    Point("rnn.scores", "the score of each source state for the decoder's state, -inf for padding", "B T S"),
    Point("rnn.probs", "the weight of each source state: scores after softmax", "B T S"),
    Point("rnn.context", "probabilities · states: the decoder's input from the source", "B T Dr"),
)


class SameConfig:
    """A config as the key of a cache: compared by identity, which is faster than comparing all fields."""

    def __init__(self, config: AnyConfig | EncoderConfig):
        self.config = config

    def __hash__(self) -> int:
        return id(self.config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameConfig) and self.config is other.config


def points(config: AnyConfig | EncoderConfig) -> Mapping[str, Point]:
    """Return every point of a model by name, in the order of the forward pass, the encoder of a seq2seq model first.

    The points of an encoder-only model have no prefix. They are made once for each config object.
    """
    return _make_points(SameConfig(config))


@lru_cache(64)
def _make_points(same: SameConfig) -> Mapping[str, Point]:
    config = same.config
    if isinstance(config, TextEncoderConfig):
        heads = (
            (POOLED if config.pooler else ())
            + (FOLLOWS if config.next_sentence else ())
            + (MASKED if config.head is not None else ())
        )
        return _stack(config, "", FINAL + heads)
    if isinstance(config, EncoderConfig):
        return _stack(config, "", FINAL)
    if isinstance(config, RecurrentConfig):
        return {point.name: point for point in (*STATES, *(ALIGN if config.attention else ()), *HEAD)}
    found = {} if config.encoder is None else _stack(config.encoder, ENCODER, FINAL)
    return found | _stack(config, "", FINAL + HEAD)


def _stack(config: ModelConfig | EncoderConfig, prefix: str, last: tuple[Point, ...]) -> dict[str, Point]:
    """Return the points of one stack, their names and needs under `prefix`."""
    found = {}
    for part, layers in ((EMBED, config.layers[:1]), (BLOCK, config.layers), (last, config.layers[:1])):
        for i, layer in enumerate(layers):
            for point in part:
                if point.only is None or point.only(config, layer):
                    needs = tuple(prefix + need for need in point.needs)
                    named = replace(point, name=prefix + point.name, needs=needs)
                    found[named.name.replace("{i}", str(i))] = named
    return found


def live(config: AnyConfig) -> list[str]:
    """Return the names of the points that go through a tap."""
    return [name for name, point in points(config).items() if point.kind == "live"]


def derived(config: AnyConfig | EncoderConfig) -> list[str]:
    """Return the names of the points that are computed from live ones."""
    return [name for name, point in points(config).items() if point.kind == "derived"]


def find(config: AnyConfig | EncoderConfig, name: str, param: str = "point") -> Point:
    """Return a point by name. RequestError names the closest point where the model does not have it."""
    found = points(config).get(name)
    if found is None:
        near = difflib.get_close_matches(name, points(config), n=1, cutoff=0.0)
        raise RequestError(f"this model has no point {name!r}; the closest name is {near[0]!r}", param=param)
    return found


def match(config: AnyConfig | EncoderConfig, patterns: Sequence[str], param: str = "capture") -> list[str]:
    """Return the points that patterns such as "blocks.5.attn.*" match, each once, in the order of the forward pass.

    `*` matches dots too. RequestError for a pattern that matches no point.
    """
    known, found = points(config), set()
    for pattern in patterns:
        if pattern in known:
            found.add(pattern)
            continue
        some = [name for name in known if fnmatchcase(name, pattern)]
        found.update(some or [find(config, pattern, param).name])
    return [name for name in known if name in found]


def layer_of(name: str) -> int | None:
    """Return the number of a point's block; None outside the blocks."""
    number = re.search(r"blocks\.(\d+)\.", name)
    return None if number is None else int(number[1])


def sizes(config: AnyConfig | EncoderConfig, name: str) -> dict[str, int]:
    """Return the length of each axis of a point, except for batch, tokens and keys (B, T, S)."""
    if isinstance(config, RecurrentConfig):
        return {"Dr": config.d_hidden, "V": config.target_vocab_size}
    stack = config
    if isinstance(config, ModelConfig) and config.encoder is not None and name.startswith(ENCODER):
        stack = config.encoder
    found, i = {"D": stack.d_model, "V": stack.vocab_size}, layer_of(name)
    if i is None:
        return found
    layer = stack.layers[i]
    attention = layer.cross if ".cross." in name and layer.cross is not None else layer.attention
    experts, width = layer.experts, layer.mlp.d_ff
    if experts is not None:
        found["E"], width = experts.n_experts, experts.shared_d_ff or width
    found |= {"H": attention.n_heads, "Hkv": attention.n_kv_heads, "Dh": attention.head_dim, "Dv": attention.head_dim}
    if attention.latent is not None:
        found |= {"Dv": attention.latent.v_dim, "C": attention.latent.rank}
    return found | {"F": width}


def needs(config: AnyConfig | EncoderConfig, name: str) -> list[str]:
    """Return the live points to capture for a point: itself, or those that it is computed from."""
    point = find(config, name)
    if point.kind == "live":
        return [name]
    number = re.findall(r"\d+", name)[0]
    return [need.replace("{i}", number) for need in point.needs]

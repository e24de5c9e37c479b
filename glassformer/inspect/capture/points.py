"""Every place in a model where a tap may look: one registry, which the documentation, tests and menus are made from.

A **live** point passes through the tap while the model runs; what the tap returns flows on. A **derived** one is
computed afterwards from live ones (`derive.py`), and is live only under an edit that needs it. An encoder's points are
the same, named under `encoder.`; a decoder that reads a source has `cross.*` beside `attn.*`, whose keys and values a
cached pass makes only once.

    embed.out -> resid_pre -> attn.x -> q k v -> q_rot k_rot -> (scores, probs) -> z -> (heads) -> out -> add
                                                                                                          |
        next block <- resid_post <- mlp.add <- mlp.out <- act <- gate up <- mlp.x <- resid_mid <----------'

Latent attention: attn.x -> q, latent -> k v -> ...; later passes see a change of the latent, none of k, v, k_rot.
In a parallel block mlp.x is read where attn.x is, and there is no resid_mid.
Of experts: mlp.x -> mlp.router -> mlp.out; inside, each has some of the tokens only. A shared one has act, gate and up.
With a source: resid_mid -> cross.x -> q q_rot, of the source k v k_rot -> z -> out -> add -> resid_cross -> mlp.x

Recurrent: rnn.states (-> rnn.scores -> rnn.probs -> rnn.context, once for each target token or for all) -> final.logits
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from glassformer.config import EncoderConfig, LayerConfig, ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.errors import RequestError
from glassformer.families.common.family import AnyConfig

Only = Callable[[ModelConfig | EncoderConfig, LayerConfig], bool]


@dataclass(frozen=True)
class Point:
    """One place. `name` has `{i}` for the block's number; `needs` are the live points a derived one is computed from.

    `only` says which models have it (`i` is 0 outside the blocks); None is all of them. `axes`: S are the keys, of the
    row itself or of a source; T are the tokens of the pass, in an encoder the source's; Dr: a recurrent state's width.
    Dv: that of a head's values, Dh but in latent attention; C: that of a latent.
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


PRODUCT = ("attn.q_rot", "attn.k_rot", "attn.v", "attn.z")  # what scores and probabilities are computed from
CROSS_PRODUCT = ("cross.q_rot", "cross.k_rot", "cross.v", "cross.z")

EMBED = (
    Point("embed.tokens", "the rows of the embedding table that the tokens look up", "B T D"),
    Point("embed.types", "what is added for each type of token", "B T D", only=_types),
    Point("embed.positions", "what is added for each position", "#B T D", only=lambda m, _: m.positions is not None),
    Point("embed.out", "what enters block 0", "B T D"),
)
BLOCK = (
    _block("resid_pre", "the residual stream before the block", "B T D"),
    _block("attn.x", "what attention reads: after its norm", "B T D"),
    _block("attn.q", "queries: projected with bias (and clipped), before norm and rotation", "B T H Dh"),
    _block(
        "attn.latent", "what keys and values are made of, after its norm: all that is kept of them", "B T C", _latent
    ),
    _block("attn.k", "keys: projected with bias (and clipped), before norm and rotation", "B T Hkv Dh"),
    _block("attn.v", "values: projected with bias (and clipped)", "B T Hkv Dv"),
    _block("attn.q_rot", "queries after their norm and rotation: what the product uses", "B T H Dh"),
    _block("attn.k_rot", "keys after their norm and rotation: what the product uses", "B T Hkv Dh"),
    _derived("attn.scores", "q·k after scale, softcap, bias and mask", "B H T S", *PRODUCT),
    _derived("attn.probs", "how much each query takes of each key: scores after softmax", "B H T S", *PRODUCT),
    _block("attn.z", "probabilities · values of each head, before W_o", "B T H Dv"),
    _derived("attn.heads", "each head's z through its own slice of W_o", "B T H D", "attn.z", "attn.out"),
    _block("attn.out", "what attention writes: after W_o", "B T D"),
    _block("attn.add", "what enters the residual stream (differs from attn.out where a norm follows)", "B T D"),
    _block("resid_mid", "the residual stream after attention is added", "B T D", lambda _, layer: not layer.parallel),
    _block("cross.x", "what attention to the source reads: after its norm", "B T D", _cross),
    _block("cross.q", "queries to the source: projected with bias, before their norm", "B T H Dh", _cross),
    _block("cross.q_rot", "queries to the source as the product uses them: after their norm", "B T H Dh", _cross),
    _block("cross.k", "the source's keys: projected with bias, before their norm", "B S Hkv Dh", _cross),
    _block("cross.v", "the source's values: projected with bias", "B S Hkv Dh", _cross),
    _block("cross.k_rot", "the source's keys as the product uses them: after their norm", "B S Hkv Dh", _cross),
    _derived("cross.scores", "q·k after scale and mask", "B H T S", *CROSS_PRODUCT, only=_cross),
    _derived("cross.probs", "how much each query takes of each token of it", "B H T S", *CROSS_PRODUCT, only=_cross),
    _block("cross.z", "probabilities · values of each head, before W_o", "B T H Dh", _cross),
    _derived("cross.heads", "each z through its slice of W_o", "B T H D", "cross.z", "cross.out", only=_cross),
    _block("cross.out", "what attention to the source writes: after W_o", "B T D", _cross),
    _block("cross.add", "what enters the residual stream (differs where a norm follows)", "B T D", _cross),
    _block("resid_cross", "the residual stream after attention to the source is added", "B T D", _cross),
    _block("mlp.x", "what the feed-forward layer reads: after its norm", "B T D"),
    _block(
        "mlp.router", "of experts: how well each fits, before softmax", "B T E", lambda _, layer: bool(layer.experts)
    ),
    _block("mlp.up", "up projection (of experts: the shared one's)", "B T F", _neurons),
    _block(
        "mlp.gate", "gate projection, before the activation", "B T F", lambda *of: _neurons(*of) and of[1].mlp.gated
    ),
    _block("mlp.act", "the hidden neurons, as the down projection reads them", "B T F", _neurons),
    _block("mlp.out", "what the feed-forward layer writes", "B T D"),
    _block("mlp.add", "what enters the residual stream (differs from mlp.out where a norm follows)", "B T D"),
    _block("resid_post", "the residual stream after the block", "B T D"),
)
FINAL = (
    Point("final.norm", "what the language-modelling head, or a decoder, reads: the last residual, normed", "B T D"),
)
POOLED = (Point("final.pooled", "the first state through the pooler", "B D"),)
HEAD = (Point("final.logits", "the score of every possible next token, as the model defines it", "B T V"),)
FOLLOWS = (Point("final.follows", "the scores that a second text follows the first, and that it does not", "B 2"),)
MASKED = (Point("final.logits", "the score of every token that might stand there", "B T V"),)
READ = (
    Point("rnn.states", "the encoder's states, both ways side by side; the decoder starts from the ends", "B S Dr"),
)
ALIGN = (  # seen in T parts [B, 1, ...] where a target token's step needs the one before it
    Point("rnn.scores", "how well each state of the source fits the decoder's, -inf for padding", "B T S"),
    Point("rnn.probs", "how much of each state is taken: scores after softmax", "B T S"),
    Point("rnn.context", "probabilities · states: what the decoder gets of the source", "B T Dr"),
)


def points(config: AnyConfig | EncoderConfig) -> dict[str, Point]:
    """Every point of a model, layers written out, in the order in which a pass comes to them: an encoder's first.

    Of an encoder by itself they are named without `encoder.`
    """
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
        return {point.name: point for point in (*READ, *(ALIGN if config.attention else ()), *HEAD)}
    found = {} if config.encoder is None else _stack(config.encoder, "encoder.", FINAL)
    return found | _stack(config, "", FINAL + HEAD)


def _stack(config: ModelConfig | EncoderConfig, prefix: str, last: tuple[Point, ...]) -> dict[str, Point]:
    """The points of one stack, its names and what it needs under `prefix`."""
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
    """Names of the points that pass through a tap."""
    return [name for name, point in points(config).items() if point.kind == "live"]


def derived(config: AnyConfig | EncoderConfig) -> list[str]:
    """Names of the points that are computed from live ones."""
    return [name for name, point in points(config).items() if point.kind == "derived"]


def find(config: AnyConfig | EncoderConfig, name: str, param: str = "point") -> Point:
    """The point of this name. RequestError says which name is nearest where the model has none."""
    found = _one(config, name)
    if found is None:
        near = difflib.get_close_matches(name, points(config), n=1, cutoff=0.0)
        raise RequestError(f"this model has no point {name!r}; the nearest is {near[0]!r}", param=param)
    return found


def _one(config: AnyConfig | EncoderConfig, name: str) -> Point | None:
    """What `points` has under a name, without making all the others."""
    if not isinstance(config, ModelConfig):
        return points(config).get(name)
    prefix, bare = ("encoder.", name[8:]) if name.startswith("encoder.") else ("", name)
    stack = config.encoder if prefix else config
    number = re.match(r"blocks\.(0|[1-9]\d*)\.", bare)
    i = 0 if number is None else int(number[1])
    known = EMBED + FINAL + (() if prefix else HEAD) if number is None else BLOCK
    bare = bare if number is None else f"blocks.{{i}}.{bare[number.end() :]}"
    if stack is None or i >= stack.n_layers:
        return None
    for point in known:
        if point.name == bare and (point.only is None or point.only(stack, stack.layers[i])):
            return replace(point, name=prefix + point.name, needs=tuple(prefix + need for need in point.needs))
    return None


def match(config: AnyConfig | EncoderConfig, patterns: Sequence[str], param: str = "read") -> list[str]:
    """Points that a pattern names ("blocks.5.attn.*"), each once, in the order of a pass. `*` takes dots too.

    RequestError for a pattern that names none.
    """
    known, found = points(config), set()
    for pattern in patterns:
        some = [name for name in known if fnmatchcase(name, pattern)]
        found.update(some or [find(config, pattern, param).name])
    return [name for name in known if name in found]


def layer_of(name: str) -> int | None:
    """The number of the block that a point is in; None outside the blocks."""
    number = re.search(r"blocks\.(\d+)\.", name)
    return None if number is None else int(number[1])


def sizes(config: AnyConfig | EncoderConfig, name: str) -> dict[str, int]:
    """How long each axis of a point is, but for those of rows, tokens and keys (B, T, S)."""
    if isinstance(config, RecurrentConfig):
        return {"Dr": config.d_hidden, "V": config.target_vocab_size}
    stack = config
    if isinstance(config, ModelConfig) and config.encoder is not None and name.startswith("encoder."):
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
    """The live points to keep for one that is wanted: itself, or what it is computed from."""
    point = find(config, name)
    if point.kind == "live":
        return [name]
    number = re.findall(r"\d+", name)[0]
    return [need.replace("{i}", number) for need in point.needs]

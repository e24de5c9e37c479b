"""What a report holds: a chosen place in a text, and what one step away from it shows.

    chosen   every view at the chosen layer, head, query and key; and with any one of the four changed, the others kept
             (of q, k, v, heads and blocks 32 tokens to either side, of cells 128). What is small is there for all
             tokens: probabilities, lens, shares of a difference, sampling, and every layer's small pictures.
    all      layers, heads and tokens changed together; of cells, all of the chosen head's and the chosen query's

Answers are kept under what was asked, by the very functions that answer where there is a server. A refusal is kept
with its reason; what is not kept says so, and how to see it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from glassformer.errors import CapacityError, GlassformerError
from glassformer.inspect.present.describe import describe_error, describe_text
from glassformer.inspect.present.paths import cache_key, model_view_path, tensor_path, trace_view_path
from glassformer.inspect.present.router import LocalRouter
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.embedding import distinct
from glassformer.inspect.views.focus import Focus
from glassformer.inspect.views.result import dump

NEAR, FAR = 32, 128  # tokens to either side
WHOLE, STEP = 256, 128  # of a head drawn number by number: as the page has it
MOST = 256 << 20  # bytes of answers, before they are packed
WORD = re.compile(r" ?[^\W\d_]+")
RULE = {
    "chosen": "the chosen layer, head, query and key, and each of them changed by itself",
    "all": "all layers, heads and tokens, and of cells those of the chosen head and of the chosen query",
}

Advance = Callable[[int, int | None, str], None]


def bake(
    answers: LocalRouter, ids: list[str], place: Focus, how: str, text: str, advance: Advance | None = None
) -> dict[str, bytes]:
    """{what is asked: the answer} of traces, as JSON. CapacityError where it is more than a browser should open."""
    found: dict[str, bytes] = {}
    size = 0

    def keep(path: str, total: int | None) -> None:
        nonlocal size
        found[cache_key(path)] = answer = packed(answers, path)
        size += len(answer)
        if size > MOST:
            raise CapacityError(
                f"a report of this text would be over {MOST >> 20} MB ({len(found)} of {total or 'its'} answers are): "
                f"take a shorter text{', or bake chosen' if how == 'all' else ''}, or serve the model"
            )
        if advance:
            advance(len(found), total, "baking")

    for path in of_model(answers, ids, text, found):
        if cache_key(path) not in found:
            keep(path, None)
    asked = {cache_key(path): path for id in ids for path in of_trace(answers, id, place, how)}
    total = len(found) + len(asked)
    for path in asked.values():
        keep(path, total)
    return found


def packed(answers: LocalRouter, path: str) -> bytes:
    """["json", answer], ["tensor", base64 of it] or ["refused", the error]."""
    try:
        data = answers.get(path)
    except GlassformerError as error:
        return b'["refused",' + dump(describe_error(error)) + b"]"
    if "/tensors/" in path:
        return b'["tensor","' + base64.b64encode(data) + b'"]'
    return b'["json",' + data + b"]"


def of_model(answers: LocalRouter, ids: list[str], text: str, found: Mapping[str, bytes]) -> Iterator[str]:
    """The model, its tokenizer on this text, and the rows of its tokens with those near them.

    found: the answers so far; what comes after a row depends on it.
    """
    name = answers.name
    yield "/v1/models"
    yield model_view_path(name, "anatomy")
    yield model_view_path(name, "tokens", text=text)
    for word in dict.fromkeys(WORD.findall(text)):
        yield model_view_path(name, "merges", word=word)
    tables = [table for table in distinct(answers.lm) if table != "source"]
    for id in ids:
        t = answers.traces[id]
        for table in tables:
            for token in dict.fromkeys(t.ids):
                path = model_view_path(name, "embedding", token=token, n=12, table=table)
                yield path
                yield model_view_path(name, "embedding", token=token, n=1, table=table)
                near = json.loads(found[cache_key(path)])[1]["nearest"]
                some = list(dict.fromkeys([*t.ids, *(one["id"] for one in near)]))
                yield model_view_path(name, "embedding_map", tokens=some, table=table)


def of_trace(answers: LocalRouter, id: str, place: Focus, how: str) -> Iterator[str]:
    """What the page may ask of a trace, at the places that are baked."""
    t = answers.traces[id]
    n, everywhere = len(t), how == "all"

    def see(view: str, **given: Any) -> str:
        return trace_view_path(id, view, **given)

    for other in answers.traces:
        if other != id:
            yield see("fork", other=other)
            yield see("changed", other=other)
    if not t.has_blocks:
        yield from of_recurrent(t, id)
        return
    if t.source is not None:
        yield from of_pair(t, id, place, everywhere)
    layers = [one.attention.n_heads for one in t.config.layers]
    place = Focus(place.layer, place.head, min(place.query, n - 1), min(place.key, n - 1), place.because)

    def probs(layer: int, slice: str, **given: Any) -> str:
        return tensor_path(id, f"blocks.{layer}.attn.probs", slice=slice, **given)

    yield from map(see, ("summary", "times", "tracks", "roles", "cache_speed"))
    for q in range(n):
        yield see("lens", top=5, position=q)
        yield see("attribution", position=q)
        yield see("sampling", position=q, top=12)
        yield tensor_path(id, "embed.out", slice=f"{q},:", dtype="f32")
    near, far = (range(n), range(n)) if everywhere else (around(place.query, NEAR, n), [place.key])
    for layer, many in enumerate(layers):  # what a layer left at a token is at hand as long as its pictures are baked
        yield see("grid", layer=layer, size=48)
        yield see("cache", layer=layer)
        here = everywhere or layer == place.layer
        for q in near if here else [place.query]:
            yield see("heads", layer=layer, position=q)
            yield see("block", layer=layer, position=q)
            yield see("block", layer=layer, position=q, top=0)
            yield probs(layer, f":,{q},:", dtype="f32")
        for head in range(many) if here else [place.head]:
            if n <= WHOLE:
                yield probs(layer, f"{head},:,:", dtype="f32")
            else:
                yield probs(layer, f"{head},:,:", dtype="u8", pool=WHOLE)
                yield probs(layer, piece(head, place.query, place.key, n), dtype="f32")
            for q in near if everywhere or (layer, head) == (place.layer, place.head) else [place.query]:
                yield see("qkv", layer=layer, head=head, position=q, dim=0)
            for key in far:
                yield see("cell", layer=layer, head=head, query=place.query, key=key)
    for dim in range(t.config.layers[place.layer].attention.head_dim):
        yield see("qkv", layer=place.layer, head=place.head, position=place.query, dim=dim)
    queries, keys = around(place.query, n if everywhere else FAR, n), around(place.key, n if everywhere else FAR, n)
    for q, k in crossing(place.query, queries, place.key, keys, everywhere):
        yield see("cell", layer=place.layer, head=place.head, query=q, key=k)
        if n > WHOLE:
            yield probs(place.layer, piece(place.head, q, k, n), dtype="f32")


def of_pair(t: Any, id: str, place: Focus, everywhere: bool) -> Iterator[str]:
    """Of what reads a source beside: where it looked, by every head, and the cells of attention there."""
    yield trace_view_path(id, "alignment")
    for i, layer in enumerate(t.config.layers):
        for head in (None, *range(layer.cross.n_heads)):
            yield trace_view_path(id, "alignment", layer=i, head=head)
    n_keys = len(t.source)
    for attention, stack, n_queries in (("cross", t.config, len(t)), ("encoder", t.config.encoder, n_keys)):
        many = [(one.cross if attention == "cross" else one.attention).n_heads for one in stack.layers]
        layer = min(place.layer, len(many) - 1)
        head, query, key = min(place.head, many[layer] - 1), min(place.query, n_queries - 1), min(place.key, n_keys - 1)
        for i, h in ((i, h) for i, count in enumerate(many) for h in range(count)):
            some = crossing(query, range(n_queries), key, range(n_keys), everywhere)
            if everywhere or i == layer or h == head:
                for q, k in some if everywhere or (i, h) == (layer, head) else [(query, key)]:
                    yield trace_view_path(id, "cell", layer=i, head=h, query=q, key=k, attention=attention)


def of_recurrent(t: Any, id: str) -> Iterator[str]:
    """Of a model that carries one state on: what it looked at, and all that is small."""
    for view in ("summary", "alignment", "times"):
        yield trace_view_path(id, view)
    for q in range(len(t)):
        yield trace_view_path(id, "sampling", position=q, top=12)
        yield tensor_path(id, "rnn.context", slice=f"{q},:")
    for key in range(len(t.source)):
        yield tensor_path(id, "rnn.states", slice=f"{key},:")


def around(at: int, reach: int, n: int) -> range:
    """The places near one."""
    return range(max(0, at - reach), min(n, at + reach + 1))


def crossing(a: int, some: Iterable[int], b: int, others: Iterable[int], everywhere: bool) -> Iterator[tuple[int, int]]:
    """All pairs, or those that have at least one of the two chosen places."""
    others = list(others)
    for x in some:
        for y in others if everywhere or x == a else [b]:
            yield x, y


def piece(head: int, query: int, key: int, n: int) -> str:
    """Of a long text's head, the piece around a cell that is drawn number by number, as the page asks for it."""
    row, column = (max(0, min(n - WHOLE, (at - STEP // 2) // STEP * STEP)) for at in (query, key))
    return f"{head},{row}:{row + WHOLE},{column}:{column + WHOLE}"


def bodies(answers: LocalRouter, ids: list[str], text: str) -> list[dict[str, Any]]:
    """How the page asks for each trace, and what it is told of it."""
    found = []
    for id in ids:
        t = answers.traces[id]
        asked = {"prompt": text, "max_tokens": len(t) - t.n_prompt, "edits": [edit.json for edit in t.edits]}
        found.append(asked | {"trace": answers.describe_all(id)})
    return found


def prompt_of(answers: LocalRouter, id: str) -> str:
    """A trace's prompt as a text, or its source; its ids where the model has no tokenizer."""
    t = answers.traces[id]
    if t.lm.tokenizer is None:
        return " ".join(map(str, t.ids[: t.n_prompt]))
    said = describe_text(t)
    return said["source"]["text"] if "source" in said else said["text"][: said["tokens"][t.n_prompt - 1]["end"]]


def target_of(t: Trace) -> str:
    """A target as a text."""
    return describe_text(t)["target"]["text"]

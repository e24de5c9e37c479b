"""The responses that a report contains: the views at one focus of a text, and at neighbouring positions.

    chosen   every view at the layer, head, query and key in focus, and with one of the four changed (of q, k, v, heads
             and blocks 32 tokens to either side, of cells 128). For all tokens: probabilities, lens, attribution and
             sampling; for all layers: the grid of small attention matrices
    all      layers, heads and tokens changed together; cells of the head in focus, and of the query in focus

Responses are stored under `cache_key(path)`; they come from the router that a server uses. An error is stored as a
response. For a path that is not stored, the page shows how to serve the model.
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
from glassformer.inspect.views.embedding import distinct_tables
from glassformer.inspect.views.focus import Focus
from glassformer.inspect.views.result import dump

NEAR, FAR = 32, 128  # tokens to either side
TILE, TILE_STEP = 256, 128  # of an exact attention matrix, as in web/src
MAX_BYTES = 256 << 20  # of all responses, before packing
WORD = re.compile(r" ?[^\W\d_]+")
RULE = {
    "chosen": "the chosen layer, head, query and key, and each of them changed separately",
    "all": "all layers, heads and tokens, and the cells of the chosen head and of the chosen query",
}

Progress = Callable[[int, int | None, str], None]


def collect_responses(
    router: LocalRouter, ids: list[str], focus: Focus, bake: str, text: str, advance: Progress | None = None
) -> dict[str, bytes]:
    """Return {cache key: response} of traces. CapacityError if they exceed `MAX_BYTES`."""
    found: dict[str, bytes] = {}
    size = 0

    def store(path: str, total: int | None) -> None:
        nonlocal size
        found[cache_key(path)] = response = packed_response(router, path)
        size += len(response)
        if size > MAX_BYTES:
            raise CapacityError(
                f"the report would exceed {MAX_BYTES >> 20} MB (with {len(found)} of {total or 'its'} responses): "
                f"use a shorter text{', bake=chosen' if bake == 'all' else ''} or `glassformer serve`"
            )
        if advance:
            advance(len(found), total, "baking")

    for path in model_paths(router, ids, text, found):
        if cache_key(path) not in found:
            store(path, None)
    paths = {cache_key(path): path for id in ids for path in trace_paths(router, id, focus, bake)}
    total = len(found) + len(paths)
    for path in paths.values():
        store(path, total)
    return found


def packed_response(router: LocalRouter, path: str) -> bytes:
    """Return ["json", response], ["tensor", base64 of it] or ["error", error] as JSON."""
    try:
        data = router.get(path)
    except GlassformerError as error:
        return b'["error",' + dump(describe_error(error)) + b"]"
    if "/tensors/" in path:
        return b'["tensor","' + base64.b64encode(data) + b'"]'
    return b'["json",' + data + b"]"


def model_paths(router: LocalRouter, ids: list[str], text: str, found: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the paths of the model, of its tokenizer on this text, and of the embeddings of its tokens.

    Args:
        found: The responses so far: the map of a token shows its nearest neighbours.
    """
    name = router.name
    yield "/v1/models"
    yield model_view_path(name, "anatomy")
    yield model_view_path(name, "tokens", text=text)
    for word in dict.fromkeys(WORD.findall(text)):
        yield model_view_path(name, "merges", word=word)
    tables = [table for table in distinct_tables(router.lm) if table != "source"]
    for id in ids:
        t = router.traces[id]
        for table in tables:
            for token in dict.fromkeys(t.ids):
                path = model_view_path(name, "embedding", token=token, n=12, table=table)
                yield path
                yield model_view_path(name, "embedding", token=token, n=1, table=table)
                nearest = json.loads(found[cache_key(path)])[1]["nearest"]
                tokens = list(dict.fromkeys([*t.ids, *(one["id"] for one in nearest)]))
                yield model_view_path(name, "embedding_map", tokens=tokens, table=table)


def trace_paths(router: LocalRouter, id: str, focus: Focus, bake: str) -> Iterator[str]:
    """Yield the paths that the page may request of a trace."""
    t = router.traces[id]
    n, everything = len(t), bake == "all"

    def view(name: str, **parameters: Any) -> str:
        return trace_view_path(id, name, **parameters)

    for other in router.traces:
        if other != id:
            yield view("fork", other=other)
            yield view("changed", other=other)
    if not t.has_blocks:
        yield from recurrent_paths(t, id)
        return
    if t.source is not None:
        yield from cross_attention_paths(t, id, focus, everything)
    n_heads = [one.attention.n_heads for one in t.config.layers]
    focus = Focus(focus.layer, focus.head, min(focus.query, n - 1), min(focus.key, n - 1), focus.because)

    def probs(layer: int, slice: str, **parameters: Any) -> str:
        return tensor_path(id, f"blocks.{layer}.attn.probs", slice=slice, **parameters)

    yield from map(view, ("summary", "times", "tracks", "roles", "cache_speed"))
    for q in range(n):
        yield view("lens", top=5, position=q)
        yield view("attribution", position=q)
        yield view("sampling", position=q, top=12)
        yield tensor_path(id, "embed.out", slice=f"{q},:", dtype="f32")
    near, far = (range(n), range(n)) if everything else (around(focus.query, NEAR, n), [focus.key])
    for layer, heads in enumerate(n_heads):  # layer by layer: a layer's recomputed values stay in the trace's cache
        yield view("grid", layer=layer, size=48)
        yield view("cache", layer=layer)
        in_focus = everything or layer == focus.layer
        for q in near if in_focus else [focus.query]:
            yield view("heads", layer=layer, position=q)
            yield view("block", layer=layer, position=q)
            yield view("block", layer=layer, position=q, top=0)
            yield probs(layer, f":,{q},:", dtype="f32")
        for head in range(heads) if in_focus else [focus.head]:
            if n <= TILE:
                yield probs(layer, f"{head},:,:", dtype="f32")
            else:
                yield probs(layer, f"{head},:,:", dtype="u8", pool=TILE)
                yield probs(layer, tile(head, focus.query, focus.key, n), dtype="f32")
            for q in near if everything or (layer, head) == (focus.layer, focus.head) else [focus.query]:
                yield view("qkv", layer=layer, head=head, position=q, dim=0)
            for key in far:
                yield view("cell", layer=layer, head=head, query=focus.query, key=key)
    for dim in range(t.config.layers[focus.layer].attention.head_dim):
        yield view("qkv", layer=focus.layer, head=focus.head, position=focus.query, dim=dim)
    reach = n if everything else FAR
    queries, keys = around(focus.query, reach, n), around(focus.key, reach, n)
    for q, k in cells(focus.query, queries, focus.key, keys, everything):
        yield view("cell", layer=focus.layer, head=focus.head, query=q, key=k)
        if n > TILE:
            yield probs(focus.layer, tile(focus.head, q, k, n), dtype="f32")


def cross_attention_paths(t: Any, id: str, focus: Focus, everything: bool) -> Iterator[str]:
    """Yield the alignments of all heads, and the cells of cross-attention and of the encoder."""
    yield trace_view_path(id, "alignment")
    for i, layer in enumerate(t.config.layers):
        for head in (None, *range(layer.cross.n_heads)):
            yield trace_view_path(id, "alignment", layer=i, head=head)
    n_keys = len(t.source)
    for attention, stack, n_queries in (("cross", t.config, len(t)), ("encoder", t.config.encoder, n_keys)):
        n_heads = [(one.cross if attention == "cross" else one.attention).n_heads for one in stack.layers]
        layer = min(focus.layer, len(n_heads) - 1)
        head, query, key = (
            min(focus.head, n_heads[layer] - 1),
            min(focus.query, n_queries - 1),
            min(focus.key, n_keys - 1),
        )
        for i, h in ((i, h) for i, count in enumerate(n_heads) for h in range(count)):
            if not (everything or i == layer or h == head):
                continue
            if everything or (i, h) == (layer, head):
                wanted = cells(query, range(n_queries), key, range(n_keys), everything)
            else:
                wanted = [(query, key)]
            for q, k in wanted:
                yield trace_view_path(id, "cell", layer=i, head=h, query=q, key=k, attention=attention)


def recurrent_paths(t: Any, id: str) -> Iterator[str]:
    """Yield the paths of a recurrent model."""
    for view in ("summary", "alignment", "times"):
        yield trace_view_path(id, view)
    for q in range(len(t)):
        yield trace_view_path(id, "sampling", position=q, top=12)
        yield tensor_path(id, "rnn.context", slice=f"{q},:")
    for key in range(len(t.source)):
        yield tensor_path(id, "rnn.states", slice=f"{key},:")


def around(center: int, reach: int, n: int) -> range:
    """Return the positions within `reach` of one."""
    return range(max(0, center - reach), min(n, center + reach + 1))


def cells(
    query: int, queries: Iterable[int], key: int, keys: Iterable[int], everything: bool
) -> Iterator[tuple[int, int]]:
    """Yield all (query, key) cells, or those in the row or the column of the focus."""
    keys = list(keys)
    for q in queries:
        for k in keys if everything or q == query else [key]:
            yield q, k


def tile(head: int, query: int, key: int, n: int) -> str:
    """Return the slice of a long text's attention matrix around a cell, as the page requests it."""
    row, column = (max(0, min(n - TILE, (at - TILE_STEP // 2) // TILE_STEP * TILE_STEP)) for at in (query, key))
    return f"{head},{row}:{row + TILE},{column}:{column + TILE}"


def trace_requests(router: LocalRouter, ids: list[str], text: str) -> list[dict[str, Any]]:
    """Return the page's POST /v1/traces request of each trace, with its response under "trace"."""
    found = []
    for id in ids:
        t = router.traces[id]
        request = {"prompt": text, "max_tokens": len(t) - t.n_prompt, "edits": [edit.json for edit in t.edits]}
        found.append(request | {"trace": router.describe_all(id)})
    return found


def prompt_text(router: LocalRouter, id: str) -> str:
    """Return a trace's prompt or source as text; its ids if the model has no tokenizer."""
    t = router.traces[id]
    if t.lm.tokenizer is None:
        return " ".join(map(str, t.ids[: t.n_prompt]))
    found = describe_text(t)
    if "source" in found:
        return found["source"]["text"]
    return found["text"][: found["tokens"][t.n_prompt - 1]["end"]]


def target_text(t: Trace) -> str:
    """Return a trace's target as text."""
    return describe_text(t)["target"]["text"]

"""Views of a trace as panels. Each function draws what one view returned; the numbers are the view's."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import torch

from glassformer.inspect.drawing import labels as called
from glassformer.inspect.drawing.panels import (
    Bars,
    Gallery,
    Heading,
    Line,
    MatrixPanel,
    Meaning,
    Panel,
    Seal,
    Strip,
    Table,
    TokenPanel,
    percent,
    short,
    top_of,
    visible,
)
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.alignment import Aligned
from glassformer.inspect.views.anatomy import Times
from glassformer.inspect.views.attribution import Attribution
from glassformer.inspect.views.block import BlockSum
from glassformer.inspect.views.cache import CacheSpeed, CacheView
from glassformer.inspect.views.cell import Cell
from glassformer.inspect.views.fork import Fork
from glassformer.inspect.views.heads import Grid, Heads
from glassformer.inspect.views.layer import Which, side_of
from glassformer.inspect.views.lens import Lens, Likely
from glassformer.inspect.views.qkv import QKV
from glassformer.inspect.views.roles import Roles
from glassformer.inspect.views.sampling import SamplingView
from glassformer.inspect.views.summary import Summary
from glassformer.inspect.views.tracks import ChangedView, Tracks


def seal(receipt: Receipt) -> Seal:
    return Seal(receipt.python, receipt.identity, receipt.error)


def summary(t: Trace, of: Summary) -> list[Panel]:
    following = tuple((visible(one.text), one.value, percent(one.value)) for one in of.next)
    shares = tuple(one.prob for one in of.tokens)
    return [
        Heading(f"The text: {of.n_prompt} tokens read, {len(of.tokens) - of.n_prompt} written"),
        TokenPanel(tuple(visible(one.text) for one in of.tokens), shares, of.n_prompt),
        Line((("under each token: how likely the model thought it, given those before", "soft"),)),
        Heading("Likeliest after the last one"),
        Bars(following, top=1.0),
        seal(of.receipt),
    ]


def pattern(
    t: Trace, layer: int, head: int, query: int | None = None, key: int | None = None, attention: Which = "attn"
) -> list[Panel]:
    """One head's attention: a row is a query, a column a key."""
    side, which = side_of(t, attention)
    name = f"blocks.{layer}.{which}"
    value, seen = side.rows(f"{name}.probs", head=head), side.visible(name)
    data = value.tensor.detach().float().cpu().masked_fill(~seen.cpu(), math.nan)
    code = f't.rows("{"encoder." if attention == "encoder" else ""}{name}.probs", head={head})'
    label = "a row is a query, a column a key: how much of its attention the query gives to the key"
    where = {"attn": "", "cross": ": to the source", "encoder": " of the encoder"}[attention]
    queries, keys = called.sides(t, attention)
    return [
        Heading(f"Block {layer}, head {head}{where}"),
        MatrixPanel(data, queries, keys, True, "plain", query, key, label),
        Seal(code, value.identity, value.error),
    ]


def cell(t: Trace, of: Cell) -> list[Panel]:
    """The head's picture, and the cell worked out as one formula with its numbers."""
    queries, offered = called.sides(t, of.attention)
    q, k, d = queries[of.query], offered[of.key], len(of.q)
    root = f" (1/√{d})" if abs(of.scale - d**-0.5) < 1e-6 else " (this model's own scale)"
    first = " + ".join(f"{short(a)}·{short(b)}" for a, b in zip(of.q[:3].tolist(), of.k[:3].tolist(), strict=True))
    steps: list[Panel] = [
        Line((("q·k", "query"), (f" = {first} + ... ({d} products) = {short(of.sum)}", "plain"))),
        Line((("scaled", "plain"), (f" = {short(of.sum)} × {short(of.scale)}{root} = {short(of.scaled)}", "plain"))),
    ]
    if of.softcap is not None:
        cap = short(of.softcap)
        steps.append(Line(((f"capped = {cap} · tanh({short(of.scaled)} / {cap}) = {short(of.capped)}", "plain"),)))
    if of.bias:
        steps.append(Line(((f"plus what the model adds for this distance: {short(of.bias)}", "plain"),)))
    if not of.visible:
        steps.append(Line((("mask: the query may not see this key, so the score is -∞ and the share 0", "plain"),)))
    sink = " (the sink's in it)" if of.sink is not None else ""
    steps += [
        Line(
            (
                ("softmax", "plain"),
                (
                    f" = exp({short(of.score)} - {short(of.largest)}) / {short(of.total)}{sink}"
                    f" = {short(of.exp)} / {short(of.total)} = {of.prob:.4f}",
                    "plain",
                ),
            )
        ),
        Strip("v, what the key offers", of.v, "value", top_of(of.v)),
        Strip(f"{of.prob:.4f} · v", of.weighted, "value", top_of(of.v)),
        Strip("z, the sum over all keys", of.z, "value", top_of(of.v)),
    ]
    order = of.probs.topk(min(8, len(of.probs))).indices.tolist()
    if of.key not in order:
        order[-1] = of.key
    keys = tuple((f"{i} {offered[i]}", of.probs[i].item(), percent(of.probs[i].item())) for i in sorted(order))
    head, matrix, _ = pattern(t, of.layer, of.head, of.query, of.key, of.attention)
    return [
        head,
        matrix,
        Heading("The cell, worked out"),
        Line((("query ", "soft"), (f"{of.query} {q}", "query"), ("   key ", "soft"), (f"{of.key} {k}", "key"))),
        *steps,
        Heading(f"Where {q} looks"),
        Bars(keys, "key", 1.0),
        Line(((f"entropy {short(of.entropy)} nats, unscaled it would be {short(of.unscaled.entropy)}", "soft"),)),
        seal(of.receipt),
    ]


def qkv(t: Trace, of: QKV) -> list[Panel]:
    panels: list[Panel] = [
        Heading(
            f"Block {of.layer}, head {of.head}, token {of.position} {visible(t.tokens[of.position])}: q, k, v of one x"
        ),
        Strip("residual", of.residual, "residual"),
        Strip("x, after the norm", of.x, "residual"),
        *(Strip(f"c_{name}, a latent of x, normed", one.normed, "residual") for name, one in of.latents.items()),
    ]
    meanings: dict[str, Meaning] = {"q": "query", "k": "key", "v": "value"}
    for name, meaning in meanings.items():
        panels.append(Strip(name, getattr(of, name), meaning))
        if name != "v":
            panels.append(
                Strip(f"{name}, rotated" if of.turned else f"{name}, as used", getattr(of, f"{name}_rot"), meaning)
            )
        product = of.products.get(name)
        if product is None:  # the others' heads are wider
            continue
        bias, made = (
            f" + {short(product.bias)}" if product.bias else "",
            "x" if product.of == "x" else f"c_{product.of}",
        )
        text = f"{name}[{of.dim}] = Σ {made}·{product.matrix} = {short(product.sum)}{bias} = {short(product.value)}"
        panels.append(Line(((text, meaning),)))
    shared = f"{of.n_heads} query heads share {of.n_kv_heads} of keys and values: this one reads {of.kv_head}"
    return [*panels, *([Line(((shared, "soft"),))] if of.n_kv_heads < of.n_heads else []), seal(of.receipt)]


def heads(t: Trace, of: Heads) -> list[Panel]:
    top = top_of(of.parts, of.out)
    shares = tuple((f"head {i}", x, percent(x)) for i, x in enumerate(of.shares.tolist()))
    rest = (("bias", of.bias_share, percent(of.bias_share)),) if of.bias is not None else ()
    return [
        Heading(f"Block {of.layer}, token {of.position} {visible(t.tokens[of.position])}: the heads through W_o"),
        *(Strip(f"head {i}", part, "residual", top) for i, part in enumerate(of.parts)),
        *([] if of.bias is None else [Strip("bias", of.bias, "residual", top)]),
        Strip("their sum", of.out, "residual", top),
        Heading("Each one's share of the sum"),
        Bars(shares + rest, "value"),
        seal(of.receipt),
    ]


def grid(t: Trace, of: Grid) -> list[Panel]:
    data = torch.frombuffer(bytearray(base64.b64decode(of.pictures)), dtype=torch.uint8).float() / 255
    pictures = data.view(of.heads, of.rows, of.columns)
    blank: tuple[str, ...] = ()
    small = tuple(MatrixPanel(picture, blank, blank, True, label=f"head {i}") for i, picture in enumerate(pictures))
    note = Line(((f"each field is the largest of what it stands for, to within {of.bound:.4f}", "soft"),))
    return [Heading(f"Every head of block {of.layer}"), Gallery(small), note, seal(of.receipt)]


def roles(t: Trace, of: Roles) -> list[Panel]:
    small: list[MatrixPanel] = []
    notes: list[Panel] = []
    for role, scores in of.scores._asdict().items():
        if not of.queries[role]:
            notes.append(Line(((f"{role.replace('_', ' ')}: no token of this text sees such a key", "soft"),)))
            continue
        best = divmod(int(scores.nan_to_num(nan=-1).argmax()), scores.shape[1])
        name = role.replace("_", " ")
        small.append(MatrixPanel(scores, (), (), True, "plain", *best, name))
        share = short(scores[best].item())
        notes.append(
            Line(((f"{name}: {of.meanings[role]}; most in block {best[0]}, head {best[1]}: {share}", "soft"),))
        )
    title = Heading("What each head does on this text: a row is a block, a column a head")
    return [title, Gallery(tuple(small)), *notes, seal(of.receipt)]


def block(t: Trace, of: BlockSum) -> list[Panel]:
    parts = [("before", of.resid_pre, "residual"), ("+ attention", of.attn_add, "query")]
    parts += [] if of.cross_add is None else [("+ cross-attention", of.cross_add, "key")]
    parts += [("+ feed-forward", of.mlp_add, "forward"), ("= after", of.resid_post, "residual")]
    top = top_of(*(data for _, data, _ in parts))
    panels: list[Panel] = [
        Heading(f"Block {of.layer}, token {of.position} {visible(t.tokens[of.position])}: a running sum")
    ]
    panels += [Strip(f"{name} |{short(data.norm().item())}|", data, meaning, top) for name, data, meaning in parts]  # pyright: ignore
    panels.append(seal(of.receipt))
    if of.neurons:
        rows = tuple(
            tuple(
                (cell, None)
                for cell in (
                    str(one.index),
                    short(one.act),
                    short(one.written),
                    _words(one.promotes),
                    _words(one.suppresses),
                )
            )
            for one in of.neurons
        )
        panels += [
            Heading(f"Neurons that write most, of {of.d_ff:,}"),
            Table(("neuron", "activation", "writes", "towards", "away from"), rows),
        ]
    if of.refused:
        panels.append(Line(((of.refused, "soft"),)))
    if of.experts:
        panels.append(
            Bars(tuple((f"expert {e.index}", e.weight, percent(e.weight)) for e in of.experts), "forward", 1.0)
        )
    return panels


def lens(t: Trace, of: Lens) -> list[Panel]:
    last = len(of.rows) - 1
    labels = ["the model" if i == last else "embedding" if i == 0 else f"block {i - 1}" for i in range(last + 1)]
    if len(of.positions) == 1:
        header = ("after", *(f"{i + 1}." for i in range(len(of.rows[0].top[0]))))
        rows = [((labels[i], None), *(_likely(one) for one in row.top[0])) for i, row in enumerate(of.rows)]
        title = f"After token {of.positions[0]} {visible(of.tokens[0])}: what each block would say next"
    else:
        header = ("token", *labels)
        rows = [
            ((f"{at} {visible(token)}", None), *(_likely(row.top[i][0]) for row in of.rows))
            for i, (at, token) in enumerate(zip(of.positions, of.tokens, strict=True))
        ]
        title = "What each block would say next after each token, if it were the last block"
    return [Heading(title), Table(header, tuple(rows)), seal(of.receipt)]


def attribution(t: Trace, of: Attribution) -> list[Panel]:
    shares = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in of.heads], True, math.nan)
    rest = [("embedding", of.embedding)] + [(f"block {i} feed-forward", x) for i, x in enumerate(of.mlp)]
    rest += [(f"block {i} attention bias", x) for i, x in enumerate(of.attention_bias) if x]
    rest += [(name, x) for name, x in (("norm and head", of.constant), ("edits", of.edits)) if x]
    one, other = (visible(token[1]) for token in (of.target, of.rival))
    return [
        Heading(
            f"After token {of.position} {visible(t.tokens[of.position])}: who speaks for {one}, and against {other}"
        ),
        Line(
            (
                (
                    f"logits differ by {short(of.difference)}, of which all heads {short(sum(map(sum, of.heads)))}",
                    "plain",
                ),
            )
        ),
        MatrixPanel(
            shares,
            called.blocks(len(shares)),
            called.heads(shares.shape[1]),
            meaning="query",
            label="each head's share, in logits",
        ),
        Bars(tuple((name, x, short(x)) for name, x in rest), "forward"),
        seal(of.receipt),
    ]


def sampling(t: Trace, of: SamplingView) -> list[Panel]:
    header = ("token", *(f"{stage.name} ({stage.left} left)" for stage in of.stages))
    drawn = ("drawn",) if of.n_draws else ()
    rows = []
    for i, one in enumerate(of.tokens):
        cells = [(visible(one.text), None), *((percent(p), p) for p in (stage.probs[i] for stage in of.stages))]
        rows.append(tuple(cells + ([(f"{of.draws[i]} of {of.n_draws}", of.draws[i] / of.n_draws)] if drawn else [])))
    where = f"After token {of.position} {visible(t.tokens[of.position])}: the choice, stage by stage"
    return [Heading(where), Table((*header, *drawn), tuple(rows)), seal(of.receipt)]


def tracks(t: Trace, of: Tracks) -> list[Panel]:
    label = f"lengths of the residual stream; the context ends after {of.context:,} tokens"
    windows = [
        Line(((f"windows: {', '.join('all' if w is None else str(w) for w in of.windows)} tokens back", "soft"),))
    ]
    matrix = MatrixPanel(of.norms, called.floors(len(of.norms)), called.names(t), meaning="residual", label=label)
    return [Heading("Parallel tracks"), matrix, *(windows if any(of.windows) else []), seal(of.receipt)]


def changed(t: Trace, of: ChangedView) -> list[Panel]:
    n = of.distances.shape[1]
    said = [] if of.token is None else [f"the texts part at token {of.token}"]
    if of.edited is not None:
        said.append(f"an edit of {of.edited.point} reaches token {of.edited.position}")
    where = "; ".join(said) or "nothing differs"
    where += "" if of.first is None else f"; left of token {of.first} the largest distance is {short(of.before)}"
    label = "how far the two residual streams are apart"
    matrix = MatrixPanel(
        of.distances, called.floors(len(of.distances)), called.names(t)[:n], meaning="key", label=label
    )
    return [Heading("What the change reaches"), matrix, Line(((where, "plain"),)), seal(of.receipt)]


def cache(t: Trace, of: CacheView) -> list[Panel]:
    rows = tuple(
        (f"block {one.layer}", one.slots / one.capacity, f"{one.slots} of {one.capacity:,} slots, {one.bytes:,} bytes")
        for one in of.layers
    )
    found: list[Panel] = [Heading(f"What the cache keeps: {of.bytes:,} bytes"), Bars(rows, "key", 1.0)]
    kept = [(one.layer, one.source) for one in of.layers if one.source is not None]
    if kept:
        theirs = tuple((f"block {i}", 1.0, f"{one.slots} slots, {one.bytes:,} bytes") for i, one in kept)
        found += [Heading("Of the source, made once"), Bars(theirs, "key", 1.0)]
    label = f"how much attention each kept token received in block {of.layer}"
    found.append(MatrixPanel(of.mass, called.heads(len(of.mass)), called.names(t), meaning="key", label=label))
    if of.source_mass is not None:
        source: Trace = t.source  # pyright: ignore[reportAttributeAccessIssue]
        label = f"and each token of the source, in block {of.layer}"
        found.append(
            MatrixPanel(
                of.source_mass, called.heads(len(of.source_mass)), called.names(source), meaning="key", label=label
            )
        )
    return [*found, seal(of.receipt)]


def times(t: Trace, of: Times) -> list[Panel]:
    rows = [("embedding", of.embedding)]
    for i, (a, f) in enumerate(zip(of.attention, of.feed_forward, strict=True)):
        rows += [(f"block {i} attention", a), (f"block {i} feed-forward", f)]
    rows.append(("head", of.head))
    bars = Bars(tuple((name, ms, f"{ms:.2f} ms") for name, ms in rows), "forward")
    return [Heading(f"One pass over {of.tokens} tokens: {of.total:.2f} ms"), bars, seal(of.receipt)]


def cache_speed(t: Trace, of: CacheSpeed) -> list[Panel]:
    rows = (
        ("next token, with the cache", of.decode, f"{of.decode:.2f} ms"),
        (f"without: all {of.tokens} tokens again", of.without, f"{of.without:.2f} ms"),
        (f"reading {of.tokens - 1} tokens at once", of.prefill, f"{of.prefill:.2f} ms"),
        *(() if of.source is None else (("reading the source, once", of.source, f"{of.source:.2f} ms"),)),
    )
    return [Heading("What the cache saves"), Bars(rows, "key"), seal(of.receipt)]


def fork(t: Trace, of: Fork) -> list[Panel]:
    where = "one goes on from the other" if of.parts is None else f"the texts part at token {of.parts}"
    rows = tuple(
        (
            (str(one.position), None),
            ("" if one.token is None else visible(one.token), None),
            ("" if one.other is None else visible(one.other), None),
            ("" if one.kl is None else short(one.kl), None),
        )
        for one in of.steps
    )
    header = ("", "this text", "the other", "KL of what comes next, nats")
    return [Heading(f"Two texts side by side: {where}"), Table(header, rows), seal(of.receipt)]


def _likely(one: Likely) -> tuple[str, float]:
    share = math.exp(one.logprob)
    return f"{visible(one.token)} {percent(share)}", share


def _words(named: Sequence) -> str:
    return " ".join(visible(one.text) for one in named)


def alignment(t: Trace, of: Aligned) -> list[Panel]:
    source, target = (tuple(visible(one.text) for one in side) for side in (of.source, of.target))
    where = "the mean over all layers and heads" if of.layer is None else f"layer {of.layer}"
    where += "" if of.head is None else f", head {of.head}"
    label = f"a row is a token written, a column one of the source; {where}"
    return [Heading("Where it looked"), MatrixPanel(of.probs, target, source, True, label=label), seal(of.receipt)]

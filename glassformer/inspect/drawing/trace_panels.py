"""Draw views of a trace as panels. Each function draws the result of one view; the numbers are the view's."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import torch

from glassformer.inspect.drawing.labels import (
    block_labels,
    head_labels,
    query_key_labels,
    stream_labels,
    token_labels,
)
from glassformer.inspect.drawing.panels import (
    Bars,
    Gallery,
    Heading,
    Hue,
    Line,
    MatrixPanel,
    Panel,
    ReceiptPanel,
    Strip,
    Table,
    TokenPanel,
    format_number,
    format_percent,
    max_abs,
    show_token,
)
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.alignment import Alignment
from glassformer.inspect.views.anatomy import Times
from glassformer.inspect.views.attribution import Attribution
from glassformer.inspect.views.block import BlockSum
from glassformer.inspect.views.cache import CacheContents, CacheSpeed
from glassformer.inspect.views.cell import Cell
from glassformer.inspect.views.fork import Fork
from glassformer.inspect.views.heads import Grid, Heads
from glassformer.inspect.views.layer import AttentionKind, select_stack
from glassformer.inspect.views.lens import Lens, LikelyToken
from glassformer.inspect.views.qkv import QKV
from glassformer.inspect.views.roles import Roles
from glassformer.inspect.views.sampling import SamplingView
from glassformer.inspect.views.summary import Summary
from glassformer.inspect.views.tracks import ChangedView, Tracks


def receipt(of: Receipt) -> ReceiptPanel:
    return ReceiptPanel(of.python, of.identity, of.error)


def note(text: str, hue: Hue = "soft") -> Line:
    """Return a line of one hue."""
    return Line(((text, hue),))


def summary(t: Trace, of: Summary) -> list[Panel]:
    following = tuple((show_token(one.text), one.value, format_percent(one.value)) for one in of.next)
    probs = tuple(one.prob for one in of.tokens)
    return [
        Heading(f"The text: {of.n_prompt} prompt tokens, {len(of.tokens) - of.n_prompt} generated"),
        TokenPanel(tuple(show_token(one.text) for one in of.tokens), probs, of.n_prompt),
        note("under each token: its probability, given the tokens before it"),
        Heading("Most likely next tokens"),
        Bars(following, scale=1.0),
        receipt(of.receipt),
    ]


def pattern(
    t: Trace, layer: int, head: int, query: int | None = None, key: int | None = None, attention: AttentionKind = "attn"
) -> list[Panel]:
    """Draw the attention matrix of one head: rows are queries, columns are keys."""
    stack, kind = select_stack(t, attention)
    name = f"blocks.{layer}.{kind}"
    value, visible = stack.rows(f"{name}.probs", head=head), stack.visible(name)
    data = value.tensor.detach().float().cpu().masked_fill(~visible.cpu(), math.nan)
    code = f't.rows("{"encoder." if attention == "encoder" else ""}{name}.probs", head={head})'
    label = "attention probabilities: rows are queries, columns are keys"
    title = {"attn": "", "cross": ": cross-attention", "encoder": " of the encoder"}[attention]
    queries, keys = query_key_labels(t, attention)
    return [
        Heading(f"Block {layer}, head {head}{title}"),
        MatrixPanel(data, queries, keys, True, "plain", query, key, label),
        ReceiptPanel(code, value.identity, value.error),
    ]


def cell(t: Trace, of: Cell) -> list[Panel]:
    """Draw the head's attention matrix, and the arithmetic of one cell."""
    queries, keys = query_key_labels(t, of.attention)
    d = len(of.q)
    root = f" (1/√{d})" if abs(of.scale - d**-0.5) < 1e-6 else " (the model's own scale)"
    pairs = zip(of.q[:3].tolist(), of.k[:3].tolist(), strict=True)
    products = " + ".join(f"{format_number(a)}·{format_number(b)}" for a, b in pairs)
    total, scale, scaled = map(format_number, (of.sum, of.scale, of.scaled))
    steps: list[Panel] = [
        Line((("q·k", "query"), (f" = {products} + ... ({d} products) = {total}", "plain"))),
        note(f"scaled = {total} × {scale}{root} = {scaled}", "plain"),
    ]
    if of.softcap is not None:
        cap = format_number(of.softcap)
        steps.append(note(f"capped = {cap} · tanh({scaled} / {cap}) = {format_number(of.capped)}", "plain"))
    if of.bias:
        steps.append(note(f"plus the position bias: {format_number(of.bias)}", "plain"))
    if not of.visible:
        steps.append(note("mask: this key is hidden from the query, so the score is -∞ and the probability 0", "plain"))
    sink = " (with the sink)" if of.sink is not None else ""
    score, largest, total, exp = map(format_number, (of.score, of.largest, of.total, of.exp))
    scale = max_abs(of.v)
    steps += [
        note(f"softmax = exp({score} - {largest}) / {total}{sink} = {exp} / {total} = {of.prob:.4f}", "plain"),
        Strip("v of the key", of.v, "value", scale),
        Strip(f"{of.prob:.4f} · v", of.weighted, "value", scale),
        Strip("z, the sum over all keys", of.z, "value", scale),
    ]
    order = of.probs.topk(min(8, len(of.probs))).indices.tolist()
    if of.key not in order:
        order[-1] = of.key
    bars = tuple((f"{i} {keys[i]}", of.probs[i].item(), format_percent(of.probs[i].item())) for i in sorted(order))
    entropies = format_number(of.entropy), format_number(of.unscaled.entropy)
    heading, matrix, _ = pattern(t, of.layer, of.head, of.query, of.key, of.attention)
    query, key = f"{of.query} {queries[of.query]}", f"{of.key} {keys[of.key]}"
    return [
        heading,
        matrix,
        Heading("The arithmetic of one cell"),
        Line((("query ", "soft"), (query, "query"), ("   key ", "soft"), (key, "key"))),
        *steps,
        Heading(f"Attention of {queries[of.query]}"),
        Bars(bars, "key", 1.0),
        note("entropy {} nats; without the scale {}".format(*entropies)),
        receipt(of.receipt),
    ]


def qkv(t: Trace, of: QKV) -> list[Panel]:
    token = f"token {of.position} {show_token(t.tokens[of.position])}"
    panels: list[Panel] = [
        Heading(f"Block {of.layer}, head {of.head}, {token}: q, k and v"),
        Strip("residual stream", of.residual, "residual"),
        Strip("x, after the norm", of.x, "residual"),
        *(Strip(f"c_{name}, the normed latent", one.normed, "residual") for name, one in of.latents.items()),
    ]
    hues: dict[str, Hue] = {"q": "query", "k": "key", "v": "value"}
    for name, hue in hues.items():
        panels.append(Strip(name, getattr(of, name), hue))
        if name != "v":
            label = f"{name}, rotated" if of.rotated else f"{name}, as used"
            panels.append(Strip(label, getattr(of, f"{name}_rot"), hue))
        product = of.products.get(name)
        if product is None:  # `dim` is beyond this vector
            continue
        bias = f" + {format_number(product.bias)}" if product.bias else ""
        source = "x" if product.of == "x" else f"c_{product.of}"
        total, value = format_number(product.sum), format_number(product.value)
        panels.append(note(f"{name}[{of.dim}] = Σ {source}·{product.matrix} = {total}{bias} = {value}", hue))
    if of.n_kv_heads < of.n_heads:
        shared = f"{of.n_heads} query heads share {of.n_kv_heads} key/value heads; this one uses {of.kv_head}"
        panels.append(note(shared))
    return [*panels, receipt(of.receipt)]


def heads(t: Trace, of: Heads) -> list[Panel]:
    scale = max_abs(of.parts, of.out)
    shares = tuple((f"head {i}", x, format_percent(x)) for i, x in enumerate(of.shares.tolist()))
    rest = (("bias", of.bias_share, format_percent(of.bias_share)),) if of.bias is not None else ()
    return [
        Heading(f"Block {of.layer}, token {of.position} {show_token(t.tokens[of.position])}: each head through W_o"),
        *(Strip(f"head {i}", part, "residual", scale) for i, part in enumerate(of.parts)),
        *([] if of.bias is None else [Strip("bias", of.bias, "residual", scale)]),
        Strip("sum", of.out, "residual", scale),
        Heading("Share of the sum"),
        Bars(shares + rest, "value"),
        receipt(of.receipt),
    ]


def grid(t: Trace, of: Grid) -> list[Panel]:
    data = torch.frombuffer(bytearray(base64.b64decode(of.pixels)), dtype=torch.uint8).float() / 255
    matrices = tuple(
        MatrixPanel(one, (), (), True, label=f"head {i}")
        for i, one in enumerate(data.view(of.heads, of.rows, of.columns))
    )
    pooling = note(f"each field is the maximum of its cells, within {of.bound:.4f}")
    return [Heading(f"All heads of block {of.layer}"), Gallery(matrices), pooling, receipt(of.receipt)]


def roles(t: Trace, of: Roles) -> list[Panel]:
    matrices: list[MatrixPanel] = []
    notes: list[Panel] = []
    for role, scores in of.scores._asdict().items():
        name = role.replace("_", " ")
        if not of.n_queries[role]:
            notes.append(note(f"{name}: no query of this text has such a key"))
            continue
        layer, head = divmod(int(scores.nan_to_num(nan=-1).argmax()), scores.shape[1])
        matrices.append(MatrixPanel(scores, (), (), True, "plain", layer, head, name))
        best = f"highest in block {layer}, head {head}: {format_number(scores[layer, head].item())}"
        notes.append(note(f"{name}: {of.meanings[role]}; {best}"))
    title = Heading("Roles of all heads on this text: rows are blocks, columns are heads")
    return [title, Gallery(tuple(matrices)), *notes, receipt(of.receipt)]


def block(t: Trace, of: BlockSum) -> list[Panel]:
    parts: list[tuple[str, torch.Tensor, Hue]] = [
        ("before", of.resid_pre, "residual"),
        ("+ attention", of.attn_add, "query"),
        *([] if of.cross_add is None else [("+ cross-attention", of.cross_add, "key")]),
        ("+ feed-forward", of.mlp_add, "forward"),
        ("= after", of.resid_post, "residual"),
    ]
    scale = max_abs(*(data for _, data, _ in parts))
    title = f"Block {of.layer}, token {of.position} {show_token(t.tokens[of.position])}: the residual stream as a sum"
    panels: list[Panel] = [Heading(title)]
    panels += [Strip(f"{name} |{format_number(data.norm().item())}|", data, hue, scale) for name, data, hue in parts]
    panels.append(receipt(of.receipt))
    if of.neurons:
        rows = []
        for one in of.neurons:
            numbers = (str(one.index), format_number(one.act), format_number(one.norm))
            rows.append(tuple((cell, None) for cell in (*numbers, _texts(one.promotes), _texts(one.suppresses))))
        panels.append(Heading(f"Neurons with the largest output, of {of.d_ff:,}"))
        panels.append(Table(("neuron", "activation", "output norm", "promotes", "suppresses"), tuple(rows)))
    if of.note:
        panels.append(note(of.note))
    if of.experts:
        bars = tuple((f"expert {e.index}", e.weight, format_percent(e.weight)) for e in of.experts)
        panels.append(Bars(bars, "forward", 1.0))
    return panels


def lens(t: Trace, of: Lens) -> list[Panel]:
    last = len(of.rows) - 1
    labels = ["the model" if i == last else "embedding" if i == 0 else f"block {i - 1}" for i in range(last + 1)]
    if len(of.positions) == 1:
        header = ("after", *(f"{i + 1}." for i in range(len(of.rows[0].top[0]))))
        rows = [((labels[i], None), *(_likely(one) for one in row.top[0])) for i, row in enumerate(of.rows)]
        title = f"Logit lens after token {of.positions[0]} {show_token(of.tokens[0])}"
    else:
        header = ("token", *labels)
        rows = [
            ((f"{at} {show_token(token)}", None), *(_likely(row.top[i][0]) for row in of.rows))
            for i, (at, token) in enumerate(zip(of.positions, of.tokens, strict=True))
        ]
        title = "Logit lens: the most likely next token after each block"
    return [Heading(title), Table(header, tuple(rows)), receipt(of.receipt)]


def attribution(t: Trace, of: Attribution) -> list[Panel]:
    shares = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in of.heads], True, math.nan)
    rest = [("embedding", of.embedding)] + [(f"block {i} feed-forward", x) for i, x in enumerate(of.mlp)]
    rest += [(f"block {i} attention bias", x) for i, x in enumerate(of.attention_bias) if x]
    rest += [(name, x) for name, x in (("norm and head", of.constant), ("edits", of.edits)) if x]
    target, rival = (show_token(text) for _, text in (of.target, of.rival))
    token = f"token {of.position} {show_token(t.tokens[of.position])}"
    total, of_heads = format_number(of.difference), format_number(sum(map(sum, of.heads)))
    labels = block_labels(len(shares)), head_labels(shares.shape[1])
    return [
        Heading(f"After {token}: contributions to logit({target}) - logit({rival})"),
        note(f"logit difference {total}; all heads together {of_heads}", "plain"),
        MatrixPanel(shares, *labels, hue="query", label="contribution of each head, in logits"),
        Bars(tuple((name, x, format_number(x)) for name, x in rest), "forward"),
        receipt(of.receipt),
    ]


def sampling(t: Trace, of: SamplingView) -> list[Panel]:
    header = ("token", *(f"{stage.name} ({stage.remaining} left)" for stage in of.stages))
    drawn = ("drawn",) if of.n_draws else ()
    rows = []
    for i, one in enumerate(of.tokens):
        cells = [(show_token(one.text), None), *((format_percent(p), p) for p in (s.probs[i] for s in of.stages))]
        rows.append(tuple(cells + ([(f"{of.draws[i]} of {of.n_draws}", of.draws[i] / of.n_draws)] if drawn else [])))
    title = f"After token {of.position} {show_token(t.tokens[of.position])}: probabilities after each sampling stage"
    return [Heading(title), Table((*header, *drawn), tuple(rows)), receipt(of.receipt)]


def tracks(t: Trace, of: Tracks) -> list[Panel]:
    label = f"norms of the residual stream; the context length is {of.context:,} tokens"
    matrix = MatrixPanel(of.norms, stream_labels(len(of.norms)), token_labels(t), hue="residual", label=label)
    windows = ", ".join("unlimited" if w is None else str(w) for w in of.windows)
    notes = [note(f"attention windows of the blocks, in tokens: {windows}")] if any(of.windows) else []
    return [Heading("Residual stream of each token"), matrix, *notes, receipt(of.receipt)]


def changed(t: Trace, of: ChangedView) -> list[Panel]:
    n = of.distances.shape[1]
    facts = [] if of.token is None else [f"the texts differ from token {of.token} on"]
    if of.edited is not None:
        facts.append(f"the edit of {of.edited.point} first changes token {of.edited.position}")
    text = "; ".join(facts) or "the traces do not differ"
    if of.first is not None:
        text += f"; the largest distance before token {of.first} is {format_number(of.max_before)}"
    label = "distance between the two residual streams"
    matrix = MatrixPanel(of.distances, stream_labels(len(of.distances)), token_labels(t)[:n], hue="key", label=label)
    return [Heading("What the change affects"), matrix, note(text, "plain"), receipt(of.receipt)]


def cache(t: Trace, of: CacheContents) -> list[Panel]:
    rows = tuple(
        (f"block {one.layer}", one.slots / one.capacity, f"{one.slots} of {one.capacity:,} slots, {one.bytes:,} bytes")
        for one in of.layers
    )
    found: list[Panel] = [Heading(f"KV cache: {of.bytes:,} bytes"), Bars(rows, "key", 1.0)]
    sources = [(one.layer, one.source) for one in of.layers if one.source is not None]
    if sources:
        bars = tuple((f"block {i}", 1.0, f"{one.slots} slots, {one.bytes:,} bytes") for i, one in sources)
        found += [Heading("Keys and values of the source, computed once"), Bars(bars, "key", 1.0)]
    masses = [("cached token", of.mass, t)]
    if of.source_mass is not None:
        masses.append(("source token", of.source_mass, t.source))  # pyright: ignore[reportAttributeAccessIssue]
    for kind, mass, side in masses:
        label = f"attention received by each {kind}, in block {of.layer}"
        found.append(MatrixPanel(mass, head_labels(len(mass)), token_labels(side), hue="key", label=label))
    return [*found, receipt(of.receipt)]


def times(t: Trace, of: Times) -> list[Panel]:
    rows = [("embedding", of.embedding)]
    for i, (a, f) in enumerate(zip(of.attention, of.feed_forward, strict=True)):
        rows += [(f"block {i} attention", a), (f"block {i} feed-forward", f)]
    rows.append(("head", of.head))
    bars = Bars(tuple((name, ms, f"{ms:.2f} ms") for name, ms in rows), "forward")
    return [Heading(f"A forward pass over {of.tokens} tokens: {of.total:.2f} ms"), bars, receipt(of.receipt)]


def cache_speed(t: Trace, of: CacheSpeed) -> list[Panel]:
    rows = [
        ("decode with the cache", of.decode),
        (f"decode without it: {of.tokens} tokens", of.uncached),
        (f"prefill of {of.tokens - 1} tokens", of.prefill),
        *([] if of.source is None else [("encoding of the source", of.source)]),
    ]
    bars = Bars(tuple((name, ms, f"{ms:.2f} ms") for name, ms in rows), "key")
    return [Heading("Time that the KV cache saves"), bars, receipt(of.receipt)]


def fork(t: Trace, of: Fork) -> list[Panel]:
    if of.diverges_at is not None:
        where = f"they differ from token {of.diverges_at} on"
    else:
        where = "they are equal" if of.ends_at is None else f"one ends at token {of.ends_at}, the other continues"
    rows = tuple(
        (
            (str(one.position), None),
            ("" if one.token is None else show_token(one.token), None),
            ("" if one.other is None else show_token(one.other), None),
            ("" if one.kl is None else format_number(one.kl), None),
        )
        for one in of.steps
    )
    header = ("", "this text", "other text", "KL of the next token, nats")
    return [Heading(f"Two texts: {where}"), Table(header, rows), receipt(of.receipt)]


def alignment(t: Trace, of: Alignment) -> list[Panel]:
    source, target = (tuple(show_token(one.text) for one in side) for side in (of.source, of.target))
    heads = "mean of all layers and heads" if of.layer is None else f"layer {of.layer}"
    heads += "" if of.head is None else f", head {of.head}"
    label = f"rows are target tokens, columns are source tokens; {heads}"
    return [Heading("Alignment"), MatrixPanel(of.probs, target, source, True, label=label), receipt(of.receipt)]


def _likely(one: LikelyToken) -> tuple[str, float]:
    prob = math.exp(one.logprob)
    return f"{show_token(one.token)} {format_percent(prob)}", prob


def _texts(tokens: Sequence) -> str:
    return " ".join(show_token(one.text) for one in tokens)

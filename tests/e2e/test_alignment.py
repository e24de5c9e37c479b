"""Browser tests of the alignment view: drawn values equal those of the trace."""

import numpy as np
import pytest
from inspect_subjects import subject

from e2e.conftest import RunningServer, assert_accessible
from e2e.pixels import FRACTION_BOUND, SIGNED_BOUND, drawn_fractions, drawn_values
from e2e.test_page import is_close, numbers_in, parse_numbers, shown_text, view_path
from glassformer.inspect.edits.edit import from_json

SOURCE, TARGET = "a dog ate", "the cat sat"


@pytest.fixture(scope="module")
def translators():
    kinds = {
        "pair": "encoder-decoders",
        "additive": "recurrent encoder-decoders",
        "blind": "recurrent encoder-decoders",
    }
    return {name: subject(kind, "no attention" if name == "blind" else name)[0] for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def pairs(translators):
    with RunningServer(translators) as one:
        yield one


def open_view(open_page, pairs, model, **place):
    return open_page(pairs.url + view_path("alignment", SOURCE, model=model, _target=TARGET, **place))


def notice_text(view):
    """Return the text of the notice."""
    return shown_text(view.locator("gf-notice [role=status] p").first)


def drawn_alignment(view):
    """Return the drawn alignment as attention weights."""
    canvas = view.locator("gf-alignment-matrix gf-matrix canvas").first
    canvas.wait_for()
    return drawn_fractions(canvas)


def test_encoder_decoder_alignment(open_page, pairs, translators):
    t = translators["pair"].trace(SOURCE, TARGET)
    page = open_view(open_page, pairs, "pair", layer=1, head=2, query=2, key=3)
    view = page.locator("gf-view-alignment")
    assert np.abs(drawn_alignment(view) - t.alignment().probs.numpy()).max() <= FRACTION_BOUND
    view.get_by_role("button", name="one head").click()
    view.get_by_text('t["blocks.1.cross.probs"][2]').wait_for()
    probs = t["blocks.1.cross.probs"].tensor[2].numpy()
    assert np.abs(drawn_alignment(view) - probs).max() <= FRACTION_BOUND
    bars = {int(numbers_in(row)[0]): numbers_in(row)[-1] for row in view.locator(".top gf-bars tr").all()}
    assert all(abs(value - 100 * probs[2, key]) <= 0.11 for key, value in bars.items())
    assert 3 in bars

    lines = [shown_text(one) for one in view.locator("gf-attention-steps ol > li").all()]
    q, k = t["blocks.1.cross.q_rot"][2, 2].double(), t["blocks.1.cross.k_rot"][3, 2].double()
    assert is_close(parse_numbers(lines[0].split("[0]:")[1])[2], q[0] * k[0])
    assert is_close(parse_numbers(lines[1])[-1], q @ k)
    assert is_close(parse_numbers(lines[5])[-1], 100 * probs[2, 3], 2)
    strips = view.locator("gf-attention-steps gf-strip canvas").all()
    size = (q * k).abs().max().item()
    assert np.abs(drawn_values(strips[2], "plain", size)[0] - (q * k).numpy()).max() <= SIGNED_BOUND * size
    assert np.abs(drawn_fractions(strips[3])[0] - probs[2]).max() <= FRACTION_BOUND

    view.get_by_role("button", name="self, block 0 of the encoder").click()
    view.get_by_role("heading", name="Encoder self-attention, step by step: block 0, head 2").wait_for()
    inner = t["encoder.blocks.0.attn.probs"][2, 2, 3].item()
    assert is_close(numbers_in(view.locator("gf-attention-steps ol > li").nth(5))[-1], 100 * inner, 2)


def test_arrow_keys_move_target_and_source_positions(open_page, pairs, translators):
    t = translators["pair"].trace(SOURCE, TARGET)
    page = open_view(open_page, pairs, "pair", query=0, key=len(t.source) - 2)
    drawn_alignment(page.locator("gf-view-alignment"))
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"location.hash.includes('key={len(t.source) - 1}') && location.hash.includes('query=1')")


def test_recurrent_alignment_and_comparison_with_other_models(open_page, pairs, translators):
    t = translators["additive"].trace(SOURCE, TARGET)
    page = open_view(open_page, pairs, "additive", query=3, key=1)
    view = page.locator("gf-view-alignment")
    assert np.abs(drawn_alignment(view) - t["rnn.probs"].tensor.numpy()).max() <= FRACTION_BOUND
    context, state = t["rnn.context"][3].numpy(), t["rnn.states"][1].numpy()
    view.locator("gf-strip canvas").nth(2).wait_for()
    size = max(np.abs(context).max(), np.abs(state).max())
    strips = view.locator("gf-strip canvas").all()
    for canvas, real in zip(strips, (state, t["rnn.probs"][3, 1].item() * state, context), strict=True):
        assert np.abs(drawn_values(canvas, "value", size)[0] - real).max() <= SIGNED_BOUND * size

    view.get_by_role("button", name="Compare with pair, blind").click()
    small = view.locator("gf-alignment-matrix[small] gf-matrix canvas")
    small.wait_for()
    real = translators["pair"].trace(SOURCE, TARGET).alignment().probs.numpy()
    assert np.abs(drawn_fractions(small) - real).max() <= FRACTION_BOUND
    assert "has no attention" in notice_text(view.locator(".several"))


def test_cache_includes_source(open_page, pairs, translators):
    t = translators["pair"].trace(SOURCE, TARGET)
    view = open_page(pairs.url + view_path("cache", SOURCE, model="pair", _target=TARGET, layer=1)).locator(
        "gf-view-cache"
    )
    view.locator("gf-matrix canvas").nth(1).wait_for()
    for i, name in enumerate(("attn", "cross")):
        mass = t[f"blocks.1.{name}.probs"].tensor.sum(1).numpy()
        assert np.abs(drawn_values(view.locator("gf-matrix canvas").nth(i), "key", mass.max()) - mass).max() <= (
            SIGNED_BOUND * mass.max()
        )
    of_block, n_layers = 2 * 4 * 12 * 4, t.config.n_layers  # keys and values, heads, head_dim, bytes

    def held(n):
        return f"{n_layers * of_block * (n + len(t.source)) / 1024:.2f} KiB"

    assert [numbers_in(one)[-1] for one in view.locator(".layer.source").all()] == [len(t.source)] * n_layers
    assert held(len(t)) in shown_text(view.locator("section > p").first)
    view.locator("input[type=range]").fill("1")
    view.get_by_text(held(1)).wait_for()
    assert [numbers_in(one)[-1] for one in view.locator(".layer.source").all()] == [len(t.source)] * n_layers
    view.get_by_text("the same logits").wait_for()
    view.get_by_text("encoding the source, once").wait_for()


def test_embedding_tables_of_recurrent_model(open_page, pairs, translators):
    model = translators["additive"].model
    t = translators["additive"].trace(SOURCE, TARGET)
    view = open_page(
        pairs.url + view_path("embedding", SOURCE, model="additive", _target=TARGET, query=2, key=1)
    ).locator("gf-view-embedding")
    for table, rows, token in (
        ("input", model.target_embed.weight, t.ids[2]),
        ("source", model.source_embed.weight, t.source.ids[1]),
        ("output", model.head.weight, t.ids[2]),
    ):
        view.get_by_role("button", name=f"{table} table").click()
        view.get_by_text(f"is row {token}, with norm").wait_for()
        row = rows[token].detach().double().numpy()
        top = np.abs(row).max()
        strip = view.locator("gf-strip").first
        strip.get_by_text(f"{len(row)} values").wait_for()
        assert np.abs(drawn_values(strip.locator("canvas"), "residual", top)[0] - row).max() <= SIGNED_BOUND * top
        view.locator("svg circle").first.wait_for()


@pytest.mark.parametrize("model", ["pair", "additive", "blind"])
def test_accessibility_and_no_horizontal_scrolling(open_page, pairs, model):
    page = open_view(open_page, pairs, model, query=1, key=1)
    page.get_by_role("button", name="Compare with").click()
    page.locator(".several gf-alignment-matrix").first.wait_for()
    page.wait_for_load_state("networkidle")
    assert_accessible(page)


@pytest.mark.parametrize(("model", "given"), [("pair", True), ("pair", False), ("additive", True)])
def test_causal_test_masks_key_and_regenerates(open_page, pairs, translators, model, given):
    one, place = translators[model], {"layer": 1, "head": 2} if model == "pair" else {}
    point = {"point": "blocks.1.cross.scores", "head": 2} if model == "pair" else {"point": "rnn.scores"}
    edit = {"op": "knockout", **point, "query": 0, "key": 2}
    target = {"_target": TARGET} if given else {}
    page = open_page(
        pairs.url + view_path("alignment", SOURCE, model=model, max_tokens=5, query=0, key=2, **place, **target)
    )
    cause, view = page.locator("gf-view-alignment gf-causal-test"), page.locator("gf-view-alignment")
    cause.get_by_role("button", name="Mask key 2 for query 0, generate again").click()
    cause.locator("dl").wait_for()
    for shown, edits in zip(cause.locator("dd").all_inner_texts(), ([], [from_json(edit)]), strict=True):
        real = "".join(one.trace(SOURCE, max_tokens=5, edit=edits).target_tokens)
        assert shown == real.translate({32: "·", 10: "⏎", 9: "⇥", 13: "␍"})
    cause.get_by_role("button", name="Keep this edit").click()
    page.wait_for_function("location.hash.includes('knockout')")
    if model == "pair":
        view.get_by_role("button", name="one head").click()
        view.get_by_text('t["blocks.1.cross.probs"][2]').wait_for()
    options = {"target": TARGET} if given else {"max_tokens": 5}
    t = one.trace(SOURCE, **options, edit=[from_json(edit)])
    want = t["rnn.probs"].tensor.numpy() if model == "additive" else t["blocks.1.cross.probs"].tensor[2].numpy()
    page.wait_for_load_state("networkidle")
    assert want[0, 2] == 0
    assert np.abs(drawn_alignment(view) - want).max() <= FRACTION_BOUND


def test_causal_test_of_decoder_self_attention(open_page, pairs):
    page = open_page(pairs.url + view_path("cell", SOURCE, model="pair", max_tokens=5, query=1, key=0, _target=TARGET))
    cause = page.locator("gf-view-cell gf-causal-test")
    cause.get_by_role("button", name="Mask key 0 for query 1").click()
    cause.locator("dl").wait_for()


def test_unavailable_views_show_reason(open_page, pairs):
    page = open_view(open_page, pairs, "blind")
    assert "has no attention" in notice_text(page.locator("gf-view-alignment"))
    for view, why in (("cell", "no heads"), ("lens", "no blocks"), ("cache", "caches no past tokens")):
        page = open_page(pairs.url + view_path(view, SOURCE, model="blind", _target=TARGET))
        assert why in notice_text(page.locator("main"))


def test_alignment_of_decoder_shows_reason(open_page, server):
    page = open_page(server.url + view_path("alignment"))
    assert "has no source" in notice_text(page.locator("main"))


def test_changed_weights_change_view(open_page):
    one = subject("encoder-decoders", "pair")[0]
    with RunningServer({"pair": one}) as server:
        before = drawn_alignment(open_view(open_page, server, "pair").locator("gf-view-alignment"))
        one.model.blocks[0].cross.q.weight.data += 0.1
        after = drawn_alignment(open_view(open_page, server, "pair").locator("gf-view-alignment"))
    assert np.abs(after - one.trace(SOURCE, TARGET).alignment().probs.numpy()).max() <= FRACTION_BOUND
    assert np.abs(after - before).max() > 2 * FRACTION_BOUND


@pytest.mark.parametrize(
    ("model", "chosen", "how", "shape"),
    [
        ("pair", {"_over": "heads", "_sweep_attention": "cross"}, {"over": "heads", "attention": "cross"}, (2, 4)),
        ("pair", {"_over": "cells", "_sweep_attention": "encoder"}, {"over": "cells", "attention": "encoder"}, (2, 5)),
        ("additive", {}, {"over": "positions"}, (1, 5)),
    ],
)
def test_sweep_over_encoder_and_cross_attention(open_page, pairs, translators, model, chosen, how, shape):
    t = translators[model].trace(SOURCE, TARGET)
    rows = list(translators[model].sweep(t, position=2, **how))
    values = np.zeros(shape)
    for row in rows:
        values[0 if shape[0] == 1 else row.layer, row.position if row.head is None else row.head] = row.change
    address = view_path("fork", SOURCE, model=model, _target=TARGET, _sweep=1, query=2, **chosen)
    page = open_page(pairs.url + address)
    page.locator("gf-sweep").get_by_text(f"{len(rows)} of {len(rows)}").wait_for()
    view = page.locator("gf-sweep")
    canvas = view.locator("gf-matrix canvas")
    assert np.abs(drawn_values(canvas, "plain", values.max()) - values).max() <= SIGNED_BOUND * values.max()
    if model == "additive":
        assert view.get_by_label("Sweep over").locator("option").all_inner_texts() == ["every source token"]

"""View 14 in a real browser: what it draws of a pair of texts is what Python's trace of them holds."""

import numpy as np
import pytest
from inspect_subjects import subject

from e2e.conftest import AXE, Served, missing
from e2e.pixels import SHARE_BOUND, SIGNED_BOUND, shares, signed
from e2e.test_page import at, close, numbers, said
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
    with Served(translators) as one:
        yield one


def opened(open_page, pairs, model, **place):
    return open_page(pairs.url + at("alignment", SOURCE, model=model, _target=TARGET, **place))


def reason(view):
    """Why there is no picture."""
    return said(view.locator("gf-refused [role=status] p").first)


def drawn(view):
    """The alignment's canvas as shares."""
    canvas = view.locator("gf-aligned gf-matrix canvas").first
    canvas.wait_for()
    return shares(canvas)


def test_an_encoder_decoder(open_page, pairs, translators):
    t = translators["pair"].trace(SOURCE, TARGET)
    page = opened(open_page, pairs, "pair", layer=1, head=2, query=2, key=3)
    view = page.locator("gf-view-alignment")
    assert np.abs(drawn(view) - t.alignment().probs.numpy()).max() <= SHARE_BOUND
    view.get_by_role("button", name="one head").click()
    view.get_by_text('t["blocks.1.cross.probs"][2]').wait_for()
    probs = t["blocks.1.cross.probs"].tensor[2].numpy()
    assert np.abs(drawn(view) - probs).max() <= SHARE_BOUND
    bars = {int(numbers(said(row))[0]): numbers(said(row))[-1] for row in view.locator(".top gf-bars tr").all()}
    assert all(abs(value - 100 * probs[2, key]) <= 0.11 for key, value in bars.items())
    assert 3 in bars

    lines = [said(one) for one in view.locator("gf-worked ol > li").all()]
    q, k = t["blocks.1.cross.q_rot"][2, 2].double(), t["blocks.1.cross.k_rot"][3, 2].double()
    assert close(numbers(lines[0].split("[0]:")[1])[2], q[0] * k[0])
    assert close(numbers(lines[1])[-1], q @ k)
    assert close(numbers(lines[5])[-1], 100 * probs[2, 3], 2)
    strips = view.locator("gf-worked gf-strip canvas").all()
    size = (q * k).abs().max().item()
    assert np.abs(signed(strips[2], "plain", size)[0] - (q * k).numpy()).max() <= SIGNED_BOUND * size
    assert np.abs(shares(strips[3])[0] - probs[2]).max() <= SHARE_BOUND

    view.get_by_role("button", name="self, block 0 of the encoder").click()
    view.get_by_role("heading", name="The encoder's attention, worked out: block 0, head 2").wait_for()
    inner = t["encoder.blocks.0.attn.probs"][2, 2, 3].item()
    assert close(numbers(said(view.locator("gf-worked ol > li").nth(5)))[-1], 100 * inner, 2)


def test_arrows_move_along_the_target_and_the_source(open_page, pairs, translators):
    t = translators["pair"].trace(SOURCE, TARGET)
    page = opened(open_page, pairs, "pair", query=0, key=len(t.source) - 2)
    drawn(page.locator("gf-view-alignment"))
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"location.hash.includes('key={len(t.source) - 1}') && location.hash.includes('query=1')")


def test_a_recurrent_model_and_the_same_pair_through_others(open_page, pairs, translators):
    t = translators["additive"].trace(SOURCE, TARGET)
    page = opened(open_page, pairs, "additive", query=3, key=1)
    view = page.locator("gf-view-alignment")
    assert np.abs(drawn(view) - t["rnn.probs"].tensor.numpy()).max() <= SHARE_BOUND
    context, state = t["rnn.context"][3].numpy(), t["rnn.states"][1].numpy()
    view.locator("gf-strip canvas").nth(2).wait_for()
    size = max(np.abs(context).max(), np.abs(state).max())
    strips = view.locator("gf-strip canvas").all()
    for canvas, real in zip(strips, (state, t["rnn.probs"][3, 1].item() * state, context), strict=True):
        assert np.abs(signed(canvas, "value", size)[0] - real).max() <= SIGNED_BOUND * size

    view.get_by_role("button", name="Read it with pair, blind").click()
    small = view.locator("gf-aligned[small] gf-matrix canvas")
    small.wait_for()
    real = translators["pair"].trace(SOURCE, TARGET).alignment().probs.numpy()
    assert np.abs(shares(small) - real).max() <= SHARE_BOUND
    assert "has no attention" in reason(view.locator(".several"))


def test_the_cache_has_a_row_for_the_source(open_page, pairs, translators):
    t = translators["pair"].trace(SOURCE, TARGET)
    view = open_page(pairs.url + at("cache", SOURCE, model="pair", _target=TARGET, layer=1)).locator("gf-view-cache")
    view.locator("gf-matrix canvas").nth(1).wait_for()
    for i, name in enumerate(("attn", "cross")):
        mass = t[f"blocks.1.{name}.probs"].tensor.sum(1).numpy()
        assert np.abs(signed(view.locator("gf-matrix canvas").nth(i), "key", mass.max()) - mass).max() <= (
            SIGNED_BOUND * mass.max()
        )
    of_block, n_layers = 2 * 4 * 12 * 4, t.config.n_layers  # keys and values, heads, numbers, bytes

    def held(n):
        return f"{n_layers * of_block * (n + len(t.source)) / 1024:.2f} KiB"

    assert [numbers(said(one))[-1] for one in view.locator(".layer.source").all()] == [len(t.source)] * n_layers
    assert held(len(t)) in said(view.locator("section > p").first)
    view.locator("input[type=range]").fill("1")
    view.get_by_text(held(1)).wait_for()
    assert [numbers(said(one))[-1] for one in view.locator(".layer.source").all()] == [len(t.source)] * n_layers
    view.get_by_text("the same logits").wait_for()
    view.get_by_text("reading the source, once").wait_for()


def test_tables_of_a_recurrent_model(open_page, pairs, translators):
    model = translators["additive"].model
    t = translators["additive"].trace(SOURCE, TARGET)
    view = open_page(pairs.url + at("embedding", SOURCE, model="additive", _target=TARGET, query=2, key=1)).locator(
        "gf-view-embedding"
    )
    for table, rows, token in (
        ("input", model.target_embed.weight, t.ids[2]),
        ("source", model.source_embed.weight, t.source.ids[1]),
        ("output", model.head.weight, t.ids[2]),
    ):
        view.get_by_role("button", name=f"{table} table").click()
        view.get_by_text(f"is row {token}, of length").wait_for()
        row = rows[token].detach().double().numpy()
        top = np.abs(row).max()
        strip = view.locator("gf-strip").first
        strip.get_by_text(f"{len(row)} numbers").wait_for()
        assert np.abs(signed(strip.locator("canvas"), "residual", top)[0] - row).max() <= SIGNED_BOUND * top
        view.locator("svg circle").first.wait_for()


@pytest.mark.parametrize("model", ["pair", "additive", "blind"])
def test_axe_finds_nothing_serious_and_nothing_is_scrolled_sideways(open_page, pairs, model):
    if not AXE.is_file():
        missing(f"{AXE}: `make page` brings it")
    page = opened(open_page, pairs, model, query=1, key=1)
    page.get_by_role("button", name="Read it with").click()
    page.locator(".several gf-aligned").first.wait_for()
    page.wait_for_load_state("networkidle")
    page.evaluate(AXE.read_text())
    for width, height, scheme in ((1280, 800, "light"), (1280, 800, "dark"), (390, 844, "light")):
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        told = "\n".join(f"{one['id']}: {[node['html'][:160] for node in one['nodes'][:3]]}" for one in serious)
        assert not serious, f"{width}×{height}, {scheme}: {told}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("model", "given"), [("pair", True), ("pair", False), ("additive", True)])
def test_the_cell_looked_at_is_hidden_and_the_text_written_anew(open_page, pairs, translators, model, given):
    """Beside the text without the edit; which is then kept, and the picture is the one under it."""
    one, place = translators[model], {"layer": 1, "head": 2} if model == "pair" else {}
    point = {"point": "blocks.1.cross.scores", "head": 2} if model == "pair" else {"point": "rnn.scores"}
    edit = {"op": "knockout", **point, "query": 0, "key": 2}
    target = {"_target": TARGET} if given else {}
    page = open_page(pairs.url + at("alignment", SOURCE, model=model, write=5, query=0, key=2, **place, **target))
    cause, view = page.locator("gf-view-alignment gf-cause"), page.locator("gf-view-alignment")
    cause.get_by_role("button", name="Hide key 2 from query 0 here, and write anew").click()
    cause.locator("dl").wait_for()
    for shown, edits in zip(cause.locator("dd").all_inner_texts(), ([], [from_json(edit)]), strict=True):
        real = "".join(one.trace(SOURCE, max_tokens=5, edit=edits).target_tokens)
        assert shown == real.translate({32: "·", 10: "⏎", 9: "⇥", 13: "␍"})
    cause.get_by_role("button", name="Keep the edit, and look around").click()
    page.wait_for_function("location.hash.includes('knockout')")
    if model == "pair":
        view.get_by_role("button", name="one head").click()
        view.get_by_text('t["blocks.1.cross.probs"][2]').wait_for()
    how = {"target": TARGET} if given else {"max_tokens": 5}
    t = one.trace(SOURCE, **how, edit=[from_json(edit)])
    want = t["rnn.probs"].tensor.numpy() if model == "additive" else t["blocks.1.cross.probs"].tensor[2].numpy()
    page.wait_for_load_state("networkidle")
    assert want[0, 2] == 0
    assert np.abs(drawn(view) - want).max() <= SHARE_BOUND


def test_a_decoders_own_heads_are_tried_too(open_page, pairs):
    page = open_page(pairs.url + at("cell", SOURCE, model="pair", write=5, query=1, key=0, _target=TARGET))
    cause = page.locator("gf-view-cell gf-cause")
    cause.get_by_role("button", name="Hide key 0 from query 1 here").click()
    cause.locator("dl").wait_for()


def test_what_has_no_meaning_says_why(open_page, pairs):
    page = opened(open_page, pairs, "blind")
    assert "has no attention" in reason(page.locator("gf-view-alignment"))
    for view, why in (("cell", "no heads"), ("lens", "no blocks"), ("cache", "keeps no past tokens")):
        page = open_page(pairs.url + at(view, SOURCE, model="blind", _target=TARGET))
        assert why in reason(page.locator("main"))


def test_a_decoder_has_no_source(open_page, served):
    page = open_page(served.url + at("alignment"))
    assert "reads no source" in reason(page.locator("main"))


def test_a_change_of_the_model_changes_the_picture(open_page):
    one = subject("encoder-decoders", "pair")[0]
    with Served({"pair": one}) as served:
        before = drawn(opened(open_page, served, "pair").locator("gf-view-alignment"))
        one.model.blocks[0].cross.q.weight.data += 0.1
        after = drawn(opened(open_page, served, "pair").locator("gf-view-alignment"))
    assert np.abs(after - one.trace(SOURCE, TARGET).alignment().probs.numpy()).max() <= SHARE_BOUND
    assert np.abs(after - before).max() > 2 * SHARE_BOUND


@pytest.mark.parametrize(
    ("model", "chosen", "how", "shape"),
    [
        ("pair", {"_over": "heads", "_side": "cross"}, {"over": "heads", "attention": "cross"}, (2, 4)),
        ("pair", {"_over": "cells", "_side": "encoder"}, {"over": "cells", "attention": "encoder"}, (2, 5)),
        ("additive", {}, {"over": "positions"}, (1, 5)),
    ],
)
def test_a_sweep_goes_through_either_side(open_page, pairs, translators, model, chosen, how, shape):
    t = translators[model].trace(SOURCE, TARGET)
    rows = list(translators[model].sweep(t, position=2, **how))
    values = np.zeros(shape)
    for row in rows:
        values[0 if shape[0] == 1 else row.layer, row.position if row.head is None else row.head] = row.change
    address = at("fork", SOURCE, model=model, _target=TARGET, _sweep=1, query=2, **chosen)
    page = open_page(pairs.url + address)
    page.locator("gf-fork-sweep").get_by_text(f"{len(rows)} of {len(rows)}").wait_for()
    view = page.locator("gf-fork-sweep")
    canvas = view.locator("gf-matrix canvas")
    assert np.abs(signed(canvas, "plain", values.max()) - values).max() <= SIGNED_BOUND * values.max()
    if model == "additive":
        assert view.get_by_label("What is gone through").locator("option").all_inner_texts() == [
            "every token of the source"
        ]

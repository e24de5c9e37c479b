"""View 14 in a real browser: what it draws of a pair of texts is what Python's trace of them holds."""

import numpy as np
import pytest
from inspect_subjects import subject

from e2e.conftest import AXE, Served, missing
from e2e.pixels import SHARE_BOUND, SIGNED_BOUND, shares, signed
from e2e.test_page import at, close, numbers, said

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


def test_nobody_is_offered_an_edit_that_is_refused(open_page, pairs):
    page = open_page(pairs.url + at("cell", SOURCE, model="pair", _target=TARGET))
    page.locator("gf-view-cell gf-worked ol").wait_for()
    assert page.locator("gf-view-cell gf-cause button").count() == 0


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

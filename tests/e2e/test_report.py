"""Browser tests of reports opened from a file: values equal those of the trace, and no request is sent."""

import gzip
import json
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from inspect_subjects import subject

from e2e.pixels import FRACTION_BOUND, drawn_fractions
from glassformer.errors import CapacityError, RequestError
from glassformer.inspect.edits.edit import ablate
from glassformer.inspect.present import report_data as bake
from glassformer.inspect.present.paths import cache_key
from glassformer.inspect.present.router import LocalRouter
from glassformer.inspect.views.focus import focus

TEXT = "Once Max got a key. Soon Ann found a shell. Max gave the key to Ann."


@pytest.fixture(scope="module")
def t(lm):
    return lm.trace(TEXT, max_tokens=4, temperature=0)


@pytest.fixture(scope="module")
def selection(t):
    return focus(t, layer=1, head=3)


@pytest.fixture(scope="module")
def report(t, selection, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert t.export_html(path, focus=selection, name="stories") == path.stat().st_size
    return path


@pytest.fixture
def opened(browser):
    """Return a function that opens a file in an offline browser. Afterwards check that only the file was requested."""
    wrong, asked = [], []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)

    def open_(path, address=""):
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda one: asked.append(one.url) if not one.url.startswith(("data:", "blob:")) else None)
        page.goto(path.as_uri() + address)
        return page

    yield open_
    context.close()
    assert not wrong
    assert all(url.startswith("file:") and url.split("#")[0].endswith(".html") for url in asked), asked


def stored_responses(path) -> dict:
    packed = re.search(r'id="gf-answers">([^<]+)<', path.read_text())[1]
    return json.loads(gzip.decompress(b64decode(packed)))


def test_report_shows_values_of_trace(opened, report, t, selection):
    page = opened(report)
    canvas = page.locator("gf-view-cell gf-matrix canvas").first
    canvas.wait_for()
    drawn, real = drawn_fractions(canvas), t.rows("blocks.1.attn.probs", head=3).tensor.numpy()
    visible = np.tril(np.ones_like(real, bool))
    assert np.isnan(drawn[~visible]).all()
    assert np.abs(drawn - real)[visible].max() <= FRACTION_BOUND
    cell = t.cell(layer=1, head=3, query=selection.query, key=selection.key)
    page.locator("gf-view-cell gf-formula").get_by_text(f"= {100 * cell.prob:.1f}%").wait_for()
    readout = page.locator("gf-view-cell gf-matrix #say").inner_text()
    assert float(readout.rsplit("=", 1)[1].replace("−", "-")) == pytest.approx(cell.prob, rel=1e-6)
    assert page.locator("gf-tokens button").count() == len(t)


def test_report_contains_neighbours_and_explains_limits(opened, report, t, selection):
    page = opened(report)
    page.locator("gf-view-cell gf-matrix canvas").first.wait_for()
    layers, heads = (page.locator("gf-view-cell gf-head-picker select").nth(i) for i in (0, 1))
    layers.select_option("2")
    real = t.cell(layer=2, head=3, query=selection.query, key=selection.key)
    page.locator("gf-view-cell gf-formula").get_by_text(f"= {100 * real.prob:.1f}%").wait_for()
    heads.select_option("0")
    reason = page.locator("gf-view-cell gf-notice p").first
    reason.wait_for()
    assert "glassformer serve stories" in reason.inner_text()
    assert bake.RULE["chosen"] in reason.inner_text()


def test_every_view_opens_except_alignment(opened, report):
    page = opened(report)
    page.locator("gf-view-cell gf-matrix canvas").first.wait_for()
    names = page.locator("gf-app nav[aria-label=Views] a").all_inner_texts()
    assert len(names) >= 12
    for name in names:
        page.locator("gf-app nav[aria-label=Views]").get_by_role("link", name=name, exact=True).click()
        page.locator("gf-app main section h2, gf-app main h2").first.wait_for()
        page.wait_for_load_state("networkidle")
        if name == "Alignment":
            page.locator("gf-notice").first.wait_for()
        else:
            assert page.locator("gf-notice").count() == 0, name


def test_report_has_no_model_controls(opened, report):
    page = opened(report)
    page.locator("gf-view-cell gf-matrix canvas").first.wait_for()
    assert page.locator("gf-header textarea, gf-header button").count() == 0
    assert "glassformer serve stories" in page.locator("gf-header [role=note]").inner_text()
    assert page.locator("gf-causal-test button").count() == 0


def test_link_opens_view_of_report(opened, report, selection):
    page = opened(report, "#/grid")
    page.locator("gf-view-grid gf-grid-row button[aria-pressed=true]").wait_for()
    pressed = page.locator("gf-view-grid gf-grid-row button[aria-pressed=true]").get_attribute("aria-label")
    assert pressed == "Block 1, head 3"


def test_edit_in_report_can_be_removed(opened, lm, t, selection, tmp_path):
    edited = lm.trace(TEXT, max_tokens=4, temperature=0, edit=[ablate("blocks.1.attn.z", head=1)])
    path = tmp_path / "edited.html"
    edited.export_html(path, focus=selection, before=t, name="stories")
    page = opened(path)
    canvas = page.locator("gf-view-cell gf-matrix canvas").first
    canvas.wait_for()
    page.get_by_role("link", name="Edits").click()
    page.locator("gf-text-comparison gf-receipt").wait_for()
    both = page.locator("gf-text-comparison .text").all()
    shown = ["".join(one.locator(".generated").all_inner_texts()).replace("·", " ") for one in both]
    assert shown == ["".join(one.tokens[one.n_prompt :]).replace("\n", "⏎") for one in (t, edited)]
    page.get_by_role("link", name="Attention").click()
    page.get_by_role("button", name="block 1, head 1 ablated", exact=True).click()
    page.wait_for_function("document.querySelector('gf-app').session.trace?.id === 't1'")
    page.get_by_role("button", name="block 1, head 1 ablated", exact=True).click()
    page.wait_for_function("document.querySelector('gf-app').session.trace?.id === 't0'")
    page.get_by_role("button", name="Remove block 1, head 1 ablated").click()
    page.wait_for_function("document.querySelector('gf-app').session.trace?.id === 't1'")
    page.locator("gf-view-cell gf-matrix canvas").first.wait_for()
    assert page.evaluate("document.querySelector('gf-app').session.trace.tokens.map(t => t.id)") == list(t.ids)
    fork = stored_responses(path)[cache_key("/v1/traces/t0/views/fork?other=t1")]
    assert fork[0] == "json"
    assert fork[1]["diverges_at"] == edited.fork(t).diverges_at


def test_stored_responses_equal_router_responses(report, t, lm):
    answers, stored = LocalRouter(lm, "stories"), stored_responses(report)
    id = answers.add(t)
    asked = list(bake.trace_paths(answers, id, focus(t, layer=1, head=3), "chosen"))
    assert {cache_key(path) for path in asked} <= set(stored)
    for path in asked[5::17]:
        kind, value = stored[cache_key(path)]
        data = answers.get(path)
        if kind == "tensor":
            assert b64decode(value) == data
        else:
            again, both = json.loads(data), json.loads(json.dumps(value))
            for one in (again, both):
                one.pop("receipt")
            assert torch.allclose(*(torch.tensor(flatten_numbers(one)) for one in (again, both)), rtol=1e-4, atol=1e-4)


def flatten_numbers(value) -> list[float]:
    if isinstance(value, dict | list):
        return [x for one in (value.values() if isinstance(value, dict) else value) for x in flatten_numbers(one)]
    return [float(value)] if isinstance(value, int | float) else []


def test_changed_weights_change_report(lm, t, selection, report, tmp_path):
    import glassformer

    own = glassformer.load("stories", device="cpu")
    with torch.no_grad():
        own.model.blocks[1].attn.q.weight += 0.1
    path = tmp_path / "other.html"
    own.trace(TEXT, max_tokens=4, temperature=0).export_html(path, focus=selection, name="stories")
    key = cache_key("/v1/traces/t0/tensors/blocks.1.attn.probs?slice=3,:,:")
    assert stored_responses(path)[key] != stored_responses(report)[key]


def test_too_large_report_raises(t, monkeypatch, tmp_path):
    monkeypatch.setattr(bake, "MAX_BYTES", 20_000)
    with pytest.raises(CapacityError, match="shorter text"):
        t.export_html(tmp_path / "big.html")
    assert not list(tmp_path.iterdir())
    with pytest.raises(RequestError, match="chosen, all"):
        t.export_html(tmp_path / "big.html", bake="some")


def test_bake_all_includes_bake_chosen(t, selection):
    answers = LocalRouter(t.lm, "stories")
    id = answers.add(t)
    chosen, all_paths = (set(bake.trace_paths(answers, id, selection, options)) for options in ("chosen", "all"))
    assert chosen < all_paths
    cells = {path for path in all_paths if "/cell?" in path}
    assert f"/v1/traces/t0/views/cell?layer=3&head=0&query={selection.query}&key=1" in cells
    assert "/v1/traces/t0/views/cell?layer=1&head=3&query=9&key=4" in cells


KINDS = {"pair": "encoder-decoders", "additive": "recurrent encoder-decoders", "bert": "encoders"}


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("given", [True, False])
def test_report_of_each_model_kind(opened, family, given, tmp_path):
    one, path = subject(KINDS[family], family)[0], tmp_path / "report.html"
    if family == "bert":
        t, view = one.trace("the cat sat"), "cell"
    else:
        t = one.trace("a dog ate", "the cat sat") if given else one.trace("a dog ate", max_tokens=4)
        view = "alignment"
    t.export_html(path, view=view)
    page = opened(path)
    canvas = page.locator(f"gf-view-{view} gf-matrix canvas").first
    canvas.wait_for()
    if family == "bert":
        selection = focus(t)
        real = t.rows(f"blocks.{selection.layer}.attn.probs", head=selection.head).tensor
    else:
        real = t.alignment().probs
    assert np.abs(drawn_fractions(canvas) - real.numpy()).max() <= FRACTION_BOUND
    refused = page.locator("gf-notice p")
    for name in page.locator("gf-app nav[aria-label=Views] a").all_inner_texts():
        page.locator("gf-app nav[aria-label=Views]").get_by_role("link", name=name, exact=True).click()
        page.locator("gf-app main section h2, gf-app main h2").first.wait_for()
        page.wait_for_load_state("networkidle")
        assert not [why for why in refused.all_inner_texts() if bake.RULE["chosen"] in why], name

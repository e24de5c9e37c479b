"""Browser tests of what captions and readouts state: each is true, or not stated."""

import pytest
import torch
from generate.scripted import make_tokenizer
from tiny import tiny

from e2e.conftest import RunningServer
from e2e.test_fork import both_texts, generated_text, open_view
from e2e.test_page import ASK, parse_numbers, shown_text, view_path
from glassformer.inspect.edits.edit import replace
from glassformer.inspect.views.focus import focus
from glassformer.models.language_model import LanguageModel

REASON = "Why this head:"


def tour_caption(page):
    return page.locator("gf-sidebar gf-tour-caption")


def caption_text(page) -> str:
    return " ".join(shown_text(one) for one in tour_caption(page).locator("p").all())


def shown_focus(page) -> list[int]:
    return page.evaluate(
        "(({layer, head, query, key}) => [layer, head, query, key])(document.querySelector('gf-app').session.cursor)"
    )


def test_late_focus_is_shown_and_explained(open_page, server, lm):
    page = open_page("about:blank")
    page.route("**/focus*", lambda route: (page.wait_for_timeout(2_500), route.continue_()))
    page.goto(server.url + view_path("cell", step=0))
    tour_caption(page).get_by_text(REASON).wait_for()
    result = focus(lm.trace(ASK, max_tokens=4, temperature=0))
    assert shown_focus(page) == [result.layer, result.head, result.query, result.key]
    assert f"{REASON} {result.because}." in caption_text(page)


@pytest.mark.parametrize("reason", ["failed", "selected"])
def test_no_reason_is_stated_for_another_head(open_page, server, reason):
    page = open_page("about:blank")
    if reason == "failed":
        page.route("**/focus*", lambda route: route.fulfill(status=500, json={"error": {"message": "no"}}))
        page.goto(server.url + view_path("cell", step=0))
    else:
        page.goto(server.url + view_path("cell", step=0, layer=2, head=1, query=5, key=3))
    tour_caption(page).get_by_text("Select any cell").wait_for()
    page.locator("gf-view-cell ol").wait_for()
    assert REASON not in caption_text(page)


def test_tour_compares_complete_texts(open_page, server, lm):
    trace = lm.trace(ASK, max_tokens=4, temperature=0)
    end = {"point": "final.logits", "value": 50, "dim": min(lm.end_ids), "position": trace.n_prompt}
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[replace(**end)])
    fork = trace.fork(edited)
    assert (fork.diverges_at, fork.ends_at) == (None, len(edited))
    assert len(edited) < len(trace)
    page = open_view(open_page, server, [{"op": "replace", **end}], step=12)
    assert both_texts(page) == [generated_text(trace), generated_text(edited)]
    ends = f"One text ends at token {len(edited)}"
    tour_caption(page).get_by_text(ends).wait_for()
    assert ends in shown_text(page.locator("gf-text-comparison .verdict"))


def test_tour_says_when_the_text_is_unchanged(open_page, server):
    identity = {"op": "scale", "point": "blocks.1.attn.z", "head": 3, "factor": 1}
    page = open_view(open_page, server, [identity], step=12)
    tour_caption(page).get_by_text("The same tokens are generated").wait_for()


@pytest.fixture(scope="module")
def long_trace():
    """Return a trace of more tokens than the page shows one by one."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    lm = LanguageModel(tiny("llama", vocab_size=tokenizer.vocab_size, context_length=512), tokenizer)
    text = "the cat sat on the mat. " * 60
    return lm.trace(lm.encode(text)[:315], max_tokens=0), lm


def hover_cell(page, trace, row: int, column: int) -> str:
    """Move the pointer to a cell of the overview of all tokens; return the readout."""
    frame = page.locator("gf-view-cell gf-matrix.all .frame")
    n, box = -(-len(trace) // 2), frame.bounding_box()
    frame.hover(position={"x": (column + 0.5) / n * box["width"], "y": (row + 0.5) / n * box["height"]})
    return shown_text(page.locator("gf-view-cell gf-matrix.all .say"))


CELLS = ((156, 150), (156, 3), (100, 40))


def test_readout_of_a_long_pattern_is_exact(open_page, long_trace):
    trace, lm = long_trace
    text = lm.tokenizer.decode(list(trace.ids))
    assert lm.encode(text) == list(trace.ids)
    with RunningServer({"long": lm}) as server:
        page = open_page(server.url + view_path("cell", text=text, max_tokens=0, layer=1, head=2, query=312, key=300))
        page.locator("gf-view-cell gf-matrix.all canvas").wait_for()
        probs = trace["blocks.1.attn.probs"].tensor[2]
        for row, column in CELLS:
            largest = probs[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].max().item()
            value = hover_cell(page, trace, row, column).split("=")[1].split("(")[0]
            assert parse_numbers(value)[0] == pytest.approx(largest, rel=2e-6, abs=1e-12)


def test_readout_of_a_long_pattern_in_a_report_states_its_bound(open_page, long_trace, tmp_path):
    trace, _ = long_trace
    path = tmp_path / "report.html"
    trace.export_html(path, view="cell", focus=focus(trace, layer=1, head=2))
    page = open_page(f"file://{path}")
    page.locator("gf-view-cell gf-matrix.all canvas").wait_for()
    probs = trace["blocks.1.attn.probs"].tensor[2]
    for row, column in CELLS:
        largest = probs[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].max().item()
        value, bound = parse_numbers(hover_cell(page, trace, row, column).split("=")[1].split("(")[0])
        assert abs(value - largest) <= bound < 0.01

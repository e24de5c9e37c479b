"""View 13's sweeps in a real browser: heat maps that fill as they run, against `lm.sweep`."""

import copy
import json
import threading
import time

import numpy as np
import pytest

import glassformer
from e2e.conftest import Served
from e2e.pixels import SIGNED_BOUND, pixels, signed
from e2e.test_fork import ASK, CUT, OTHER, address, opened, python, swept, texts, under, wait_for_edit
from e2e.test_page import at, numbers, said
from glassformer.inspect.edits.edit import ablate
from glassformer.inspect.sweep import sweep as sweeping


@pytest.fixture(scope="module")
def trace(lm):
    return lm.trace(ASK, max_tokens=4, temperature=0)


def table(rows, shape: tuple[int, int]) -> dict[tuple[int, int], sweeping.Swept]:
    """Rows of a sweep by the field that each is drawn in."""
    ends = {"attn.add": 0, "mlp.add": 1}
    found = {}
    for row in rows:
        column = row.head if row.head is not None else row.position
        found[row.layer, ends[row.edit.point.split(".", 2)[2]] if column is None else column] = row
    assert found.keys() == set(np.ndindex(*shape))
    return found


def changes(rows, shape: tuple[int, int]) -> np.ndarray:
    values = np.empty(shape)
    for field, row in table(rows, shape).items():
        values[field] = row.change
    return values


def test_a_sweep_over_heads(open_page, served, lm, trace):
    last = trace.n_prompt - 1
    page = opened(open_page, served, query=last)
    page.get_by_role("button", name="Run").click()
    rows = list(lm.sweep(trace, position=last))
    values = changes(rows, (4, 4))
    canvas = swept(page, 16)
    assert np.abs(signed(canvas, "plain", values.max()) - values).max() <= SIGNED_BOUND * values.max()
    again = python(page, lm, trace, "gf-fork-sweep")
    assert [row.value for row in again] == pytest.approx([row.value for row in rows], abs=1e-6)
    best = divmod(int(values.argmax()), 4)
    assert f"block {best[0]}, head {best[1]} silenced" in said(page.locator("gf-fork-sweep .run"))
    box = canvas.bounding_box()
    assert box is not None
    canvas.hover(position={"x": 2.5 * box["width"] / 4, "y": 1.5 * box["height"] / 4})
    shown = said(page.locator("gf-fork-sweep .say"))
    assert "block 1 · head 2" in " ".join(shown.split())
    assert abs(float(shown.split(":")[1].split()[0]) - values[1, 2]) <= 1e-6
    canvas.click(position={"x": 0.5 * box["width"] / 4, "y": 0.5 * box["height"] / 4})
    assert abs(float(said(page.locator("gf-fork-sweep .picked"))) - values[0, 0]) <= 1e-6
    table = page.locator("gf-fork-sweep gf-matrix table tr").all()
    assert [numbers(said(row))[-1] for row in table] == [pytest.approx(value, abs=6e-5) for value in values[0].tolist()]
    page.get_by_role("button", name="Keep this edit").click()
    wait_for_edit(page)
    assert address(page) == [CUT]
    assert texts(page)[1] == under(lm, ablate("blocks.0.attn.z", head=0))
    page.get_by_text("measured before the edits were changed").wait_for()
    kls = page.locator("gf-fork-texts .kl")
    assert abs(numbers(said(kls))[0] - values[0, 0]) <= 6e-5 * max(1, values[0, 0]), "the same by two ways"
    page.get_by_role("button", name="Run").click()
    page.get_by_text("measured before").wait_for(state="hidden")
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[ablate("blocks.0.attn.z", head=0)])
    values = changes(lm.sweep(edited, position=last), (4, 4))
    assert np.abs(signed(swept(page, 16), "plain", values.max()) - values).max() <= SIGNED_BOUND * values.max()


@pytest.mark.parametrize(
    ("over", "shape", "more", "how"),
    [
        ("layers", (4, 2), {"op": "scale", "factor": "0.25"}, {"op": "scale", "factor": 0.25}),
        ("positions", (1, 34), {"of": "logits"}, {"target": 0}),
        ("heads", (4, 4), {"of": "logits"}, {"target": -1}),
        ("cells", (4, 34), {"op": "patch", "from": OTHER, "of": "logits"}, {"op": "patch", "target": 0}),
    ],
)  # fmt: skip
def test_sweeps_of_every_kind(open_page, served, lm, trace, over, shape, more, how):
    last = trace.n_prompt - 1
    if how.get("target") == -1:  # left out: the likeliest, before the next
        how = {"target": trace["final.logits"].tensor[last].argmax().item()}
    elif "target" in how:
        best = trace["final.logits"].tensor[last].topk(2).indices.tolist()
        more, how = {**more, "lead": best[0], "against": best[1]}, {**how, "target": best[0], "rival": best[1]}
    if how.get("op") == "patch":
        how = {**how, "source": lm.trace(OTHER)}
    page = opened(open_page, served, query=last, _sweep="1", _over=over, **{f"_{k}": v for k, v in more.items()})
    rows = list(lm.sweep(trace, over=over, position=last, **how))
    values = changes(rows, shape)
    canvas, top = swept(page, len(rows)), np.abs(values).max()
    assert np.abs(signed(canvas, "plain", top) - values).max() <= SIGNED_BOUND * top
    again = python(page, lm, trace, "gf-fork-sweep")
    assert [row.change for row in again] == pytest.approx([row.change for row in rows], abs=1e-4)
    row, column = divmod(int(np.abs(values).argmax()), shape[1])
    box = canvas.bounding_box()
    assert box is not None
    canvas.click(position={"x": (column + 0.5) * box["width"] / shape[1], "y": (row + 0.5) * box["height"] / shape[0]})
    chosen = table(rows, shape)[row, column]
    value = chosen.value
    assert abs(float(said(page.locator("gf-fork-sweep .picked"))) - value) <= 1e-4 * max(1, abs(value))
    page.get_by_role("button", name="Keep this edit").click()
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 1")
    assert texts(page)[1] == under(lm, chosen.edit)


def test_a_sweep_that_cannot_be_says_why(open_page, served):
    page = opened(open_page, served, _op="scale", _factor="none")
    page.get_by_role("button", name="Run").click()
    page.locator("gf-fork-sweep [role=alert]").filter(has_text="factor").wait_for()


def test_a_value_that_is_no_number_is_marked(open_page, served):
    page = opened(open_page, served, _op="scale", _factor="1e39")
    page.get_by_role("button", name="Run").click()
    swept(page, 16)
    assert page.locator("gf-fork-sweep .odd").count() > 0
    page.get_by_text("no number").first.wait_for()
    page.locator("gf-fork-sweep .frame").focus()
    page.keyboard.press("ArrowRight")
    assert "NaN" in said(page.locator("gf-fork-sweep .picked"))


HELD = 40  # passes of a sweep, which then waits to be let go


@pytest.fixture
def held(lm, monkeypatch):
    """A server whose sweeps come row by row and wait in the middle; how many passes they took; what lets them go on."""
    monkeypatch.setattr(sweeping, "MAX_BATCH", 1)
    model, passes, gate = copy.deepcopy(lm.model), [], threading.Event()
    above = model.above

    def counted(x, step, first=0):
        passes.append(first)
        if len(passes) > HELD:
            gate.wait()
            time.sleep(0.02)  # so that whoever leaves is noticed before the end
        return above(x, step, first)

    with Served({"stories": glassformer.LanguageModel(model, lm.tokenizer)}) as served:
        yield served, passes, gate, lambda: setattr(model, "above", counted)
        gate.set()


def test_it_fills_as_it_runs_and_stops_when_told(open_page, held, trace):
    served, passes, gate, begin = held
    page = opened(open_page, served, query=trace.n_prompt - 1, _over="cells")
    begin()
    page.get_by_role("button", name="Run").click()
    matrix, progress = page.locator("gf-fork-sweep gf-matrix canvas"), page.locator("gf-fork-sweep progress")
    matrix.wait_for()
    shown = page.locator("gf-fork-sweep .run .num").first
    while int(shown.inner_text()) < 20:
        page.wait_for_timeout(10)
    there = pixels(matrix)[..., 3] > 0
    assert 20 <= there.sum() <= HELD, "what has come is drawn, and nothing else"
    assert there[3, : min(34, there.sum())].all(), "the last block first"
    assert progress.get_attribute("max") == "136"
    page.locator("gf-fork-sweep gf-matrix .frame").hover(position={"x": 300, "y": 8})
    assert said(page.locator("gf-fork-sweep .say")).strip().endswith("not yet (nats)")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(", stopped").wait_for()
    gate.set()
    while served.app.state.queue.state["running"]:
        time.sleep(0.01)
    assert len(passes) < 136, "the server's work has stopped too"
    assert (pixels(matrix)[..., 3] > 0).sum() == int(shown.inner_text()) <= HELD


def test_a_text_that_is_asked_for_goes_before_a_sweep(open_page, held, trace):
    served, passes, gate, begin = held
    page = opened(open_page, served, query=trace.n_prompt - 1, _over="cells")
    begin()
    page.get_by_role("button", name="Run").click()
    page.locator("gf-fork-sweep gf-matrix canvas").wait_for()
    page.get_by_role("button", name="Make this edit").click()
    page.get_by_text(", stopped").wait_for()
    gate.set()
    texts(page)
    assert passes.count(1) < 34, "the rest was not gone through"


def test_while_it_writes_no_older_text_stands_in_its_place(open_page, held, lm):
    served, passes, gate, begin = held
    page = opened(open_page, served, [CUT])
    assert texts(page)[1] == under(lm, ablate("blocks.0.attn.z", head=0))
    passes.extend([0] * HELD)
    begin()
    more = json.dumps([{**CUT, "head": 1}])
    page.evaluate("address => { location.hash = address }", at("fork", edits=more).removeprefix("/"))
    page.locator("gf-fork-texts").get_by_text("writing …").wait_for()
    assert page.locator("gf-fork-texts .verdict, gf-fork-texts .t, gf-fork-texts gf-receipt").count() == 0
    gate.set()
    assert texts(page)[1] == under(lm, ablate("blocks.0.attn.z", head=1))

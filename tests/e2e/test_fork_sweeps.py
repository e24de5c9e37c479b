"""Browser tests of sweeps: heat maps equal the results of `lm.sweep`."""

import copy
import json
import threading
import time

import numpy as np
import pytest

import glassformer
from e2e.conftest import RunningServer
from e2e.pixels import SIGNED_BOUND, drawn_values, pixels
from e2e.test_fork import (
    ASK,
    CUT,
    OTHER,
    address_edits,
    both_texts,
    evaluate_receipt,
    finished_sweep,
    generate_with,
    open_view,
    wait_for_edit,
)
from e2e.test_page import numbers_in, shown_text, view_path
from glassformer.inspect.edits.edit import ablate
from glassformer.inspect.sweep import sweep as sweeping


@pytest.fixture(scope="module")
def trace(lm):
    return lm.trace(ASK, max_tokens=4, temperature=0)


def results_by_cell(rows, shape: tuple[int, int]) -> dict[tuple[int, int], sweeping.SweepRow]:
    """Return the results of a sweep by (row, column) of the heat map."""
    ends = {"attn.add": 0, "mlp.add": 1}
    result = {}
    for row in rows:
        column = row.head if row.head is not None else row.position
        result[row.layer, ends[row.edit.point.split(".", 2)[2]] if column is None else column] = row
    assert result.keys() == set(np.ndindex(*shape))
    return result


def effects(rows, shape: tuple[int, int]) -> np.ndarray:
    values = np.empty(shape)
    for field, row in results_by_cell(rows, shape).items():
        values[field] = row.change
    return values


def test_sweep_over_heads(open_page, server, lm, trace):
    last = trace.n_prompt - 1
    page = open_view(open_page, server, query=last)
    page.get_by_role("button", name="Run").click()
    rows = list(lm.sweep(trace, position=last))
    values = effects(rows, (4, 4))
    canvas = finished_sweep(page, 16)
    assert np.abs(drawn_values(canvas, "plain", values.max()) - values).max() <= SIGNED_BOUND * values.max()
    again = evaluate_receipt(page, lm, trace, "gf-sweep")
    assert [row.value for row in again] == pytest.approx([row.value for row in rows], abs=1e-6)
    best = divmod(int(values.argmax()), 4)
    assert f"block {best[0]}, head {best[1]} ablated" in shown_text(page.locator("gf-sweep .run"))
    box = canvas.bounding_box()
    assert box is not None
    canvas.hover(position={"x": 2.5 * box["width"] / 4, "y": 1.5 * box["height"] / 4})
    shown = shown_text(page.locator("gf-sweep .say"))
    assert "block 1 · head 2" in " ".join(shown.split())
    assert abs(float(shown.split("=")[1].split()[0]) - values[1, 2]) <= 1e-6
    canvas.click(position={"x": 0.5 * box["width"] / 4, "y": 0.5 * box["height"] / 4})
    assert abs(float(shown_text(page.locator("gf-sweep .picked"))) - values[0, 0]) <= 1e-6
    table = page.locator("gf-sweep gf-matrix table tr").all()
    assert [numbers_in(row)[-1] for row in table] == [pytest.approx(value, abs=6e-5) for value in values[0].tolist()]
    page.get_by_role("button", name="Keep this edit").click()
    wait_for_edit(page)
    assert address_edits(page) == [CUT]
    assert both_texts(page)[1] == generate_with(lm, ablate("blocks.0.attn.z", head=0))
    page.get_by_text("outdated: the edits have changed").wait_for()
    kls = page.locator("gf-text-comparison .kl")
    assert abs(numbers_in(kls)[0] - values[0, 0]) <= 6e-5 * max(1, values[0, 0]), "both computations must agree"
    page.get_by_role("button", name="Run").click()
    page.get_by_text("outdated").wait_for(state="hidden")
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[ablate("blocks.0.attn.z", head=0)])
    values = effects(lm.sweep(edited, position=last), (4, 4))
    assert (
        np.abs(drawn_values(finished_sweep(page, 16), "plain", values.max()) - values).max()
        <= SIGNED_BOUND * values.max()
    )


@pytest.mark.parametrize(
    ("over", "shape", "more", "how"),
    [
        ("layers", (4, 2), {"op": "scale", "factor": "0.25"}, {"op": "scale", "factor": 0.25}),
        ("positions", (1, 34), {"metric": "logits"}, {"target": 0}),
        ("heads", (4, 4), {"metric": "logits"}, {"target": -1}),
        ("cells", (4, 34), {"op": "patch", "patch_text": OTHER, "metric": "logits"}, {"op": "patch", "target": 0}),
    ],
)  # fmt: skip
def test_sweep_operations_and_metrics(open_page, server, lm, trace, over, shape, more, how):
    last = trace.n_prompt - 1
    if how.get("target") == -1:  # default: the most likely token
        how = {"target": trace["final.logits"].tensor[last].argmax().item()}
    elif "target" in how:
        best = trace["final.logits"].tensor[last].topk(2).indices.tolist()
        more, how = (
            {**more, "target_token": best[0], "rival_token": best[1]},
            {**how, "target": best[0], "rival": best[1]},
        )
    if how.get("op") == "patch":
        how = {**how, "source": lm.trace(OTHER), "align": "start"}
    page = open_view(open_page, server, query=last, _sweep="1", _over=over, **{f"_{k}": v for k, v in more.items()})
    rows = list(lm.sweep(trace, over=over, position=last, **how))
    values = effects(rows, shape)
    canvas, top = finished_sweep(page, len(rows)), np.abs(values).max()
    assert np.abs(drawn_values(canvas, "plain", top) - values).max() <= SIGNED_BOUND * top
    again = evaluate_receipt(page, lm, trace, "gf-sweep")
    assert [row.change for row in again] == pytest.approx([row.change for row in rows], abs=1e-4)
    row, column = divmod(int(np.abs(values).argmax()), shape[1])
    box = canvas.bounding_box()
    assert box is not None
    canvas.click(position={"x": (column + 0.5) * box["width"] / shape[1], "y": (row + 0.5) * box["height"] / shape[0]})
    chosen = results_by_cell(rows, shape)[row, column]
    value = chosen.value
    assert abs(float(shown_text(page.locator("gf-sweep .picked"))) - value) <= 1e-4 * max(1, abs(value))
    page.get_by_role("button", name="Keep this edit").click()
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 1")
    assert both_texts(page)[1] == generate_with(lm, chosen.edit)


def test_invalid_sweep_shows_error(open_page, server):
    page = open_view(open_page, server, _op="scale", _factor="none")
    page.get_by_role("button", name="Run").click()
    page.locator("gf-sweep [role=alert]").filter(has_text="factor").wait_for()


def test_non_finite_effect_is_marked(open_page, server):
    page = open_view(open_page, server, _op="scale", _factor="3e38")
    page.get_by_role("button", name="Run").click()
    finished_sweep(page, 16)
    assert page.locator("gf-sweep .odd").count() > 0
    page.get_by_text("non-finite").first.wait_for()
    page.locator("gf-sweep .frame").focus()
    page.keyboard.press("ArrowRight")
    assert "NaN" in shown_text(page.locator("gf-sweep .picked"))


HELD = 40  # forward passes after which a sweep waits


@pytest.fixture
def held(lm, monkeypatch):
    """Start a server whose sweeps wait after HELD forward passes: (server, passes, gate that releases them, begin)."""
    monkeypatch.setattr(sweeping, "MAX_BATCH", 1)
    model, passes, gate = copy.deepcopy(lm.model), [], threading.Event()
    run_blocks = model.run_blocks

    def counted(x, step, first=0):
        passes.append(first)
        if len(passes) > HELD:
            gate.wait()
            time.sleep(0.02)  # so that a disconnect is noticed before the end
        return run_blocks(x, step, first)

    with RunningServer({"stories": glassformer.LanguageModel(model, lm.tokenizer)}) as server:
        yield server, passes, gate, lambda: setattr(model, "run_blocks", counted)
        gate.set()


def test_sweep_fills_incrementally_and_stops(open_page, held, trace):
    server, passes, gate, begin = held
    page = open_view(open_page, server, query=trace.n_prompt - 1, _over="cells")
    begin()
    page.get_by_role("button", name="Run").click()
    matrix, progress = page.locator("gf-sweep gf-matrix canvas"), page.locator("gf-sweep progress")
    matrix.wait_for()
    shown = page.locator("gf-sweep .run .num").first
    while int(shown.inner_text()) < 20:
        page.wait_for_timeout(10)
    there = pixels(matrix)[..., 3] > 0
    assert 20 <= there.sum() <= HELD, "only received results must be drawn"
    assert there[3, : min(34, there.sum())].all(), "the sweep starts with the last block"
    assert progress.get_attribute("max") == "136"
    page.locator("gf-sweep gf-matrix .frame").hover(position={"x": 300, "y": 8})
    assert shown_text(page.locator("gf-sweep .say")).strip().endswith("pending (nats)")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(", stopped").wait_for()
    gate.set()
    while server.app.state.queue.state["running"]:
        time.sleep(0.01)
    assert len(passes) < 136, "the server must stop the sweep"
    assert (pixels(matrix)[..., 3] > 0).sum() == int(shown.inner_text()) <= HELD


def test_new_trace_cancels_sweep(open_page, held, trace):
    server, passes, gate, begin = held
    page = open_view(open_page, server, query=trace.n_prompt - 1, _over="cells")
    begin()
    page.get_by_role("button", name="Run").click()
    page.locator("gf-sweep gf-matrix canvas").wait_for()
    page.get_by_role("button", name="Add edit").click()
    page.get_by_text(", stopped").wait_for()
    gate.set()
    both_texts(page)
    assert passes.count(1) < 34, "the server must cancel the sweep"


def test_comparison_is_hidden_during_generation(open_page, held, lm):
    server, passes, gate, begin = held
    page = open_view(open_page, server, [CUT])
    assert both_texts(page)[1] == generate_with(lm, ablate("blocks.0.attn.z", head=0))
    passes.extend([0] * HELD)
    begin()
    more = json.dumps([{**CUT, "head": 1}])
    page.evaluate("address => { location.hash = address }", view_path("fork", edits=more).removeprefix("/"))
    page.locator("gf-text-comparison").get_by_text("generating …").wait_for()
    assert (
        page.locator("gf-text-comparison .verdict, gf-text-comparison .t, gf-text-comparison gf-receipt").count() == 0
    )
    gate.set()
    assert both_texts(page)[1] == generate_with(lm, ablate("blocks.0.attn.z", head=1))

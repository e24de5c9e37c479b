"""The alignment SVG equals the tensor: position, opacity and tooltip of each cell."""

import xml.etree.ElementTree as ET

import pytest
import torch

from glassformer.inspect.drawing.alignment_svg import CELL, alignment_svg, svg_labels

SVG = "{http://www.w3.org/2000/svg}"


def test_cells_have_the_position_and_opacity_of_their_probability():
    source, target = ["the", "·third", "<&>"], ["0", "3", "-", "(end)"]
    probs = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).softmax(-1)
    probs[2] = torch.tensor([1.0, 0.0, 0.0])
    root = ET.fromstring(alignment_svg(source, target, probs, 'where "it" looked'))
    frame = next(e for e in root.iter(f"{SVG}rect") if e.get("class") == "frame")
    left, top = float(frame.get("x")), float(frame.get("y"))
    assert (float(frame.get("width")), float(frame.get("height"))) == (3 * CELL, 4 * CELL)
    drawn = torch.zeros(4, 3)
    for cell in (e for e in root.iter(f"{SVG}rect") if e.get("class") == "cell"):
        i, j = ((float(cell.get(at)) - begin) / CELL for at, begin in (("y", top), ("x", left)))
        assert (i, j) == pytest.approx((round(i), round(j)), abs=0.01)
        drawn[round(i), round(j)] = float(cell.get("fill-opacity"))
        assert cell[0].text == f"{target[round(i)]} attends to {source[round(j)]}: {cell.get('fill-opacity')}"
    torch.testing.assert_close(drawn, probs, atol=6e-5, rtol=0)
    texts = [e.text for e in root.iter(f"{SVG}text")]
    assert texts[0] == 'where "it" looked' == root.get("aria-label")
    assert texts[1:] == [*source, *target]


def test_all_cells_are_inside_the_viewbox():
    source, target = [f"token{i}" * (1 + i % 3) for i in range(20)], ["7"] * 5
    root = ET.fromstring(alignment_svg(source, target, torch.full((5, 20), 0.05), "x"))
    width, height = map(float, root.get("viewBox").split()[2:])
    for cell in (e for e in root.iter(f"{SVG}rect") if e.get("class") == "cell"):
        assert 0 < float(cell.get("x")) <= width - CELL
        assert 0 < float(cell.get("y")) <= height - CELL


def test_svg_labels_are_visible():
    assert svg_labels([" the", "", "\n", "<|end|>", "é"], "<|end|>") == ["·the", "·", "·", "(end)", "é"]

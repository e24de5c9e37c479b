"""PNG and terminal drawings: pixels equal the tensor's numbers, and every view has a drawing."""

import importlib
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from generate.scripted import make_tokenizer
from inspect_pictures import decoded
from PIL import Image
from rich.console import Console
from server.conftest import tiny_lm
from tiny import tiny_encoder_decoder

from glassformer.cli.terminal_panels import Terminal
from glassformer.errors import ConfigError
from glassformer.inspect.drawing import model_panels, trace_panels
from glassformer.inspect.drawing.draw import draw
from glassformer.inspect.drawing.panels import MatrixPanel, ReceiptPanel
from glassformer.inspect.drawing.png import render_png
from glassformer.inspect.edits.edit import ablate
from glassformer.inspect.views.focus import focus
from glassformer.inspect.views.registry import VIEWS
from glassformer.models.translator import Translator

TEXT = "a cat sat, a cat ran, a cat sat"


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("qwen3")


@pytest.fixture(scope="module")
def t(lm):
    return lm.trace(TEXT)


def translator_trace():
    tokenizer = make_tokenizer()
    sizes = {"encoder.vocab_size": tokenizer.vocab_size, "vocab_size": tokenizer.vocab_size}
    return Translator(tiny_encoder_decoder("separate", family="pair", **sizes), tokenizer).trace(
        "the cat", "the cat sat"
    )


def view_result(lm, t, name):
    """Return the subject and the result of a view at the default focus."""
    if name == "alignment":
        t = translator_trace()
        return t, t.alignment(layer=1, head=2)
    at, view = focus(t), VIEWS[name]
    options = {"layer": at.layer, "head": at.head, "query": at.query, "key": at.key, "position": at.query}
    options |= {"token": t.ids[3], "tokens": t.ids, "text": TEXT, "word": " cat"}
    options["other"] = lm.trace(TEXT, edit=[ablate("blocks.0.attn.z", head=1)])
    subject = lm if view.of == "model" else t
    return subject, view.function(subject, **{one: options[one] for one in view.parameters if one in options})


def test_pixels_of_a_head_equal_its_probabilities(t):
    [(_, drawn)] = decoded(render_png(trace_panels.pattern(t, 1, 2)))
    real = t["blocks.1.attn.probs"][2].numpy()
    assert real.max() > 0.3
    assert np.abs(drawn - real).max() <= 0.01


def test_changed_weights_change_the_picture():
    own = tiny_lm("qwen3", 5)
    before = decoded(render_png(trace_panels.pattern(own.trace(TEXT), 1, 2)))[0][1]
    with torch.no_grad():
        own.model.blocks[1].attn.q.weight += 0.1
    after, real = own.trace(TEXT), own.trace(TEXT)["blocks.1.attn.probs"][2].numpy()
    drawn = decoded(render_png(trace_panels.pattern(after, 1, 2)))[0][1]
    assert np.abs(drawn - real).max() <= 0.01
    assert np.abs(drawn - before).max() > 0.05


def test_signed_pixels_equal_the_numbers_to_scale(t):
    of = t.attribution()
    [(one, drawn)] = decoded(render_png(trace_panels.attribution(t, of)))
    real = np.array(of.heads)
    assert one["scale"] == pytest.approx(np.abs(real).max(), rel=1e-6)
    assert np.abs(drawn - real).max() <= 0.02 * one["scale"]
    assert (real < 0).any()
    assert (real > 0).any()


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_drawn_with_its_receipt(lm, t, name):
    subject, of = view_result(lm, t, name)
    panels = draw(VIEWS[name], subject, of)
    assert [one.python for one in panels if isinstance(one, ReceiptPanel)] == [of.receipt.python]
    image = Image.open(io.BytesIO(render_png(panels)))
    assert json.loads(image.text["glassformer"])["receipts"] == [of.receipt.python]
    assert image.height > 80
    for one, (_, drawn) in zip(
        [one for panel in panels for one in getattr(panel, "matrices", (panel,)) if isinstance(one, MatrixPanel)],
        decoded(render_png(panels)), strict=True,
    ):  # fmt: skip
        finite = one.data.isfinite().numpy()
        assert np.abs(drawn - one.data.numpy())[finite].max() <= 0.02 * one.scale


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_drawn_in_a_terminal_with_and_without_colour(lm, t, name):
    subject, of = view_result(lm, t, name)
    panels = draw(VIEWS[name], subject, of)
    for colour in (None, "truecolor"):
        terminal, out = Terminal(), io.StringIO()
        terminal.console = Console(
            file=out, width=100, color_system=colour, force_terminal=bool(colour), no_color=False
        )
        terminal.coloured, terminal.width = bool(colour), 100
        terminal.draw(panels)
        text = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())
        assert ("\x1b[" in out.getvalue()) == bool(colour)
        assert re.sub(r"\s", "", of.receipt.python) in re.sub(r"\s", "", text)
        assert max(map(len, text.splitlines())) <= 100


def test_terminal_signs_are_darker_for_larger_numbers(t):
    """Without colour each sign stands for one of six levels of the square root."""
    terminal, out = Terminal(), io.StringIO()
    terminal.console, terminal.coloured, terminal.width = Console(file=out, width=200, color_system=None), False, 200
    terminal.draw(trace_panels.pattern(t, 1, 2)[1:2])
    real, n = t["blocks.1.attn.probs"][2].numpy(), len(t)
    lines = out.getvalue().rstrip("\n").split("\n")[-n:]
    for q, line in enumerate(lines):
        fields = line[-2 * n :].ljust(2 * n)[::2] if len(line) >= 2 * n else line
        steps = ["" if k > q else " ·░▒▓█".index(fields[k]) for k in range(n)]
        assert steps[: q + 1] == [int(np.ceil(np.sqrt(real[q, k]) * 5 - 1e-9)) for k in range(q + 1)]


def test_colours_equal_those_of_the_page():
    source = (Path(__file__).parents[2] / "web" / "src" / "lib" / "colour.ts").read_text()
    from glassformer.inspect.drawing import colour

    for rgb in (*colour.INK, colour.GRAPHITE, *(v for k, v in colour.HUE.items() if k != "soft")):
        assert str(list(rgb)) in source
    for share in np.linspace(0, 1, 50):
        assert abs(colour.colour_to_prob(colour.prob_to_colour(share)) - share) < 0.01
        assert abs(colour.colour_to_signed(colour.signed_to_colour(-3 * share, 3, "key"), 3, "key") + 3 * share) < 0.06


def test_every_view_has_a_drawing():
    for view in VIEWS.values():
        assert callable(getattr({"model": model_panels, "trace": trace_panels}[view.of], view.name))


def test_missing_pillow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "glassformer.inspect.drawing.png")
    with pytest.raises(ConfigError, match=r"pip install 'glassformer\[png\]'"):
        importlib.import_module("glassformer.inspect.drawing.png")


# ---- texts in pictures


def drawn_text(text, size=13, width=400):
    """Return a text as pixels, and its width."""
    from PIL import Image, ImageDraw

    from glassformer.inspect.drawing.png import draw_text

    image = Image.new("L", (width, 40), 255)
    end = draw_text(ImageDraw.Draw(image), 4, 5, text, 0, size)
    return np.asarray(image), end - 4


@pytest.mark.parametrize("word", ["שלום", "مرحبا", "עולם"])
def test_a_right_to_left_token_does_not_move_the_numbers_beside_it(word):
    """The number before it stands at its left, the share after it at its right."""
    from glassformer.inspect.drawing.png import text_runs

    assert "".join(part for part, _ in text_runs(f"1. {word} 2.4%", 13)) in (f"1. {word} 2.4%", text_of_codes(word))
    pixels, width = drawn_text(f"1. {word} 2.4%")
    (before, w0), (after, w2) = drawn_text("1. "), drawn_text(" 2.4%")
    assert np.array_equal(pixels[:, : 4 + int(w0)], before[:, : 4 + int(w0)])
    end, n = 4 + round(width), int(w2) - 8
    found, want = pixels[:, end - n : end], after[:, 4 + round(w2) - n : 4 + round(w2)]
    assert np.abs(found.astype(int) - want).mean() < 12, "the same digits, up to a fraction of a pixel"


def text_of_codes(word):
    return f"1. {''.join(f'U+{ord(c):04X}' for c in word)} 2.4%"


def test_a_character_that_the_font_lacks_is_drawn_in_another_font():
    """Never as a box: as its code where no font has it."""
    from glassformer.inspect.drawing.png import font_of, load_font, text_runs

    lacked = [c for c in "אあ猫नম🙂⌬ﻼ" if font_of(c, 13) not in (None, load_font(13))]
    for character in lacked:
        (run,) = text_runs(character, 13)
        assert run == (character, font_of(character, 13))
        assert drawn_text(character)[0].min() < 255
    absent = [c for c in ("\U000f1234", *"あ猫नম🙂") if font_of(c, 13) is None]
    assert "\U000f1234" in absent, "a private character"
    for character in absent:
        code = f"U+{ord(character):04X}"
        assert text_runs(f"a{character}b", 13) == ((f"a{code}b", load_font(13)),)
        assert np.array_equal(drawn_text(f"a{character}")[0], drawn_text(f"a{code}")[0])
    assert text_runs("plain text, 12%", 13) == (("plain text, 12%", load_font(13)),)

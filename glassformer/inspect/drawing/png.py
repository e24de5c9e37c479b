"""Draw panels as a PNG. Each number of a matrix is a square of one colour, from which it can be recovered.

The text chunk "glassformer" has JSON: the position, size and colour scale of each matrix, and the Python line of each
receipt.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import unicodedata
from functools import cache
from typing import Any

from glassformer.errors import ConfigError
from glassformer.inspect.drawing.colour import HUE, PAPER, Rgb, prob_to_colour, signed_to_colour, text_colour
from glassformer.inspect.drawing.panels import (
    Bars,
    Gallery,
    Heading,
    Line,
    MatrixPanel,
    Panel,
    ReceiptPanel,
    Strip,
    Table,
    TokenPanel,
    max_abs,
)

try:
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo
except ImportError:
    raise ConfigError("PNG pictures need Pillow: pip install 'glassformer[png]'") from None

WIDTH, MARGIN, FONT, ROW = 1120, 28, 15, 22  # pixels
TEXT: Rgb = (28, 33, 40)
BORDER: Rgb = (228, 225, 217)
MAX_LABEL = 150  # pixels of a row's label
FONTS = ("DejaVuSansMono.ttf", "Menlo.ttc", "consola.ttf", "LiberationMono-Regular.ttf")
FALLBACKS = (  # for characters that the monospaced font lacks
    "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansMonoCJK-Regular.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "msyh.ttc", "msgothic.ttc", "malgun.ttf", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf",
    "NotoSansHebrew-Regular.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSansBengali-Regular.ttf", "NotoSansTamil-Regular.ttf", "NotoSansThai-Regular.ttf", "NotoEmoji-Regular.ttf",
    "NotoSansSymbols2-Regular.ttf", "Arial Unicode.ttf", "arial.ttf", "Nirmala.ttf", "seguisym.ttf", "seguiemj.ttf",
    "FreeSans.ttf", "FreeSerif.ttf", "Symbola.ttf", "unifont.otf", "unifont.ttf",
)  # fmt: skip
RIGHT_TO_LEFT = ("R", "AL", "AN")  # bidirectional classes


@cache
def load_font(size: int) -> Any:
    """Return a monospaced system font, or Pillow's default font."""
    return next(iter(load_fonts(size, FONTS)), None) or ImageFont.load_default(size)


@cache
def load_fonts(size: int, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the fonts of the system among these."""
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(name, size))
    return tuple(found)


@cache
def font_of(character: str, size: int) -> Any | None:
    """Return the first font that has a character; None if no font has it."""
    for font in (load_font(size), *load_fonts(size, FALLBACKS)):
        missing = font.getmask("\U0010fffd")  # a noncharacter: the box that stands for a missing glyph
        drawn = font.getmask(character)
        if character.isspace() or (drawn.size, bytes(drawn)) != (missing.size, bytes(missing)):
            return font
    return None


@cache
def text_runs(text: str, size: int) -> tuple[tuple[str, Any], ...]:
    """Return the parts of a text, each with its font, to be drawn from left to right.

    A part is in one font and one direction, so that a right-to-left token does not exchange places with the numbers
    beside it. A character that no font has becomes "U+4E2D".
    """
    runs: list[tuple[str, Any, bool]] = []
    for character in text:
        if not unicodedata.combining(character) or not runs:
            font, reverse = font_of(character, size), unicodedata.bidirectional(character) in RIGHT_TO_LEFT
        else:  # on the character before it
            _, font, reverse = runs[-1]
        if font is None:
            character, font, reverse = f"U+{ord(character):04X}", load_font(size), False
        if runs and runs[-1][1:] == (font, reverse):
            runs[-1] = (runs[-1][0] + character, font, reverse)
        else:
            runs.append((character, font, reverse))
    return tuple((part, font) for part, font, _ in runs)


def text_width(text: str, size: int) -> float:
    """Return the width of a text in pixels."""
    return sum(font.getlength(part) for part, font in text_runs(text, size))


def draw_text(draw: Any, x: float, y: float, text: str, colour: Rgb, size: int) -> float:
    """Draw a text with its top at y; return where it ends."""
    baseline = y + load_font(size).getmetrics()[0]
    for part, font in text_runs(text, size):
        draw.text((x, baseline), part, colour, font, anchor="ls")
        x += font.getlength(part)
    return x


def render_png(panels: list[Panel]) -> bytes:
    """Return the panels as a PNG file."""
    canvas = PngCanvas()
    for panel in panels:
        canvas.add(panel)
    return canvas.finish()


class PngCanvas:
    """An image that grows downwards, panel by panel."""

    def __init__(self):
        self.image, self.y = Image.new("RGB", (WIDTH, 64), PAPER), MARGIN
        self.draw = ImageDraw.Draw(self.image)
        self.matrices: list[dict[str, Any]] = []
        self.receipts: list[str] = []

    def reserve(self, height: int) -> int:
        """Extend the image by `height` pixels; return their top."""
        top, need = self.y, self.y + height + MARGIN
        if need > self.image.height:
            grown = Image.new("RGB", (WIDTH, max(need, 2 * self.image.height)), PAPER)
            grown.paste(self.image, (0, 0))
            self.image, self.draw = grown, ImageDraw.Draw(grown)
        self.y += height
        return top

    def text(
        self, x: float, y: float, text: str, colour: Rgb = TEXT, size: int = FONT, max_width: float = WIDTH
    ) -> float:
        """Draw a text, truncated to `max_width`; return where it ends."""
        while text and text_width(text, size) > max_width:
            text = text[:-2] + "…" if len(text) > 2 else ""
        return draw_text(self.draw, x, y, text, colour, size)

    def add(self, panel: Panel) -> None:
        match panel:
            case Heading():
                self.heading(panel)
            case Line():
                self.line(panel)
            case TokenPanel():
                self.tokens(panel)
            case MatrixPanel():
                self.matrix(panel)
            case Gallery():
                self.gallery(panel)
            case Strip():
                self.strip(panel)
            case Bars():
                self.bars(panel)
            case Table():
                self.table(panel)
            case ReceiptPanel():
                self.receipt(panel)

    def finish(self) -> bytes:
        metadata = PngInfo()
        metadata.add_itxt("glassformer", json.dumps({"matrices": self.matrices, "receipts": self.receipts}))
        out = io.BytesIO()
        self.image.crop((0, 0, WIDTH, self.y + MARGIN)).save(out, "PNG", pnginfo=metadata, optimize=True)
        return out.getvalue()

    def heading(self, panel: Heading) -> None:
        y = self.reserve(44)
        self.text(MARGIN, y + 14, panel.text, size=18, max_width=WIDTH - 2 * MARGIN)

    def line(self, panel: Line) -> None:
        x, y = float(MARGIN), self.reserve(ROW)
        for text, hue in panel.parts:
            x = self.text(x, y, text, TEXT if hue == "plain" else HUE[hue], max_width=WIDTH - MARGIN - x)

    def receipt(self, panel: ReceiptPanel) -> None:
        self.receipts.append(panel.python)
        y = self.reserve(ROW + 8) + 8
        self.draw.line((MARGIN, y - 4, WIDTH - MARGIN, y - 4), BORDER)
        error = "" if panel.identity is None else f"   {panel.identity}"
        error += "" if panel.error is None else f" = {panel.error:.1e}"
        x = self.text(MARGIN, y, panel.python, TEXT, 12, WIDTH - 2 * MARGIN)
        self.text(x, y, error, HUE["soft"], 12, max(0.0, WIDTH - MARGIN - x))

    def tokens(self, panel: TokenPanel) -> None:
        x, y = float(MARGIN), self.reserve(ROW + 20)
        for i, (token, prob) in enumerate(zip(panel.tokens, panel.probs, strict=True)):
            percent = "" if prob is None else f"{100 * prob:.0f}%"
            width = min(max(text_width(token, FONT), text_width(percent, 10)) + 8, WIDTH - 2 * MARGIN)
            if x + width > WIDTH - MARGIN:
                x, y = float(MARGIN), self.reserve(ROW + 20)
            colour = PAPER if prob is None else prob_to_colour(prob)
            self.draw.rectangle((x, y, x + width - 2, y + ROW), colour, BORDER)
            self.text(x + 3, y + 1, token, text_colour(colour), max_width=width - 4)
            self.text(x + 3, y + ROW + 2, percent, HUE["soft"], 10)
            if i >= panel.n_prompt:
                self.draw.line((x, y + ROW, x + width - 2, y + ROW), HUE["query"], 2)
            x += width + 1

    def matrix(self, panel: MatrixPanel) -> None:
        rows, columns = panel.data.shape
        label_width = max((text_width(name, 11) for name in panel.rows), default=0) + 10
        left = MARGIN + int(min(MAX_LABEL, label_width))
        field = max(1, min(26, (WIDTH - MARGIN - left) // columns, max(2, 900 // rows)))
        if rows * columns <= 2:
            field = 26
        column_height = max((text_width(name, 10) for name in panel.columns), default=0) + 6
        header = 0 if field < 9 else int(min(90, column_height))
        top = self.reserve(ROW + header + rows * field + 10)
        self.text(MARGIN, top, panel.label, HUE["soft"], 12, WIDTH - 2 * MARGIN)
        y = top + ROW + header
        for c, name in enumerate(panel.columns if header else ()):
            label, colour = Image.new("RGB", (header, field), PAPER), HUE["key"] if c == panel.column else TEXT
            draw_text(ImageDraw.Draw(label), 2, (field - 12) // 2, name[:12], colour, 10)
            self.image.paste(label.rotate(90, expand=True), (left + c * field, y - header))
        for r, name in enumerate(panel.rows if field >= 9 else ()):
            colour = HUE["query"] if r == panel.row else TEXT
            self.text(MARGIN, y + r * field + (field - 13) // 2, name, colour, 11, left - MARGIN - 6)
        self._fields(panel, left, y, field)

    def gallery(self, panel: Gallery) -> None:
        def field_size(matrix: MatrixPanel) -> int:
            return max(1, min(26, 200 // max(matrix.data.shape)))

        x, y = MARGIN, self.y
        height = ROW + 14 + max((one.data.shape[0] * field_size(one) for one in panel.matrices), default=0)
        for one in panel.matrices:
            width = max(field_size(one) * one.data.shape[1], 96) + 16
            if x == MARGIN or x + width > WIDTH - MARGIN:
                x, y = MARGIN, self.reserve(height)
            self.text(x, y + 2, one.label, HUE["soft"], 12, width)
            self._fields(one, x, y + ROW, field_size(one))
            x += width

    def _fields(self, panel: MatrixPanel, left: int, top: int, field: int) -> None:
        """Draw one square per number, and record its position in the metadata."""
        rows, columns = panel.data.shape
        for r, values in enumerate(panel.data.tolist()):
            for c, value in enumerate(values):
                if math.isnan(value):
                    continue
                colour = prob_to_colour(value) if panel.probs else signed_to_colour(value, panel.scale, panel.hue)
                box = (left + c * field, top + r * field, left + (c + 1) * field - 1, top + (r + 1) * field - 1)
                self.draw.rectangle(box, colour)
        self.draw.rectangle((left - 1, top - 1, left + columns * field, top + rows * field), None, BORDER)
        if panel.row is not None and panel.column is not None and field > 3:
            x, y = left + panel.column * field, top + panel.row * field
            self.draw.rectangle((x, y, x + field - 1, y + field - 1), None, HUE["key"])  # does not cover neighbours
        where = {"left": left, "top": top, "field": field, "rows": rows, "columns": columns, "label": panel.label}
        self.matrices.append(where | {"probs": panel.probs, "scale": panel.scale, "hue": panel.hue})

    def strip(self, panel: Strip) -> None:
        left, y, n = MARGIN + 190, self.reserve(ROW + 4), len(panel.data)
        self.text(MARGIN, y + 2, panel.label, HUE[panel.hue] if panel.hue != "plain" else TEXT, 13, 184)
        width = (WIDTH - MARGIN - left) / n
        scale = max_abs(panel.data) if panel.scale is None else panel.scale
        for i, value in enumerate(panel.data.tolist()):
            if math.isfinite(value):
                x = round(left + i * width)
                box = (x, y, max(x, round(left + (i + 1) * width) - 1), y + ROW)
                self.draw.rectangle(box, signed_to_colour(value, scale, panel.hue))

    def bars(self, panel: Bars) -> None:
        sizes = [abs(value) for _, value, _ in panel.rows if math.isfinite(value)]
        scale = panel.scale or max(sizes, default=1.0) or 1.0
        signed = any(value < 0 for _, value, _ in panel.rows)
        left, width = MARGIN + 290, WIDTH - 2 * MARGIN - 290 - 230
        zero = left + width // 2 if signed else left
        for name, value, text in panel.rows:
            y = self.reserve(ROW)
            self.text(MARGIN, y, name, TEXT, 13, 280)
            size = min(1.0, abs(value) / scale) * (width // 2 if signed else width) if math.isfinite(value) else 0
            start, end = (zero - size, zero) if value < 0 else (zero, zero + size)
            self.draw.rectangle((start, y + 2, end, y + ROW - 5), HUE["soft"] if value < 0 else HUE[panel.hue])
            self.text(left + width + 12, y, text, TEXT, 13, 220)

    def table(self, panel: Table) -> None:
        n = len(panel.header)
        lines = [tuple((text, None) for text in panel.header), *panel.rows]
        widths = [max(text_width(line[i][0], 13) for line in lines if i < len(line)) + 14 for i in range(n)]
        excess = sum(widths) - (WIDTH - 2 * MARGIN)
        if excess > 0:  # shrink the widest column
            widest = max(range(n), key=lambda i: widths[i])
            widths[widest] = max(120.0, widths[widest] - excess)
        for i, line in enumerate(lines):
            x, y = float(MARGIN), self.reserve(ROW)
            for (text, prob), width in zip(line, widths, strict=False):
                colour = PAPER if prob is None else prob_to_colour(prob)
                if prob is not None:
                    self.draw.rectangle((x, y, x + width - 3, y + ROW - 2), colour)
                self.text(x + 4, y + 2, text, HUE["soft"] if i == 0 else text_colour(colour), 13, width - 8)
                x += width

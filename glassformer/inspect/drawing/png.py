"""Panels as a PNG. Each field of a matrix is a square of one colour, so that the numbers can be read back from it.

Its metadata has, under "glassformer", JSON: where each matrix stands and what its colours mean, and each receipt.
"""

from __future__ import annotations

import io
import json
import math
from functools import cache
from typing import Any

from glassformer.errors import ConfigError
from glassformer.inspect.drawing.colour import HUE, PAPER, Rgb, readable, share_colour, signed_colour
from glassformer.inspect.drawing.panels import (
    Bars,
    Gallery,
    Heading,
    Line,
    MatrixPanel,
    Panel,
    Seal,
    Strip,
    Table,
    TokenPanel,
)

try:
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo
except ImportError:
    raise ConfigError("PNG pictures need Pillow: pip install 'glassformer[png]'") from None

WIDTH, EDGE, FONT, ROW = 1120, 28, 15, 22
INKED: Rgb = (28, 33, 40)
LINE: Rgb = (228, 225, 217)
LABELS = 150  # pixels at most for names beside a picture
FACES = ("DejaVuSansMono.ttf", "Menlo.ttc", "consola.ttf", "LiberationMono-Regular.ttf")


@cache
def face(size: int) -> Any:
    """A font that has many signs, where the machine has one; Pillow's own elsewhere."""
    for name in FACES:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def png(panels: list[Panel]) -> bytes:
    """The picture."""
    page = PngCanvas(Image.new("RGB", (WIDTH, 64), PAPER))
    for panel in panels:
        page.add(panel)
    return page.finish()


class PngCanvas:
    """A picture that grows downwards."""

    def __init__(self, image: Image.Image):
        self.image, self.y = image, EDGE
        self.draw = ImageDraw.Draw(image)
        self.matrices: list[dict[str, Any]] = []
        self.receipts: list[str] = []

    def room(self, height: int) -> int:
        """Where the next so many pixels begin."""
        top, need = self.y, self.y + height + EDGE
        if need > self.image.height:
            grown = Image.new("RGB", (WIDTH, max(need, 2 * self.image.height)), PAPER)
            grown.paste(self.image, (0, 0))
            self.image, self.draw = grown, ImageDraw.Draw(grown)
        self.y += height
        return top

    def write(self, x: float, y: float, text: str, colour: Rgb = INKED, size: int = FONT, most: float = WIDTH) -> float:
        """A text, cut where it would be wider than `most`; returns where it ends."""
        font = face(size)
        while text and font.getlength(text) > most:
            text = text[:-2] + "…" if len(text) > 2 else ""
        self.draw.text((x, y), text, colour, font)
        return x + font.getlength(text)

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
            case Seal():
                self.seal(panel)

    def finish(self) -> bytes:
        said = PngInfo()
        said.add_itxt("glassformer", json.dumps({"matrices": self.matrices, "receipts": self.receipts}))
        out = io.BytesIO()
        self.image.crop((0, 0, WIDTH, self.y + EDGE)).save(out, "PNG", pnginfo=said, optimize=True)
        return out.getvalue()

    # ---- one for each kind of panel

    def heading(self, panel: Heading) -> None:
        y = self.room(44)
        self.write(EDGE, y + 14, panel.text, size=18, most=WIDTH - 2 * EDGE)

    def line(self, panel: Line) -> None:
        x, y = float(EDGE), self.room(ROW)
        for text, meaning in panel.parts:
            x = self.write(x, y, text, INKED if meaning == "plain" else HUE[meaning], most=WIDTH - EDGE - x)

    def seal(self, panel: Seal) -> None:
        self.receipts.append(panel.python)
        y = self.room(ROW + 8) + 8
        self.draw.line((EDGE, y - 4, WIDTH - EDGE, y - 4), LINE)
        error = "" if panel.identity is None else f"   {panel.identity}"
        error += "" if panel.error is None else f" = {panel.error:.1e}"
        x = self.write(EDGE, y, panel.python, INKED, 12, WIDTH - 2 * EDGE)
        self.write(x, y, error, HUE["soft"], 12, max(0.0, WIDTH - EDGE - x))

    def tokens(self, panel: TokenPanel) -> None:
        font, x, y = face(FONT), float(EDGE), self.room(ROW + 20)
        for i, (token, share) in enumerate(zip(panel.tokens, panel.shares, strict=True)):
            below = "" if share is None else f"{100 * share:.0f}%"
            wide = min(max(font.getlength(token), face(10).getlength(below)) + 8, WIDTH - 2 * EDGE)
            if x + wide > WIDTH - EDGE:
                x, y = float(EDGE), self.room(ROW + 20)
            colour = PAPER if share is None else share_colour(share)
            self.draw.rectangle((x, y, x + wide - 2, y + ROW), colour, LINE)
            self.write(x + 3, y + 1, token, readable(colour), most=wide - 4)
            self.write(x + 3, y + ROW + 2, below, HUE["soft"], 10)
            if i >= panel.begun:
                self.draw.line((x, y + ROW, x + wide - 2, y + ROW), HUE["query"], 2)
            x += wide + 1

    def matrix(self, panel: MatrixPanel) -> None:
        rows, columns = panel.data.shape
        labels = max((face(11).getlength(name) for name in panel.rows), default=0) + 10
        left = EDGE + int(min(LABELS, labels))
        field = max(1, min(26, (WIDTH - EDGE - left) // columns, max(2, 900 // rows)))
        if rows * columns <= 2:
            field = 26
        heads = 0 if field < 9 else int(min(90, max((face(10).getlength(n) for n in panel.columns), default=0) + 6))
        top = self.room(ROW + heads + rows * field + 10)
        self.write(EDGE, top, panel.label, HUE["soft"], 12, WIDTH - 2 * EDGE)
        y = top + ROW + heads
        for c, name in enumerate(panel.columns if heads else ()):
            strip = Image.new("RGB", (heads, field), PAPER)
            ImageDraw.Draw(strip).text(
                (2, (field - 12) // 2), name[:12], HUE["key"] if c == panel.column else INKED, face(10)
            )
            self.image.paste(strip.rotate(90, expand=True), (left + c * field, y - heads))
        for r, name in enumerate(panel.rows if field >= 9 else ()):
            colour = HUE["query"] if r == panel.row else INKED
            self.write(EDGE, y + r * field + (field - 13) // 2, name, colour, 11, left - EDGE - 6)
        self._fields(panel, left, y, field)

    def gallery(self, panel: Gallery) -> None:
        x, y, tall = EDGE, self.y, 0
        for one in panel.pictures:
            rows, columns = one.data.shape
            field = max(1, min(26, 200 // max(rows, columns)))
            wide = max(field * columns, 96) + 16
            if x == EDGE or x + wide > WIDTH - EDGE:
                tall = (
                    ROW + max(p.data.shape[0] * max(1, min(26, 200 // max(p.data.shape))) for p in panel.pictures) + 14
                )
                x, y = EDGE, self.room(tall)
            self.write(x, y + 2, one.label, HUE["soft"], 12, wide)
            self._fields(one, x, y + ROW, field)
            x += wide

    def _fields(self, panel: MatrixPanel, left: int, top: int, field: int) -> None:
        """The fields themselves, one square each."""
        rows, columns = panel.data.shape
        for r, values in enumerate(panel.data.tolist()):
            for c, value in enumerate(values):
                if math.isnan(value):
                    continue
                box = (left + c * field, top + r * field, left + (c + 1) * field - 1, top + (r + 1) * field - 1)
                self.draw.rectangle(box, self._colour(panel, value))
        self.draw.rectangle((left - 1, top - 1, left + columns * field, top + rows * field), None, LINE)
        if panel.row is not None and panel.column is not None and field > 3:
            x, y = left + panel.column * field, top + panel.row * field
            self.draw.rectangle(
                (x, y, x + field - 1, y + field - 1), None, HUE["key"]
            )  # inside its field: others stay whole
        where = {"left": left, "top": top, "field": field, "rows": rows, "columns": columns, "label": panel.label}
        self.matrices.append(where | {"shares": panel.shares, "scale": panel.top, "meaning": panel.meaning})

    def strip(self, panel: Strip) -> None:
        left, y, n = EDGE + 190, self.room(ROW + 4), len(panel.data)
        self.write(EDGE, y + 2, panel.label, HUE[panel.meaning] if panel.meaning != "plain" else INKED, 13, 184)
        wide = (WIDTH - EDGE - left) / n
        shown = MatrixPanel(panel.data[None], (), (), meaning=panel.meaning)
        top = shown.top if panel.top is None else panel.top
        for i, value in enumerate(panel.data.tolist()):
            if math.isfinite(value):
                box = (
                    round(left + i * wide),
                    y,
                    max(round(left + i * wide), round(left + (i + 1) * wide) - 1),
                    y + ROW,
                )
                self.draw.rectangle(box, signed_colour(value, top, panel.meaning))

    def bars(self, panel: Bars) -> None:
        sizes = [abs(value) for _, value, _ in panel.rows if math.isfinite(value)]
        top = panel.top or max(sizes, default=1.0) or 1.0
        signed = any(value < 0 for _, value, _ in panel.rows)
        left, wide = EDGE + 290, WIDTH - 2 * EDGE - 290 - 230
        middle = left + wide // 2 if signed else left
        for name, value, text in panel.rows:
            y = self.room(ROW)
            self.write(EDGE, y, name, INKED, 13, 280)
            size = min(1.0, abs(value) / top) * (wide // 2 if signed else wide) if math.isfinite(value) else 0
            box = (
                (middle - size, y + 2, middle, y + ROW - 5)
                if value < 0
                else (middle, y + 2, middle + size, y + ROW - 5)
            )
            self.draw.rectangle(box, HUE["soft"] if value < 0 else HUE[panel.meaning])
            self.write(left + wide + 12, y, text, INKED, 13, 220)

    def table(self, panel: Table) -> None:
        font, n = face(13), len(panel.header)
        lines = [tuple((text, None) for text in panel.header), *panel.rows]
        wants = [max(font.getlength(line[i][0]) for line in lines if i < len(line)) + 14 for i in range(n)]
        over = sum(wants) - (WIDTH - 2 * EDGE)
        if over > 0:  # the widest gives way
            most = max(range(n), key=lambda i: wants[i])
            wants[most] = max(120.0, wants[most] - over)
        for i, line in enumerate(lines):
            x, y = float(EDGE), self.room(ROW)
            for (text, share), wide in zip(line, wants, strict=False):
                colour = PAPER if share is None else share_colour(share)
                if share is not None:
                    self.draw.rectangle((x, y, x + wide - 3, y + ROW - 2), colour)
                self.write(x + 4, y + 2, text, HUE["soft"] if i == 0 else readable(colour), 13, wide - 8)
                x += wide

    @staticmethod
    def _colour(panel: MatrixPanel, value: float) -> Rgb:
        return share_colour(value) if panel.shares else signed_colour(value, panel.top, panel.meaning)

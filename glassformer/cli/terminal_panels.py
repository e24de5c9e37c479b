"""Draw panels in a terminal. Darker blocks stand for larger numbers, so that they need no colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from glassformer.inspect.drawing.colour import prob_to_colour, signed_to_colour, text_colour
from glassformer.inspect.drawing.panels import (
    Bars,
    Gallery,
    Heading,
    Hue,
    Line,
    MatrixPanel,
    Panel,
    ReceiptPanel,
    Strip,
    Table,
    TokenPanel,
    max_abs,
)

POSITIVE = " ·░▒▓█"  # probabilities and positive numbers
NEGATIVE = " ·-=≡≡"
STYLES: dict[Hue, str] = {
    "query": "blue",
    "key": "red",
    "value": "green",
    "residual": "yellow",
    "forward": "magenta",
    "plain": "",
    "soft": "dim",
}
MAX_LABEL, MAX_ROWS, PLAIN_WIDTH = 16, 40, 120


class Terminal:
    """Draws panels on stdout, with the colours and width of the terminal if stdout is one."""

    def __init__(self) -> None:
        width = None if Console().is_terminal else PLAIN_WIDTH
        self.console = Console(highlight=False, width=width)
        self.width, self.coloured = self.console.width, bool(self.console.color_system) and not self.console.no_color

    def draw(self, panels: Sequence[Panel]) -> None:
        for panel in panels:
            self.console.print(self.render(panel), markup=False)

    def render(self, panel: Panel) -> RenderableType:
        match panel:
            case Heading():
                return Text(f"\n{panel.text}", "bold")
            case Line():
                return Text.assemble(*((text, STYLES[hue]) for text, hue in panel.parts))
            case TokenPanel():
                return self.tokens(panel)
            case MatrixPanel():
                return self.matrix(panel)
            case Gallery():
                return self.gallery(panel)
            case Strip():
                return self.strip(panel)
            case Bars():
                return self.bars(panel)
            case Table():
                return self.table(panel)
            case ReceiptPanel():
                return self.receipt(panel)

    def receipt(self, panel: ReceiptPanel) -> RenderableType:
        error = "" if panel.error is None else f" = {panel.error:.1e}"
        identity = "" if panel.identity is None else f"  ({panel.identity}{error})"
        return Text.assemble((panel.python, "italic"), (identity, "dim"))

    def tokens(self, panel: TokenPanel) -> RenderableType:
        lines: list[Text] = []
        above, below = Text(), Text()
        for i, (token, prob) in enumerate(zip(panel.tokens, panel.probs, strict=True)):
            percent = "" if prob is None else f"{100 * prob:.0f}%"
            width = max(cell_len(token), len(percent)) + 1
            if above and above.cell_len + width > self.width:
                lines += [above, below]
                above, below = Text(), Text()
            style = "" if prob is None else self._background(prob)
            above.append(token, style + (" bold" if i >= panel.n_prompt else ""))
            above.append(" " * (width - cell_len(token)))
            below.append(percent.ljust(width), "dim")
        return Group(*lines, above, below)

    def matrix(self, panel: MatrixPanel) -> RenderableType:
        label_width = min(MAX_LABEL, max((cell_len(one) for one in panel.rows), default=0)) + 2
        data, rows, columns, note = panel.data, panel.data.shape[0], panel.data.shape[1], ""
        max_columns = max(8, self.width - label_width - 1)
        cells = 1 if 2 * columns > max_columns else 2
        down, across = -(-rows // MAX_ROWS) if rows > 2 * MAX_ROWS else 1, -(-columns // max_columns)
        if down > 1 or across > 1:
            lowest = data.nan_to_num(nan=-math.inf)
            small = F.max_pool2d(lowest[None, None], (down, across), ceil_mode=True)[0, 0]
            data = small.masked_fill(small == -math.inf, math.nan)
            note = f" (each field is the maximum of {down} × {across})"
        lines = [Text(panel.label + note, "dim")] if panel.label or note else []
        header = Text(" " * label_width)
        for c in range(data.shape[1]):
            marked = panel.column is not None and panel.column // across == c
            text = "↓" if marked else str(c * across) if c % 10 == 0 and cells == 2 else ""
            header.append(text.ljust(cells), "red bold" if marked else "dim")
        lines.append(header)
        for r, values in enumerate(data.tolist()):
            marked = panel.row is not None and panel.row // down == r
            label = panel.rows[r * down] if panel.rows else ""
            label = set_cell_size(label, label_width - 2) + (" →" if marked else "  ")
            line = Text(label, "bold blue" if marked else "")
            for value in values:
                line.append(*self._field(panel, value, cells))
            lines.append(line)
        return Group(*lines)

    def gallery(self, panel: Gallery) -> RenderableType:
        lines: list[Text] = []
        row: list[list[Text]] = []
        for one in panel.matrices:
            matrix = self._small_matrix(one)
            if row and sum(each[0].cell_len + 2 for each in row) + matrix[0].cell_len > self.width:
                lines += self._join(row)
                row = []
            row.append(matrix)
        return Group(*lines, *self._join(row))

    def _small_matrix(self, panel: MatrixPanel) -> list[Text]:
        data = panel.data
        small = data if max(data.shape) <= 16 else F.adaptive_max_pool2d(data[None].float(), 16)[0]
        width = 2 * small.shape[1]
        lines = [Text(set_cell_size(panel.label, max(width, cell_len(panel.label))), "dim")]
        for values in small.tolist():
            line = Text()
            for value in values:
                line.append(*self._field(panel, value, 2))
            line.append(" " * max(0, lines[0].cell_len - width))
            lines.append(line)
        return lines

    @staticmethod
    def _join(row: list[list[Text]]) -> list[Text]:
        """Put blocks of lines side by side."""
        height = max((len(one) for one in row), default=0)
        full = [one + [Text(" " * one[0].cell_len)] * (height - len(one)) for one in row]
        return [Text("  ").join(lines) for lines in zip(*full, strict=True)] + [Text()]

    def strip(self, panel: Strip) -> RenderableType:
        scale = max_abs(panel.data) if panel.scale is None else panel.scale
        line = Text(set_cell_size(panel.label, 26) + " ", STYLES[panel.hue])
        values, max_fields = panel.data.tolist(), max(8, self.width - 28)
        each = -(-len(values) // max_fields)
        for begin in range(0, len(values), each):  # one field shows the largest of several numbers
            line.append(*self._signed_field(max(values[begin : begin + each], key=abs), scale, panel.hue, 1))
        return line

    def bars(self, panel: Bars) -> RenderableType:
        sizes = [abs(value) for _, value, _ in panel.rows if math.isfinite(value)]
        scale = panel.scale or max(sizes, default=1.0) or 1.0
        grid = Grid.grid(padding=(0, 1))
        for name, value, text in panel.rows:
            size = round(30 * min(1.0, abs(value) / scale)) if math.isfinite(value) else 0
            bar = ("-" if value < 0 else "█") * size or "▏"
            grid.add_row(Text(name), Text(bar, STYLES[panel.hue]), Text(text))
        return grid

    def table(self, panel: Table) -> RenderableType:
        grid = Grid(box=None, pad_edge=False, header_style="dim")
        for name in panel.header:
            grid.add_column(Text(name), overflow="fold")
        for row in panel.rows:
            grid.add_row(*(Text(text, "" if prob is None else self._background(prob)) for text, prob in row))
        return grid

    def _background(self, prob: float) -> str:
        colour = prob_to_colour(prob)
        return "rgb({},{},{}) on rgb({},{},{})".format(*text_colour(colour), *colour)

    def _field(self, panel: MatrixPanel, value: float, cells: int) -> tuple[str, str]:
        if math.isnan(value):
            return " " * cells, ""
        if not panel.probs:
            return self._signed_field(value, panel.scale, panel.hue, cells)
        if self.coloured:
            return " " * cells, "on rgb({},{},{})".format(*prob_to_colour(value))
        return _sign(POSITIVE, math.sqrt(min(1.0, max(0.0, value)))) * cells, ""

    def _signed_field(self, value: float, scale: float, hue: Hue, cells: int) -> tuple[str, str]:
        if not math.isfinite(value):
            return "?" * cells, "bold"
        if self.coloured:
            return " " * cells, "on rgb({},{},{})".format(*signed_to_colour(value, scale, hue))
        part = math.sqrt(min(1.0, abs(value) / scale)) if scale > 0 else 0.0
        return _sign(NEGATIVE if value < 0 else POSITIVE, part) * cells, ""


def _sign(signs: str, part: float) -> str:
    return signs[min(len(signs) - 1, math.ceil(part * (len(signs) - 1)))]

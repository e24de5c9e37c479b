"""Panels in a terminal: fields as blocks, darker for more, so that they are read without colour too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from glassformer.inspect.drawing.colour import readable, share_colour, signed_colour
from glassformer.inspect.drawing.panels import (
    Bars,
    Gallery,
    Heading,
    Line,
    MatrixPanel,
    Meaning,
    Panel,
    Seal,
    Strip,
    Table,
    TokenPanel,
)

MORE = " ·░▒▓█"  # shares and positive numbers
LESS = " ·-=≡≡"  # negative ones
TONES: dict[Meaning, str] = {
    "query": "blue",
    "key": "red",
    "value": "green",
    "residual": "yellow",
    "forward": "magenta",
    "plain": "",
    "soft": "dim",
}
NAME, LOW, WIDE = 12, 40, 120


class Terminal:
    """Draws panels on stdout: in its colours and at its width where it is a terminal."""

    def __init__(self) -> None:
        wide = None if Console().is_terminal else WIDE
        self.console = Console(highlight=False, width=wide)
        self.width, self.coloured = self.console.width, bool(self.console.color_system) and not self.console.no_color

    def draw(self, panels: Sequence[Panel]) -> None:
        for panel in panels:
            self.console.print(self.render(panel), markup=False)

    def render(self, panel: Panel) -> RenderableType:
        match panel:
            case Heading():
                return self.heading(panel)
            case Line():
                return self.line(panel)
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
            case Seal():
                return self.seal(panel)

    def heading(self, panel: Heading) -> RenderableType:
        return Text(f"\n{panel.text}", "bold")

    def line(self, panel: Line) -> RenderableType:
        return Text.assemble(*((text, TONES[meaning]) for text, meaning in panel.parts))

    def seal(self, panel: Seal) -> RenderableType:
        error = "" if panel.error is None else f" = {panel.error:.1e}"
        said = "" if panel.identity is None else f"  ({panel.identity}{error})"
        return Text.assemble((panel.python, "italic"), (said, "dim"))

    def tokens(self, panel: TokenPanel) -> RenderableType:
        lines: list[Text] = []
        above, below = Text(), Text()
        for i, (token, share) in enumerate(zip(panel.tokens, panel.shares, strict=True)):
            said = "" if share is None else f"{100 * share:.0f}%"
            wide = max(cell_len(token), len(said)) + 1
            if above and above.cell_len + wide > self.width:
                lines += [above, below]
                above, below = Text(), Text()
            style = "" if share is None else self._on(share)
            above.append(token, style + (" bold" if i >= panel.begun else ""))
            above.append(" " * (wide - cell_len(token)))
            below.append(said.ljust(wide), "dim")
        return Group(*lines, above, below)

    def matrix(self, panel: MatrixPanel) -> RenderableType:
        name = min(NAME + 4, max((cell_len(one) for one in panel.rows), default=0)) + 2
        data, rows, columns, note = panel.data, panel.data.shape[0], panel.data.shape[1], ""
        most = max(8, self.width - name - 1)
        cells = 1 if 2 * columns > most else 2
        down, across = -(-rows // LOW) if rows > 2 * LOW else 1, -(-columns // most)
        if down > 1 or across > 1:
            lowest = data.nan_to_num(nan=-math.inf)
            small = F.max_pool2d(lowest[None, None], (down, across), ceil_mode=True)[0, 0]
            data = small.masked_fill(small == -math.inf, math.nan)
            note = f" (each field the largest of {down} × {across})"
        lines = [Text(panel.label + note, "dim")] if panel.label or note else []
        mark = Text(" " * name)
        for c in range(data.shape[1]):
            here = panel.column is not None and panel.column // across == c
            mark.append(
                "↓".ljust(cells) if here else (str(c * across).ljust(cells) if self._tick(c, cells) else " " * cells),
                "red bold" if here else "dim",
            )
        lines.append(mark)
        for r, values in enumerate(data.tolist()):
            here = panel.row is not None and panel.row // down == r
            label = panel.rows[r * down] if panel.rows else ""
            line = Text(set_cell_size(label, name - 2) + (" →" if here else "  "), "bold blue" if here else "")
            for value in values:
                line.append(*self._field(panel, value, cells))
            lines.append(line)
        return Group(*lines)

    def _tick(self, c: int, cells: int) -> bool:
        return c % 10 == 0 and cells == 2

    def gallery(self, panel: Gallery) -> RenderableType:
        lines: list[Text] = []
        row: list[list[Text]] = []
        for one in panel.pictures:
            picture = self._small(one)
            if row and sum(each[0].cell_len + 2 for each in row) + picture[0].cell_len > self.width:
                lines += self._beside(row)
                row = []
            row.append(picture)
        return Group(*lines, *self._beside(row))

    def _small(self, panel: MatrixPanel) -> list[Text]:
        data = panel.data
        small = data if max(data.shape) <= 16 else F.adaptive_max_pool2d(data[None].float(), 16)[0]
        wide = 2 * small.shape[1]
        lines = [Text(set_cell_size(panel.label, max(wide, cell_len(panel.label))), "dim")]
        for values in small.tolist():
            line = Text()
            for value in values:
                line.append(*self._field(panel, value, 2))
            line.append(" " * max(0, lines[0].cell_len - wide))
            lines.append(line)
        return lines

    @staticmethod
    def _beside(row: list[list[Text]]) -> list[Text]:
        tall = max((len(one) for one in row), default=0)
        blank = [[Text(" " * one[0].cell_len)] * (tall - len(one)) for one in row]
        return [
            Text("  ").join([*lines])
            for lines in zip(*(one + rest for one, rest in zip(row, blank, strict=True)), strict=True)
        ] + [Text()]

    def strip(self, panel: Strip) -> RenderableType:
        shown = MatrixPanel(panel.data[None], (), (), meaning=panel.meaning)
        top, n, most = shown.top if panel.top is None else panel.top, len(panel.data), max(8, self.width - 28)
        line = Text(set_cell_size(panel.label, 26) + " ", TONES[panel.meaning])
        values = panel.data.tolist()
        each = -(-n // most)
        for begin in range(0, n, each):  # of several numbers, the largest in size
            line.append(*self._signed(max(values[begin : begin + each], key=abs), top, panel.meaning, 1))
        return line

    def bars(self, panel: Bars) -> RenderableType:
        top = panel.top or max((abs(value) for _, value, _ in panel.rows if math.isfinite(value)), default=1.0) or 1.0
        grid = Grid.grid(padding=(0, 1))
        for name, value, text in panel.rows:
            size = round(30 * min(1.0, abs(value) / top)) if math.isfinite(value) else 0
            bar = ("-" if value < 0 else "█") * size or "▏"
            grid.add_row(Text(name), Text(bar, TONES[panel.meaning]), Text(text))
        return grid

    def table(self, panel: Table) -> RenderableType:
        grid = Grid(box=None, pad_edge=False, header_style="dim")
        for name in panel.header:
            grid.add_column(Text(name), overflow="fold")
        for row in panel.rows:
            grid.add_row(*(Text(text, "" if share is None else self._on(share)) for text, share in row))
        return grid

    def _on(self, share: float) -> str:
        colour = share_colour(share)
        return f"rgb{readable(colour)} on rgb{colour}".replace(" ", "").replace("onrgb", " on rgb")

    def _field(self, panel: MatrixPanel, value: float, cells: int) -> tuple[str, str]:
        if math.isnan(value):
            return " " * cells, ""
        if not panel.shares:
            return self._signed(value, panel.top, panel.meaning, cells)
        colour = share_colour(value)
        text = _level(MORE, math.sqrt(min(1.0, max(0.0, value)))) * cells
        return (" " * cells, f"on rgb({colour[0]},{colour[1]},{colour[2]})") if self.coloured else (text, "")

    def _signed(self, value: float, top: float, meaning: Meaning, cells: int) -> tuple[str, str]:
        if not math.isfinite(value):
            return "?" * cells, "bold"
        part = math.sqrt(min(1.0, abs(value) / top)) if top > 0 else 0.0
        if self.coloured:
            colour = signed_colour(value, top, meaning)
            return " " * cells, f"on rgb({colour[0]},{colour[1]},{colour[2]})"
        return _level(LESS if value < 0 else MORE, part) * cells, ""


def _level(signs: str, part: float) -> str:
    return signs[min(len(signs) - 1, math.ceil(part * (len(signs) - 1)))]

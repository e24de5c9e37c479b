"""All views by name, for the page, the report, the notebook and the command line, which all call the same functions.

The page, the report, the notebook and a person in Python all call the same functions. A view of a model takes a
`LanguageModel`, a view of a trace a `Trace`; all other parameters are keywords, whose annotations say what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from glassformer.errors import RequestError
from glassformer.inspect.views.anatomy import anatomy, times
from glassformer.inspect.views.block import block
from glassformer.inspect.views.cell import cell
from glassformer.inspect.views.choice import sampling
from glassformer.inspect.views.heads import grid, heads
from glassformer.inspect.views.kept import cache, cache_speed
from glassformer.inspect.views.qkv import qkv
from glassformer.inspect.views.summary import summary
from glassformer.inspect.views.table import embedding, embedding_map
from glassformer.inspect.views.tracks import changed, tracks
from glassformer.inspect.views.words import merges, tokens


@dataclass(frozen=True)
class View:
    """One function, and what it is of."""

    of: Literal["model", "trace"]
    function: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def meaning(self) -> str:
        """Its docstring's first paragraph."""
        return (self.function.__doc__ or "").split("\n\n")[0]


OF_MODEL = (anatomy, tokens, merges, embedding, embedding_map)
OF_TRACE = (
    summary, times, tracks, changed, qkv, cell, heads, grid, block, sampling, cache, cache_speed,
)  # fmt: skip
VIEWS: dict[str, View] = {f.__name__: View("model", f) for f in OF_MODEL} | {
    f.__name__: View("trace", f) for f in OF_TRACE
}


def find_view(name: str) -> View:
    """The view of this name. RequestError says which is nearest."""
    if name not in VIEWS:
        near = difflib.get_close_matches(name, VIEWS, n=1, cutoff=0.0)
        raise RequestError(f"there is no view {name!r}; the nearest is {near[0]!r}", param="view")
    return VIEWS[name]

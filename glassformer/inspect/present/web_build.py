"""The page's built files, and which of its pictures shows which view."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from glassformer.errors import ConfigError, RequestError
from glassformer.inspect.views.registry import VIEWS

DIST = Path(__file__).parents[2] / "web_dist"
SHOWS = {  # views that have no picture of their own name
    "anatomy": "map", "times": "map", "tokens": "tokenizer", "merges": "tokenizer", "embedding_map": "embedding",
    "summary": "lens", "attribution": "lens", "sampling": "lens", "changed": "tracks",
    "cache_speed": "cache",
}  # fmt: skip
ALSO = {"head_grid": "grid"}


@dataclass(frozen=True)
class Built:
    """The page as one script and one style."""

    html: str
    script: str
    style: str


def built(folder: Path = DIST) -> Built:
    """ConfigError where the page has not been built."""
    index = folder / "index.html"
    if not index.is_file():
        raise ConfigError(f"the page is not built ({index} is missing): `make page` builds it; a wheel has it")
    html = index.read_text("utf-8")
    script, style = (
        re.search(pattern, html) for pattern in (r'<script[^>]*src="([^"]+)"', r'<link[^>]*href="([^"]+\.css)"')
    )
    assert script is not None, "the page is one script"
    assert style is not None, "and one style"
    return Built(html, *((folder / one[1]).read_text("utf-8") for one in (script, style)))


def picture_of(view: str) -> str:
    """The page's picture of a view, by the view's name or the picture's own. RequestError lists what there is."""
    view = ALSO.get(view, view)
    if view in VIEWS or view in SHOWS.values():
        return SHOWS.get(view, view)
    known = [*VIEWS, *(name for name in dict.fromkeys((*SHOWS.values(), *ALSO)) if name not in VIEWS)]
    raise RequestError(f"there is no picture of {view!r}; there are: {', '.join(known)}", param="view")

"""The built files of the page, and the picture that it shows for each view."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from glassformer.errors import ConfigError, RequestError
from glassformer.inspect.views.registry import VIEWS

DIST = Path(__file__).parents[2] / "web_dist"
PICTURES = {  # view -> its picture, if the names differ
    "anatomy": "map", "times": "map", "tokens": "tokenizer", "merges": "tokenizer", "embedding_map": "embedding",
    "summary": "lens", "attribution": "lens", "sampling": "lens", "changed": "tracks",
    "cache_speed": "cache",
}  # fmt: skip
ALIASES = {"head_grid": "grid"}


@dataclass(frozen=True)
class WebBuild:
    """The page: its HTML, and the contents of its script and style sheet."""

    html: str
    script: str
    style: str


def load_build(folder: Path = DIST) -> WebBuild:
    """Read the built page. ConfigError if it has not been built."""
    index = folder / "index.html"
    if not index.is_file():
        raise ConfigError(f"the page is not built ({index} is missing): run `make page`, or install a wheel")
    html = index.read_text("utf-8")
    script, style = (
        re.search(pattern, html) for pattern in (r'<script[^>]*src="([^"]+)"', r'<link[^>]*href="([^"]+\.css)"')
    )
    assert script is not None, "index.html has no script"
    assert style is not None, "index.html has no style sheet"
    return WebBuild(html, *((folder / one[1]).read_text("utf-8") for one in (script, style)))


def picture_of(view: str) -> str:
    """Return the page's picture for a view or a picture's own name. RequestError lists the known names."""
    view = ALIASES.get(view, view)
    if view in VIEWS or view in PICTURES.values():
        return PICTURES.get(view, view)
    known = [*VIEWS, *(name for name in dict.fromkeys((*PICTURES.values(), *ALIASES)) if name not in VIEWS)]
    raise RequestError(f"unknown picture {view!r}; known: {', '.join(known)}", param="view")

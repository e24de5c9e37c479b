"""The views as methods: `t.cell(layer=5, head=3, query=7, key=2)`, `lm.embedding(token=17)`.

A view is a function whose first argument is the trace, or the model; as a class attribute it is a method. These two
classes list all views; `registry.py` describes them for the page, the report and the command line.
"""

from __future__ import annotations

from glassformer.inspect.views.alignment import alignment
from glassformer.inspect.views.anatomy import anatomy, times
from glassformer.inspect.views.attribution import attribution
from glassformer.inspect.views.block import block
from glassformer.inspect.views.cache import cache, cache_speed
from glassformer.inspect.views.cell import cell
from glassformer.inspect.views.embedding import embedding, embedding_map
from glassformer.inspect.views.fork import fork
from glassformer.inspect.views.heads import grid, heads
from glassformer.inspect.views.lens import lens
from glassformer.inspect.views.qkv import qkv
from glassformer.inspect.views.roles import roles
from glassformer.inspect.views.sampling import sampling
from glassformer.inspect.views.summary import summary
from glassformer.inspect.views.support import supported
from glassformer.inspect.views.tokens import merges, tokens
from glassformer.inspect.views.tracks import changed, tracks


class ModelViews:
    """The views of a model, for classes that have `model`, `tokenizer` and `kind`."""

    anatomy = supported(anatomy)
    tokens = supported(tokens)
    merges = supported(merges)
    embedding = supported(embedding)
    embedding_map = supported(embedding_map)


class TraceViews:
    """The views of a trace, for subclasses of `Trace`."""

    summary = supported(summary)
    times = supported(times)
    tracks = supported(tracks)
    changed = supported(changed)
    qkv = supported(qkv)
    cell = supported(cell)
    heads = supported(heads)
    grid = supported(grid)
    roles = supported(roles)
    block = supported(block)
    lens = supported(lens)
    attribution = supported(attribution)
    sampling = supported(sampling)
    cache = supported(cache)
    cache_speed = supported(cache_speed)
    fork = supported(fork)
    alignment = supported(alignment)

"""Which views have no meaning for which kinds of model; the reason is what a person is told instead of a picture.

What is not named here is served; a view may still refuse what a model of a served kind does otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from glassformer.errors import RequestError
from glassformer.inspect.trace.trace import ModelKind

F = TypeVar("F", bound=Callable[..., Any])

NO_SOURCE = "this model reads no source beside its own text: what its tokens look at are the views `cell` and `grid`"
WRITES_NOTHING = "an encoder writes nothing: each state has seen the whole text, and none is read for a next token"
NOTHING_KEPT = "an encoder reads its text whole and once: it keeps no keys and values for tokens to come"
ALL_SEEN = "in an encoder every token sees every other: a change of one reaches all, on either side of it"
BACKWARDS = "roles are of heads that look back at what was written, and an encoder's look both ways"
NO_BLOCKS = "a recurrent model has no blocks: it carries one state from token to token"
NO_HEADS = "a recurrent model has no heads, no queries, keys and values; what attention it may have is `alignment`"
NO_CACHE = "a recurrent model keeps no past tokens: its state is all that it carries on"

REFUSED: dict[ModelKind, dict[str, str]] = {
    "decoder": {"alignment": NO_SOURCE},
    "encoder": {
        "summary": WRITES_NOTHING, "times": WRITES_NOTHING, "lens": WRITES_NOTHING, "attribution": WRITES_NOTHING,
        "sampling": WRITES_NOTHING, "fork": WRITES_NOTHING, "changed": ALL_SEEN, "roles": BACKWARDS,
        "cache": NOTHING_KEPT, "cache_speed": NOTHING_KEPT,
        "alignment": "an encoder by itself has no target to align its text with",
    },
    "encoder-decoder": {},
    "recurrent": {
        "times": NO_BLOCKS, "tracks": NO_BLOCKS,
        "changed": NO_BLOCKS, "qkv": NO_HEADS, "cell": NO_HEADS, "heads": NO_HEADS, "grid": NO_HEADS,
        "roles": NO_HEADS, "block": NO_BLOCKS, "lens": NO_BLOCKS, "attribution": NO_BLOCKS, "cache": NO_CACHE,
        "cache_speed": NO_CACHE,
    },
}  # fmt: skip


def supported(function: F, name: str = "") -> F:
    """Return the view with a check: RequestError for a kind of model that it has no meaning for.

    name: the view's name where it is not the function's.
    """
    name = name or function.__name__

    @functools.wraps(function)
    def view(subject: Any, *args: Any, **given: Any) -> Any:
        for one in (subject, given.get("other", subject)):
            why = REFUSED[one.kind].get(name)
            if why is not None:
                raise RequestError(why, param="view")
        return function(subject, *args, **given)

    return cast(F, view)

"""The views that a kind of model does not support, with the reasons.

A view that is not listed here may still reject a model for another reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from glassformer.errors import RequestError
from glassformer.inspect.trace.trace import ModelKind
from glassformer.plain_numbers import plain_indices

F = TypeVar("F", bound=Callable[..., Any])

NO_SOURCE = "this model has no source: the views `cell` and `grid` show its attention"
NO_NEXT_TOKEN = "an encoder predicts no next token: each of its states depends on the complete text"
NO_ENCODER_CACHE = "an encoder processes its text in one forward pass: it caches no keys and values"
ALL_VISIBLE = "in an encoder every token sees every other: a change of one affects all of them"
NOT_CAUSAL = "roles describe heads that attend to earlier tokens, and an encoder's heads attend to all tokens"
NO_BLOCKS = "a recurrent model has no blocks: it passes one state from token to token"
NO_HEADS = "a recurrent model has no heads, queries, keys or values; the view `alignment` shows its attention"
NO_CACHE = "a recurrent model caches no past tokens: it passes on its state alone"

UNAVAILABLE: dict[ModelKind, dict[str, str]] = {
    "decoder": {"alignment": NO_SOURCE},
    "encoder": {
        "summary": NO_NEXT_TOKEN, "times": NO_NEXT_TOKEN, "lens": NO_NEXT_TOKEN, "attribution": NO_NEXT_TOKEN,
        "sampling": NO_NEXT_TOKEN, "fork": NO_NEXT_TOKEN, "changed": ALL_VISIBLE, "roles": NOT_CAUSAL,
        "cache": NO_ENCODER_CACHE, "cache_speed": NO_ENCODER_CACHE,
        "alignment": "an encoder-only model has no target to align its text with",
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
    """Return a view that raises RequestError for the kinds of model that do not support it.

    The view takes numbers and indices of NumPy and torch too.

    name: the view's name where it is not the function's.
    """
    name = name or function.__name__

    @functools.wraps(function)
    def view(subject: Any, *args: Any, **given: Any) -> Any:
        for one in (subject, given.get("other", subject)):
            why = UNAVAILABLE[one.kind].get(name)
            if why is not None:
                raise RequestError(why, param="view")
        plain = {key: plain_indices(value) for key, value in given.items()}
        return function(subject, *args, **plain)

    return cast(F, view)

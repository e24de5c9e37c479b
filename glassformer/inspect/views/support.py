"""The views that a kind of model does not support, with the reason.

A view that is not listed here may still raise RequestError for a model whose configuration it does not support.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from glassformer.errors import RequestError
from glassformer.inspect.trace.trace import ModelKind

F = TypeVar("F", bound=Callable[..., Any])

NO_SOURCE = "a decoder has no source to align with: use the views `cell` and `grid` to see its attention"
NO_GENERATION = "an encoder-only model does not generate text, so it has no next-token predictions"
NO_ENCODER_CACHE = "an encoder-only model processes a text in one forward pass, so it has no key/value cache"
BIDIRECTIONAL = "attention in an encoder is bidirectional: a change of one token affects the tokens before it too"
NO_ROLES = "head roles are defined for causal attention, and attention in an encoder is bidirectional"
NO_BLOCKS = "a recurrent model has no blocks: its state is updated token by token"
NO_HEADS = "a recurrent model has no attention heads: its attention to the source, if any, is the view `alignment`"
NO_CACHE = "a recurrent model has no key/value cache: its state has a fixed size"

UNAVAILABLE: dict[ModelKind, dict[str, str]] = {
    "decoder": {"alignment": NO_SOURCE},
    "encoder": {
        "summary": NO_GENERATION, "times": NO_GENERATION, "lens": NO_GENERATION, "attribution": NO_GENERATION,
        "sampling": NO_GENERATION, "fork": NO_GENERATION, "changed": BIDIRECTIONAL, "roles": NO_ROLES,
        "cache": NO_ENCODER_CACHE, "cache_speed": NO_ENCODER_CACHE,
        "alignment": "an encoder-only model has no target to align the text with",
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
    """Return the view with a check that raises RequestError for the kinds of model that do not support it.

    name: the view's name, if it differs from the function's.
    """
    name = name or function.__name__

    @functools.wraps(function)
    def view(subject: Any, *args: Any, **options: Any) -> Any:
        for one in (subject, options.get("other", subject)):
            reason = UNAVAILABLE[one.kind].get(name)
            if reason is not None:
                raise RequestError(reason, param="view")
        return function(subject, *args, **options)

    return cast(F, view)

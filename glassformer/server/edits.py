"""Edits as a request spells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glassformer.errors import RequestError


def edits_of(given: Sequence[dict[str, Any]] | None) -> tuple[Any, ...]:
    """The edits of a request. RequestError names the one that cannot be read, and why."""
    if not given:
        return ()
    raise RequestError("edits are not served yet", param="edits")

"""Edits as a request spells them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glassformer.errors import RequestError
from glassformer.inspect.trace import Trace


class Edits:
    """Reads edits. `trace_of` gives the trace that a patch takes from."""

    def __init__(self, trace_of: Callable[[str], Trace]):
        self.trace_of = trace_of

    def read(self, given: Sequence[dict[str, Any]] | None) -> tuple[Any, ...]:
        """The edits of a request. RequestError names the one that cannot be read, and why."""
        if not given:
            return ()
        raise RequestError("edits are not served yet", param="edits")

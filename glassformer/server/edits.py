"""Edits as a request spells them, and the vectors that they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glassformer.errors import RequestError
from glassformer.inspect.edits.edit import Edit, Store, from_json
from glassformer.inspect.trace.trace import Trace


class EditReader:
    """`trace_of` gives the trace that a patch takes from; `store` has the vectors, by their SHA-256."""

    def __init__(self, trace_of: Callable[[str], Trace]):
        self.trace_of, self.store = trace_of, Store()

    def read(self, given: Sequence[dict[str, Any]]) -> tuple[Edit, ...]:
        """The edits of a request. RequestError says which of them cannot be read, and why."""
        found = []
        for i, one in enumerate(given):
            try:
                found.append(from_json(one, self.store, self.trace_of))
            except RequestError as error:
                raise RequestError(f"edits[{i}]: {error}", param="edits") from None
        return tuple(found)

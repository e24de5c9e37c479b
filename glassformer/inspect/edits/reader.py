"""Read edits from JSON: the vectors and traces that they refer to are looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glassformer.errors import RequestError
from glassformer.inspect.edits.edit import Edit, Store, from_json
from glassformer.inspect.trace.trace import Trace


class EditReader:
    """find_trace: returns the trace that a patch takes from. store: vectors by their SHA-256."""

    def __init__(self, find_trace: Callable[[str], Trace] | None = None):
        self.find_trace, self.store = find_trace, Store()

    def read(self, given: Sequence[dict[str, Any]]) -> tuple[Edit, ...]:
        """Return the edits. RequestError names the first that is not valid, and says why."""
        found = []
        for i, one in enumerate(given):
            try:
                found.append(from_json(one, self.store, self.find_trace))
            except RequestError as error:
                raise RequestError(f"edits[{i}]: {error}", param="edits") from None
        return tuple(found)

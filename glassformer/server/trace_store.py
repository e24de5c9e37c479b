"""Traces that are kept between requests: the least recently used go when their bytes do not fit.

They live in the server's memory, so a page that is loaded again finds them by their ids. An id is never used twice.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from glassformer.inspect.capture.reader import mega
from glassformer.inspect.trace.trace import Trace
from glassformer.server.errors import ApiError

REMEMBERED = 4096  # ids of traces that are no longer there, and why


@dataclass(eq=False)
class StoredTrace:
    """A kept trace. `model` is the name under which its model is served; `bytes` was measured after its last use."""

    id: str
    model: str
    trace: Trace
    created: int
    bytes: int


class TraceStore:
    """The kept traces, of at most `limit` bytes in all."""

    def __init__(self, limit: int):
        self.limit = limit
        self._kept: OrderedDict[str, StoredTrace] = OrderedDict()
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, model: str, trace: Trace) -> StoredTrace:
        """Keep a trace under a new id."""
        entry = StoredTrace(secrets.token_hex(12), model, trace, int(time.time()), 0)
        with self._lock:
            self._kept[entry.id] = entry
        self.used(entry)
        return entry

    def get(self, id: str) -> StoredTrace:
        """The trace of an id, now the most recently used. `Refused` says whether it was there once."""
        with self._lock:
            if id in self._kept:
                self._kept.move_to_end(id)
                return self._kept[id]
            why = self._gone.get(id)
        if why is None:
            raise ApiError(404, f"there is no trace {id[:64]!r}", param="id", code="trace_not_found")
        raise ApiError(404, f"the trace {id!r} is no longer there: {why}", param="id", code="trace_gone")

    def remove(self, id: str) -> None:
        """Forget a trace."""
        self.get(id)
        with self._lock:
            self._drop(id, "it was deleted")

    def all(self) -> list[StoredTrace]:
        """Those that are there, the most recently used first."""
        with self._lock:
            return list(reversed(self._kept.values()))

    def used(self, entry: StoredTrace) -> None:
        """Measure a trace, for they grow when they are looked at, and drop others that no longer fit beside it.

        To be called where traces are computed: nothing else may measure one, which another thread may be changing.
        """
        entry.bytes = entry.trace.bytes
        with self._lock:
            total = sum(one.bytes for one in self._kept.values())
            while total > self.limit and len(self._kept) > 1:
                id, oldest = next(iter(self._kept.items()))
                total -= oldest.bytes
                self._drop(
                    id,
                    f"the {mega(self.limit)} for traces were full, and it was the least recently used; make it again",
                )

    @property
    def state(self) -> dict[str, int]:
        with self._lock:
            held = sum(entry.bytes for entry in self._kept.values())
            return {"count": len(self._kept), "bytes": held, "limit": self.limit}

    def _drop(self, id: str, why: str) -> None:
        self._kept.pop(id, None)
        self._gone[id] = why
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

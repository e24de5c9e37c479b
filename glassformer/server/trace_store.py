"""Traces in the server's memory, bounded by bytes and by number: the least recently used are dropped.

A reloaded page finds its traces by their ids. An id is never reused.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from glassformer.inspect.capture.capture import format_bytes
from glassformer.inspect.trace.trace import Trace
from glassformer.server.errors import ApiError

MAX_TRACES = 1024
MAX_DROPPED_IDS = 4096  # ids of dropped traces, with the reason


@dataclass(eq=False)
class StoredTrace:
    """A stored trace. `model`: the name of its served model. `bytes`: its size after its last use."""

    id: str
    model: str
    trace: Trace
    created: int
    bytes: int


class TraceStore:
    """At most MAX_TRACES stored traces, of at most `limit` bytes in total."""

    def __init__(self, limit: int):
        self.limit = limit
        self._traces: OrderedDict[str, StoredTrace] = OrderedDict()
        self._dropped: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, model: str, trace: Trace) -> StoredTrace:
        """Store a trace under a new id."""
        entry = StoredTrace(secrets.token_hex(12), model, trace, int(time.time()), 0)
        with self._lock:
            self._traces[entry.id] = entry
        self.update_size(entry)
        return entry

    def get(self, id: str) -> StoredTrace:
        """Return a trace and mark it as most recently used. Raises ApiError 404, with the reason if it was dropped."""
        with self._lock:
            if id in self._traces:
                self._traces.move_to_end(id)
                return self._traces[id]
            why = self._dropped.get(id)
        if why is None:
            raise ApiError(404, f"the trace {id[:64]!r} does not exist", param="id", code="trace_not_found")
        raise ApiError(404, f"the trace {id!r} was dropped: {why}", param="id", code="trace_gone")

    def remove(self, id: str) -> None:
        """Delete a trace."""
        self.get(id)
        with self._lock:
            self._drop(id, "it was deleted")

    def all(self) -> list[StoredTrace]:
        """Return all traces, the most recently used first."""
        with self._lock:
            return list(reversed(self._traces.values()))

    def update_size(self, entry: StoredTrace) -> None:
        """Measure a trace, which grows when it is inspected, and drop others that no longer fit.

        Call it in the worker thread only: another thread must not measure a trace while it changes.
        """
        entry.bytes = entry.trace.bytes
        with self._lock:
            total = sum(one.bytes for one in self._traces.values())
            memory = f"the trace memory of {format_bytes(self.limit)} and {MAX_TRACES:,} traces"
            while (total > self.limit and len(self._traces) > 1) or len(self._traces) > MAX_TRACES:
                id, oldest = next(iter(self._traces.items()))
                total -= oldest.bytes
                self._drop(id, f"{memory} was full, and it was the least recently used: create it again")

    @property
    def state(self) -> dict[str, int]:
        with self._lock:
            total = sum(entry.bytes for entry in self._traces.values())
            return {"count": len(self._traces), "bytes": total, "limit": self.limit}

    def _drop(self, id: str, why: str) -> None:
        self._traces.pop(id, None)
        self._dropped[id] = why
        while len(self._dropped) > MAX_DROPPED_IDS:
            self._dropped.popitem(last=False)

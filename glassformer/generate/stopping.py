"""Find stop strings in streamed text, including those that span several tokens."""

from __future__ import annotations

from collections.abc import Sequence

from glassformer.errors import RequestError


class StopStrings:
    """Releases streamed text that cannot be part of a stop string.

    The stop string and the text after it are never released. `found` is the stop string that ended the text: the one
    that was complete first (the longest, if several were), independent of the split into chunks.
    """

    def __init__(self, stops: Sequence[str]):
        if any(not isinstance(stop, str) or not stop for stop in stops):
            raise RequestError(f"stop strings must not be empty, got {list(stops)!r}", param="stop")
        self.stops, self.pending, self.found = tuple(stops), "", None

    def push(self, text: str) -> str:
        """Add text; return the text that became final."""
        if self.found is not None:
            return ""
        self.pending += text
        hits = [(at + len(stop), at, stop) for stop in self.stops if (at := self.pending.find(stop)) >= 0]
        if hits:
            _, at, self.found = min(hits)
            text, self.pending = self.pending[:at], ""
            return text
        return self._release(len(self.pending) - self._possible())

    def finish(self) -> str:
        """End the text; return the pending text."""
        return self._release(len(self.pending)) if self.found is None else ""

    def _possible(self) -> int:
        """Return the number of last characters that may be the start of a stop string."""
        longest = 0
        for stop in self.stops:
            for n in range(min(len(stop) - 1, len(self.pending)), longest, -1):
                if self.pending.endswith(stop[:n]):
                    longest = n
                    break
        return longest

    def _release(self, end: int) -> str:
        text, self.pending = self.pending[:end], self.pending[end:]
        return text

"""Find stop strings in streamed text, also across token boundaries."""

from __future__ import annotations

from collections.abc import Sequence

from glassformer.errors import RequestError


class StopStrings:
    """Releases streamed text that cannot be part of a stop string.

    The stop string and what follows it are never released. `found` is the stop string that ended the text: the first
    one to be complete (the longest, if several are at once), however the text was split into chunks.
    """

    def __init__(self, stops: Sequence[str]):
        if any(not isinstance(stop, str) or not stop for stop in stops):
            raise RequestError(f"stop strings must not be empty, got {list(stops)!r}", param="stop")
        self.stops, self.pending, self.found = tuple(stops), "", None

    def push(self, text: str) -> str:
        """Add text; return what is final."""
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
        """End the text; return what was pending."""
        return self._release(len(self.pending)) if self.found is None else ""

    def _possible(self) -> int:
        """Return how many of the last characters may begin a stop string."""
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

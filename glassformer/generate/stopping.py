"""Stop strings, found also where they span the border between tokens."""

from __future__ import annotations

from collections.abc import Sequence

from glassformer.errors import RequestError


class StopStrings:
    """Text goes in piece by piece; what comes out can no longer be part of a stop string.

    The stop string itself, and what follows, never comes out. `found` is the one that ended the text: the first to be
    complete (of several at once the longest), so that it does not matter how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]):
        if any(not isinstance(stop, str) or not stop for stop in stops):
            raise RequestError(f"stop strings must not be empty, got {list(stops)!r}", param="stop")
        self.stops, self.held, self.found = tuple(stops), "", None

    def push(self, text: str) -> str:
        """Take more text; returns what is certain to stay."""
        if self.found is not None:
            return ""
        self.held += text
        hits = [(at + len(stop), at, stop) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if hits:
            _, at, self.found = min(hits)
            text, self.held = self.held[:at], ""
            return text
        return self._release(len(self.held) - self._possible())

    def finish(self) -> str:
        """No more text comes: what was held back stays after all."""
        return self._release(len(self.held)) if self.found is None else ""

    def _possible(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = 0
        for stop in self.stops:
            for n in range(min(len(stop) - 1, len(self.held)), longest, -1):
                if self.held.endswith(stop[:n]):
                    longest = n
                    break
        return longest

    def _release(self, end: int) -> str:
        text, self.held = self.held[:end], self.held[end:]
        return text

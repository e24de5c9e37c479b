"""SIGINT and SIGTERM during training: the first requests a checkpoint and a stop, the second acts as usual."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """A context that records the first SIGINT or SIGTERM in `name` and then restores the previous handlers.

    Python delivers signals to the main thread only; in other threads this does nothing.
    """

    def __init__(self):
        self.name: str | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self.__exit__()

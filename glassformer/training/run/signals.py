"""SIGINT and SIGTERM during training: the first asks to save and stop, the second acts as if nobody listened."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """While active, remembers the first SIGINT or SIGTERM in `name` and gives the signals back to who had them before.

    Only a program's main thread may listen; elsewhere this does nothing.
    """

    def __init__(self):
        self.name: str | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self.__exit__()

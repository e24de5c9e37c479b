"""The child process that encodes texts with a tokenizer whose regular expressions may need exponential time.

    parent -> child   a frame: JSON {"open": [layout, layout of plain text]}, then {"call": [method, *arguments]};
                      both with "cpu_seconds"
    child -> parent   a frame: JSON {"result"}, {"type_error"}, or {"error", "ended"}

`child_worker.py` has the limits. After an error the process is replaced, because the library's panics fill its stderr.
"""

from __future__ import annotations

from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.child_worker import (
    TimeLimitError,
    decode_json,
    encode_json,
    serve,
    set_timers,
    too_large,
    too_slow,
)
from glassformer.text.hf_encoder import HFEncoder, open_library


class EncoderWorker:
    """Encodes texts with the tokenizer that the first request contains.

    memory_bytes: address space of the process
    """

    def __init__(self, memory_bytes: int):
        self.memory_bytes = memory_bytes

    def answer(self, frame: bytes) -> bytes:
        """Answer a request within the limits."""
        request = decode_json(frame)
        try:
            set_timers(request["cpu_seconds"])
            return self._answer(request)
        except TypeError as error:  # a lone surrogate
            return encode_json({"type_error": str(error)})
        except TokenizerError as error:
            problem = str(error)
        except TimeLimitError:
            problem = too_slow(request["cpu_seconds"])
        except MemoryError:
            problem = too_large(self.memory_bytes)
        finally:
            set_timers(0)
        return encode_json({"error": problem, "ended": True})

    def _answer(self, request: dict[str, Any]) -> bytes:
        if "open" in request:
            parsing, plain = request["open"]
            self._encoder = HFEncoder(open_library(parsing), plain)
            return encode_json({"result": None})
        method, *args = request["call"]
        return encode_json({"result": getattr(self._encoder, method)(*args)})


def main(memory_bytes: int) -> None:
    """Answer requests until the input ends."""
    serve(EncoderWorker(memory_bytes).answer, memory_bytes)

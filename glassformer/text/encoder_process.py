"""Encode texts in child processes with limits, for tokenizers whose regular expressions may need exponential time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.child_process import ChildEndedError, ChildPool, ChildProcess
from glassformer.text.child_worker import encode_json
from glassformer.text.hf_encoder import JSON

CPU_SECONDS = 1.0  # processor time of one call ...
CPU_SECONDS_PER_CHARACTER = 1e-5  # ... and of its texts: several times what ordinary patterns need
OPEN_SECONDS = 60.0  # processor time for opening the tokenizer
MEMORY_BYTES = 4 << 30  # address space of a child process
MAX_PROCESSES = 2  # of one tokenizer; other calls wait


class EncoderPool(ChildPool):
    """An `HFEncoder` in up to `MAX_PROCESSES` child processes, which are started when needed. Thread-safe.

    A call that exceeds a limit raises TokenizerError with the limit and the patterns.
    """

    def __init__(self, parsing: Mapping[str, Any], plain: Mapping[str, Any], patterns: Sequence[str]):
        """Create the pool; the first call starts a child.

        Args:
            parsing: The layout of the tokenizer that parses special tokens.
            plain: The layout of the one that does not.
            patterns: The regular expressions that require limits, for messages.
        """
        super().__init__(MAX_PROCESSES)
        self._open = encode_json({"open": [parsing, plain], "cpu_seconds": OPEN_SECONDS})
        self._patterns = " and ".join(repr(p[:200] + "..." * (len(p) > 200)) for p in dict.fromkeys(patterns[:3]))

    def encode(self, texts: Sequence[str], parse_special: bool) -> list[list[int]]:
        return self._call(sum(map(len, texts)), "encode", texts, parse_special)

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        return self._call(sum(map(len, texts)), "encode_continuations", texts)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        size = sum(len(text) for pair in pairs for text in pair)
        return [(ids, types) for ids, types in self._call(size, "encode_pairs", pairs)]

    def encode_offsets(self, text: str, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = self._call(len(text), "encode_offsets", text, parse_special)
        return ids, [(start, end) for start, end in offsets]

    def _start(self) -> ChildProcess:
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}  # threads would share the limits
        module, task = "glassformer.text.encoder_worker", "encodes texts"
        process = ChildProcess(module, MEMORY_BYTES, task=task, memory_bytes=MEMORY_BYTES, env=env)
        try:
            reply = process.exchange(self._open, OPEN_SECONDS)
            if "error" in reply:
                raise self._error("the tokenizer cannot be opened", reply["error"])
        except BaseException as error:
            process.close()
            if isinstance(error, ChildEndedError):
                raise self._error("the tokenizer cannot be opened", error.problem) from error
            raise
        return process

    def _call(self, size: int, *call: Any) -> Any:
        """Call a method of the encoder with texts of `size` characters."""
        cpu_seconds = CPU_SECONDS + CPU_SECONDS_PER_CHARACTER * size
        try:
            reply = self.exchange(encode_json({"call": call, "cpu_seconds": cpu_seconds}), cpu_seconds)
        except ChildEndedError as error:
            reply = {"error": error.problem}
        if "type_error" in reply:
            raise TypeError(reply["type_error"])
        if "error" in reply:
            raise self._error(f"{size} characters cannot be encoded", reply["error"])
        return reply["result"]

    def _error(self, what: str, problem: str) -> TokenizerError:
        problem = problem.removeprefix(f"{JSON}: ")
        return TokenizerError(f"{JSON}: {what} with the pattern {self._patterns}: {problem}")

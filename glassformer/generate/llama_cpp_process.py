"""Run a GGUF file in llama.cpp, for benchmarks: in a child process with llama-cpp-python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats.gguf.metadata import write_metadata
from glassformer.formats.gguf.save import save_gguf
from glassformer.formats.save import GgufKind
from glassformer.generate.speed import Timing
from glassformer.nn.model import Decoder

CHILD = Path(__file__).with_name("llama_cpp_child.py")
INTERPRETER_VARIABLE = "GLASSFORMER_LLAMA_CPP"
NAME = "llama.cpp"


def find_interpreter(requested: str | None) -> str:
    """Return a Python interpreter that has llama-cpp-python: the requested one, or this one.

    Raises:
        ConfigError: there is none.
    """
    if requested:
        found = shutil.which(requested)
        if found is None:
            raise ConfigError(
                f"{INTERPRETER_VARIABLE} is {requested!r}, which is not a program: give a Python interpreter"
            )
        return found
    if find_spec("llama_cpp") is None:
        raise ConfigError(
            f"{NAME} is not installed: pip install llama-cpp-python, or set {INTERPRETER_VARIABLE} to the "
            "Python interpreter of an environment that has it"
        )
    return sys.executable


def save_without_tokenizer(model: Decoder, path: Path, kind: GgufKind) -> None:
    """Save a GGUF file that states only the size of the vocabulary. Errors: those of `save_gguf`."""
    architecture = write_metadata(model.config).architecture
    size = {f"{architecture}.vocab_size": model.config.vocab_size}
    save_gguf(model, path, kind, extra={"tokenizer.ggml.model": "no_vocab", **size})


class LlamaCpp:
    """One GGUF file in a child process. `run` is a `Run` of `speed.py`; `close` ends the process.

    Attributes:
        version: of llama-cpp-python.
        system: the instruction sets that it uses, as it reports them.
        memory: the bytes that the model and the last context added to the process; 0 if it is not reported.

    Raises:
        ConfigError: the interpreter has no llama-cpp-python.
        CheckpointError: llama.cpp cannot run the file.
    """

    memory = 0

    def __init__(self, path: Path, interpreter: str, threads: int, clock: str = "wall"):
        self.path, self.interpreter = path, interpreter
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in `close`
        pipe = subprocess.PIPE
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [interpreter, str(CHILD)], stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment
        )
        try:
            answer = self._ask({"path": str(path.resolve()), "threads": threads, "clock": clock})
        except BaseException:
            self.close()
            raise
        self.version, self.system = str(answer["version"]), str(answer["system"])

    def run(self, prompts: list[list[int]], new_tokens: int) -> Timing:
        answer = self._ask({"prompts": prompts, "new_tokens": new_tokens})
        self.memory = int(answer["memory"])
        return Timing(answer["prefill"], answer["decode"], answer["ids"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):  # the process has ended
            raise self._error() from None

    def _error(self) -> ConfigError | CheckpointError:
        self.process.wait()
        self.errors.seek(0)
        lines = [line for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        if any("No module named 'llama_cpp'" in line for line in lines):
            return ConfigError(
                f"{self.interpreter} has no llama-cpp-python: set {INTERPRETER_VARIABLE} to a Python that has it"
            )
        last = "; ".join(lines[-2:]) or f"exit status {self.process.returncode}"
        return CheckpointError(f"{NAME} cannot run {self.path}: {last}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

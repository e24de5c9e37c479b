"""Tokenizer training on documents of any size: on a bounded sample, in a child process that Ctrl-C ends at once."""

import heapq
import json
import os
import queue
import random
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from glassformer.errors import DataError, TokenizerError
from glassformer.text import train_worker as worker
from glassformer.text.patterns import PATTERNS
from glassformer.text.tokenizer import Tokenizer

Progress = Callable[[int, int | None, str], None]
"""progress(done, total, stage), called in the caller's thread. The stages are "reading" (bytes; total None while it is
unknown), "counting words" (bytes), "splitting words" and "counting pairs" (distinct words) and "merging" (merges)."""

KINDS = ("bpe", "char", "word")

_BLOCK_SIZE = 1 << 16
_WORD_BOUNDARY = re.compile(rb"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")  # no split pattern joins the two sides of it
_STAGES = {"Tokenize words": "splitting words", "Count pairs": "counting pairs", "Compute merges": "merging"}


@dataclass(frozen=True)
class TrainReport:
    """How a tokenizer was trained; `train_tokenizer` passes it to `on_report`.

    documents: number of documents
    bytes_seen: size of all documents in UTF-8
    bytes_used: size of the text that it was trained on
    because: why that is less than all of it
    seconds: from the first document to the end
    peak_memory: bytes, the peak of this process plus the peak of the child; 0 where the system does not report it
    """

    documents: int
    bytes_seen: int
    bytes_used: int
    because: str
    seconds: float
    peak_memory: int

    def __str__(self) -> str:
        return (
            f"trained on {self.bytes_used / 1e6:,.1f} of {self.bytes_seen / 1e6:,.1f} MB in {self.documents:,} "
            f"documents ({self.because}) in {self.seconds:.1f} s, peak memory {self.peak_memory / 1e6:,.0f} MB"
        )


def train_tokenizer(
    documents: Iterable[str],
    *,
    kind: str = "bpe",
    vocab_size: int,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    pattern: str = "gpt2",
    max_bytes: int = 100_000_000,
    seed: int = 0,
    progress: Progress | None = None,
    on_report: Callable[[TrainReport], None] | None = None,
) -> Tokenizer:
    """Train a tokenizer on `documents`, which are read once and never all in memory.

    Runs of more than 256 letters, digits, punctuation or white-space characters are split. Ctrl-C ends the child
    process and leaves no files.

    Args:
        documents: The texts.
        kind: "bpe" (byte-level, encodes any text), "char" (each character is a token) or "word" (a token is a word or
            punctuation with the space before it). The last two encode unknown text as <|unk|>.
        vocab_size: Maximum number of tokens, including the special tokens.
        special_tokens: They take the first ids. The first of them is both BOS and EOS.
        pattern: Split pattern of "bpe", a key of PATTERNS; merges never cross its word boundaries.
        max_bytes: Maximum size of the training text in UTF-8. From a larger text a uniform sample of 64 KB blocks is
            drawn. Of the sample, at most 3 MB of distinct words are used: training needs 120 times as much memory.
        seed: Seed of the sample.
        progress: Receives the progress, see Progress.
        on_report: Receives a TrainReport at the end.

    Raises:
        TokenizerError: An option is out of range, a text has a lone surrogate, or the child process failed.
        DataError: The documents contain no text.
    """
    special_tokens = list(special_tokens)
    _check_options(documents, kind, vocab_size, special_tokens, pattern, max_bytes)
    if kind != "bpe" and worker.UNK not in special_tokens:
        special_tokens.append(worker.UNK)
    report_progress = _throttle(progress)
    started = time.monotonic()
    sample = _draw_sample(documents, max_bytes, seed, report_progress)
    if not sample.size:
        raise DataError(f"no text to train a tokenizer on: {sample.documents} documents, all of them empty")

    because = "all of it" if sample.size == sample.seen else f"sampled to max_bytes={max_bytes}"
    request = {
        "kind": kind,
        "pattern": pattern,
        "vocab_size": vocab_size,
        "special_tokens": special_tokens,
        "total": sample.size,
    }
    result = _train_in_child(request, sample.blocks, report_progress)
    if result["full"]:
        because = f"the limit of {worker.MAX_DISTINCT_BYTES} bytes of distinct words was reached"
    config: dict[str, Any] = {}
    if special_tokens[0] != worker.UNK:
        config = {"bos_token": special_tokens[0], "eos_token": special_tokens[0], "add_bos_token": True}
    config |= {} if kind == "bpe" else {"unk_token": worker.UNK}
    tokenizer = Tokenizer(result["tokenizer"], config)
    for name in special_tokens:
        if name != worker.UNK and tokenizer.special_tokens[name] in tokenizer.encode(name, bare=True):
            raise TokenizerError(f"plain text would become the special token {name!r}: spell it <|like_this|>")
    if on_report:
        memory = worker.peak_memory() + result["peak"]
        seconds = time.monotonic() - started
        on_report(TrainReport(sample.documents, sample.seen, result["used"], because, seconds, memory))
    return tokenizer


def _check_options(
    documents: Any, kind: str, vocab_size: int, special_tokens: list[str], pattern: str, max_bytes: int
) -> None:
    """Raise TokenizerError for an option that is out of range."""
    if kind not in KINDS:
        raise TokenizerError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if pattern not in PATTERNS:
        raise TokenizerError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
    if isinstance(documents, str | bytes):
        raise TokenizerError(f"documents must be an iterable of str, got one {type(documents).__name__}")
    valid = all(isinstance(name, str) and name for name in special_tokens)
    if not special_tokens or not valid or len(set(special_tokens)) < len(special_tokens):
        raise TokenizerError(f"special_tokens must be one or more distinct non-empty strings, got {special_tokens!r}")
    n_basis, basis = (256, "the 256 bytes") if kind == "bpe" else (2, f"{worker.UNK} and one token")
    minimum = n_basis + len(special_tokens) - (kind != "bpe" and worker.UNK in special_tokens)
    if vocab_size < minimum:
        needed = f"{minimum} ({minimum - n_basis} special tokens and {basis})"
        raise TokenizerError(f"vocab_size must be at least {needed}, got {vocab_size}")
    if not 0 < max_bytes < 1 << 31:  # the library counts pairs in 32 bits
        raise TokenizerError(f"max_bytes must be from 1 to {(1 << 31) - 1}, got {max_bytes}")


@dataclass
class _Sample:
    """blocks: frames for the child, in random order; size, seen: bytes of text in the blocks and in all documents."""

    blocks: list[bytes]
    size: int = 0
    seen: int = 0
    documents: int = 0


def _draw_sample(documents: Iterable[str], max_bytes: int, seed: int, progress: Progress) -> _Sample:
    """Draw a uniform sample of blocks: each gets a random key, and those with the smallest keys that fit remain."""
    rng = random.Random(seed)
    heap: list[tuple[float, int, bytes]] = []  # (-key, size, block), the largest key on top
    sample = _Sample([])
    block, size, full = bytearray(), 0, max(1, min(_BLOCK_SIZE, max_bytes // 16))

    def add_block() -> None:
        heapq.heappush(heap, (-rng.random(), size, bytes(block)))
        sample.size += size
        while sample.size > max_bytes and len(heap) > 1:
            sample.size -= heapq.heappop(heap)[1]

    for document in documents:
        for chunk in _split_chunks(_to_utf8(document, sample.documents), full):
            block += worker.FRAME.pack(len(chunk)) + chunk
            size += len(chunk)
            if size >= full:
                add_block()
                block, size = bytearray(), 0
            sample.seen += len(chunk)
        sample.documents += 1
        progress(sample.seen, None, "reading")
    if size:
        add_block()
    progress(sample.seen, sample.seen, "reading")
    sample.blocks = [block for *_, block in sorted(heap, reverse=True)]
    return sample


def _to_utf8(document: Any, number: int) -> bytes:
    if not isinstance(document, str):
        raise TokenizerError(f"document {number} must be a str, got {type(document).__name__}")
    try:
        return document.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(document[error.start]):04X}"
        raise TokenizerError(f"document {number}: character {error.start} is a lone surrogate ({code})") from error


def _split_chunks(data: bytes, size: int) -> Iterator[bytes]:
    """Split UTF-8 `data` into chunks of about `size` bytes, between words or, without words, between characters."""
    start = 0
    while len(data) - start > size:
        end = start + size
        if boundary := _WORD_BOUNDARY.search(data, end, end + 4096):
            end = boundary.start()
        while end < len(data) and data[end] & 0xC0 == 0x80:  # inside a character
            end += 1
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


def _train_in_child(request: dict[str, Any], blocks: list[bytes], progress: Progress) -> dict[str, Any]:
    """Run `train_worker` on the blocks and return its result. Each block is freed after it is sent.

    On any exception, including Ctrl-C, the child is killed and waited for before this function returns.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from glassformer.text.train_worker import main; main()"
    environment = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}  # measured: as fast, 20% less memory
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    other_lines: deque[str] = deque(maxlen=8)
    listener = threading.Thread(target=_listen, args=(child.stdout, messages, other_lines), daemon=True)
    result: dict[str, Any] | None = None
    n_merges = request["vocab_size"] - 256 - len(request["special_tokens"])

    def handle(message: dict[str, Any]) -> None:
        nonlocal result
        if "tokenizer" in message:
            result = message
            return
        stage: str = message["stage"]
        stage = _STAGES.get(stage, stage)
        total = min(message["total"], n_merges) if stage == "merging" else message["total"]
        progress(message["current"], total, stage)

    try:
        listener.start()
        with suppress(BrokenPipeError):  # the child ended early; its output tells why
            child.stdin.write(json.dumps(request).encode() + b"\n")
            blocks.reverse()
            while blocks:
                child.stdin.write(blocks.pop())
                while not messages.empty() and (message := messages.get()):
                    handle(message)
            child.stdin.write(worker.END)
            child.stdin.flush()
        while message := messages.get():
            handle(message)
        status = child.wait()
    finally:
        child.kill()
        child.wait()
        listener.join()
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
    if result is None:
        reason = "it was killed (out of memory? lower max_bytes)" if status == -9 else "\n".join(other_lines)
        raise TokenizerError(f"the training process ended with status {status}: {reason}")
    return result


def _listen(pipe: Any, messages: queue.SimpleQueue, other_lines: deque[str]) -> None:
    """Queue the child's JSON lines until it ends, then None; collect its last other lines, such as a traceback."""
    for line in pipe:
        if line.startswith(b"{"):
            messages.put(json.loads(line))
        else:
            other_lines.append(line.decode("utf-8", "replace").rstrip())
    messages.put(None)


def _throttle(progress: Progress | None, interval: float = 0.05) -> Progress:
    """Return `progress`, called at most once per `interval` seconds, but always at the end of a stage."""
    last = 0.0

    def throttled(done: int, total: int | None, stage: str) -> None:
        nonlocal last
        if progress and (done == total or time.monotonic() - last >= interval):
            last = time.monotonic()
            progress(done, total, stage)

    return throttled

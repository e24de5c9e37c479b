"""Train a tokenizer on documents of any size: sampled to a byte cap, in a child process that Ctrl-C ends at once."""

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
"""progress(done, total, what): what is "reading" (bytes; total None, as nobody knows it yet), "counting words" (bytes),
"splitting words", "counting pairs" (both in different words) or "merging" (merges).  Called in the caller's thread."""

KINDS = ("bpe", "char", "word")

_BLOCK = 1 << 16
_CUT = re.compile(rb"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")  # between words, where no pattern joins the two sides
_STAGES = {"Tokenize words": "splitting words", "Count pairs": "counting pairs", "Compute merges": "merging"}


@dataclass(frozen=True)
class TrainReport:
    """What a tokenizer was trained on.

    documents, bytes_seen: how many there were, and their size in UTF-8;  bytes_used: how much of that was trained on;
    because: why not more;  seconds: from the first document to the end;  peak_memory: bytes, this process's highest
    ever plus the child's (0 where the system does not tell).
    """

    documents: int
    bytes_seen: int
    bytes_used: int
    because: str
    seconds: float
    peak_memory: int

    def __str__(self) -> str:
        return (
            f"learned from {self.bytes_used / 1e6:,.1f} of {self.bytes_seen / 1e6:,.1f} MB in {self.documents:,} "
            f"documents ({self.because}) in {self.seconds:.1f} s, peak memory {self.peak_memory / 1e6:,.0f} MB"
        )


def train_tokenizer(
    documents: Iterable[str],
    *,
    kind: str = "bpe",
    vocab_size: int,
    special: Sequence[str] = ("<|endoftext|>",),
    pattern: str = "gpt2",
    max_bytes: int = 100_000_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tokenizer:
    """Learn a vocabulary from `documents`, which are read once and never held in memory all together.

    kind        "bpe" (bytes and merges: any text can be written), "char" (each character a token) or "word" (words and
                punctuation, each with the one space before it); the last two have <|unk|> for what they do not know
    vocab_size  tokens in all, the special ones included; there are fewer where the documents hold no more
    special     control tokens, first in the vocabulary; the first of them begins a text and ends it (bos, eos)
    pattern     for bpe, where merges stop: "gpt2" or "qwen2"
    max_bytes   of UTF-8: from more than this a sample is drawn, uniformly in blocks of about 64 KB, the same for the
                same seed.  Of this, about 3 MB of different words are used: training takes 120 times that in memory.
    progress    see Progress

    Runs of more than 256 letters, digits, signs or spaces are cut.  Ctrl-C ends the child process and leaves nothing.
    `.report` of the tokenizer says what was used.  Raises TokenizerError for an option out of range, a lone surrogate
    or a child that ended early, DataError for documents without text.
    """
    special = list(special)
    _check(documents, kind, vocab_size, special, pattern, max_bytes)
    if kind != "bpe" and worker.UNK not in special:
        special.append(worker.UNK)
    tell = _throttled(progress)
    started = time.monotonic()
    sample = _draw(documents, max_bytes, seed, tell)
    if not sample.size:
        raise DataError(f"no text to train a tokenizer on: {sample.documents} documents, all of them empty")

    because = "all of it" if sample.size == sample.seen else f"sampled to max_bytes={max_bytes}"
    request = {"kind": kind, "pattern": pattern, "vocab_size": vocab_size, "special": special, "total": sample.size}
    answer = _train_apart(request, sample.blocks, tell)
    if answer["full"]:
        because = f"a sample up to {worker.DISTINCT_BYTES} bytes of different words, as many as memory is given for"
    config: dict[str, Any] = {}
    if special[0] != worker.UNK:
        config = {"bos_token": special[0], "eos_token": special[0], "add_bos_token": True}
    config |= {} if kind == "bpe" else {"unk_token": worker.UNK}
    tokenizer = Tokenizer(answer["tokenizer"], config)
    for name in special:
        if name != worker.UNK and tokenizer.special[name] in tokenizer.encode(name, bare=True):
            raise TokenizerError(f"special token {name!r} can be written as plain text; spell it <|like_this|>")
    memory = worker.peak_memory() + answer["peak"]
    seconds = time.monotonic() - started
    tokenizer.report = TrainReport(sample.documents, sample.seen, answer["used"], because, seconds, memory)
    return tokenizer


def _check(documents: Any, kind: str, vocab_size: int, special: list[str], pattern: str, max_bytes: int) -> None:
    """Raise TokenizerError for what cannot be trained."""
    if kind not in KINDS:
        raise TokenizerError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if pattern not in PATTERNS:
        raise TokenizerError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
    if isinstance(documents, str | bytes):
        raise TokenizerError(f"documents must be an iterable of str, got one {type(documents).__name__}")
    if not special or not all(isinstance(name, str) and name for name in special) or len(set(special)) < len(special):
        raise TokenizerError(f"special must be one or more different names, got {special!r}")
    basis, what = (256, "the 256 bytes") if kind == "bpe" else (2, f"{worker.UNK} and one token")
    least = basis + len(special) - (kind != "bpe" and worker.UNK in special)
    if vocab_size < least:
        needed = f"{least} ({least - basis} special tokens and {what})"
        raise TokenizerError(f"vocab_size must be at least {needed}, got {vocab_size}")
    if not 0 < max_bytes < 1 << 31:  # the library counts pairs in 32 bits
        raise TokenizerError(f"max_bytes must be from 1 to {(1 << 31) - 1}, got {max_bytes}")


@dataclass
class _Sample:
    blocks: list[bytes]  # framed for the child, in random order
    size: int = 0  # bytes of text in them
    seen: int = 0  # bytes of text in all documents
    documents: int = 0


def _draw(documents: Iterable[str], max_bytes: int, seed: int, tell: Progress) -> _Sample:
    """A uniform sample of blocks: each gets a random key, and those with the smallest keys that fit are kept."""
    chance = random.Random(seed)
    kept: list[tuple[float, int, bytes]] = []  # (-key, size, block), the largest key on top
    sample = _Sample([])
    block, size, full = bytearray(), 0, max(1, min(_BLOCK, max_bytes // 16))

    def keep() -> None:
        heapq.heappush(kept, (-chance.random(), size, bytes(block)))
        sample.size += size
        while sample.size > max_bytes and len(kept) > 1:
            sample.size -= heapq.heappop(kept)[1]

    for document in documents:
        for piece in _pieces(_utf8(document, sample.documents), full):
            block += worker.FRAME.pack(len(piece)) + piece
            size += len(piece)
            if size >= full:
                keep()
                block, size = bytearray(), 0
            sample.seen += len(piece)
        sample.documents += 1
        tell(sample.seen, None, "reading")
    if size:
        keep()
    tell(sample.seen, sample.seen, "reading")
    sample.blocks = [block for *_, block in sorted(kept, reverse=True)]
    return sample


def _utf8(document: Any, number: int) -> bytes:
    if not isinstance(document, str):
        raise TokenizerError(f"document {number} is not a str but {type(document).__name__}")
    try:
        return document.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(document[error.start]):04X}"
        raise TokenizerError(f"document {number}: character {error.start} is a lone surrogate ({code})") from error


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in pieces of about `size` bytes, cut between words, or between characters where there are no words."""
    start = 0
    while len(data) - start > size:
        end = start + size
        if found := _CUT.search(data, end, end + 4096):
            end = found.start()
        while end < len(data) and data[end] & 0xC0 == 0x80:  # inside a character
            end += 1
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


def _train_apart(request: dict[str, Any], blocks: list[bytes], tell: Progress) -> dict[str, Any]:
    """Run `worker` on the blocks, which are given up as they are sent, and return its answer.

    Whatever happens here (an error, Ctrl-C), the child is killed and waited for before this returns.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from glassformer.text.train_worker import main; main()"
    lean = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}  # measured: as fast, and a fifth less memory
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | lean,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    heard: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    noise: deque[str] = deque(maxlen=8)
    listener = threading.Thread(target=_listen, args=(child.stdout, heard, noise), daemon=True)
    answer: dict[str, Any] | None = None
    merges = request["vocab_size"] - 256 - len(request["special"])

    def hear(message: dict[str, Any]) -> None:
        nonlocal answer
        if "tokenizer" in message:
            answer = message
            return
        stage: str = message["stage"]
        what = _STAGES.get(stage, stage)
        tell(message["current"], min(message["total"], merges) if what == "merging" else message["total"], what)

    try:
        listener.start()
        with suppress(BrokenPipeError):  # it ended early; what it said tells why
            child.stdin.write(json.dumps(request).encode() + b"\n")
            blocks.reverse()
            while blocks:
                child.stdin.write(blocks.pop())
                while not heard.empty() and (message := heard.get()):
                    hear(message)
            child.stdin.write(worker.END)
            child.stdin.flush()
        while message := heard.get():
            hear(message)
        status = child.wait()
    finally:
        child.kill()
        child.wait()
        listener.join()
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
    if answer is None:
        why = "it was killed (out of memory? lower max_bytes)" if status == -9 else "\n".join(noise)
        raise TokenizerError(f"the training process ended with status {status}: {why}")
    return answer


def _listen(pipe: Any, heard: queue.SimpleQueue, noise: deque[str]) -> None:
    """Pass on the child's JSON lines until it ends, then None; keep the last other lines, such as a traceback."""
    for line in pipe:
        if line.startswith(b"{"):
            heard.put(json.loads(line))
        else:
            noise.append(line.decode("utf-8", "replace").rstrip())
    heard.put(None)


def _throttled(progress: Progress | None, every: float = 0.05) -> Progress:
    """`progress` at most once in `every` seconds, but always at the end of a stage."""
    last = 0.0

    def tell(done: int, total: int | None, what: str) -> None:
        nonlocal last
        if progress and (done == total or time.monotonic() - last >= every):
            last = time.monotonic()
            progress(done, total, what)

    return tell

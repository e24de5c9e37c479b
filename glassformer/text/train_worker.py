"""The child process that trains a tokenizer: it reads a request and text on stdin, and writes JSON lines to stdout.

    parent -> child   one JSON line, then frames (4-byte length, UTF-8 text), then END; the pipe stays open
    child -> parent   {"stage", "current", "total"} as progress; at the end {"tokenizer", "used", "full", "peak"}

If the parent exits, the pipe closes and the child exits at once, even while the library merges.
"""

import json
import os
import signal
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import regex
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from glassformer.text.patterns import GPT2, PATTERNS, WORD

FRAME = struct.Struct("<I")
END = FRAME.pack(0xFFFFFFFF)
UNK = "<|unk|>"

MAX_RUN = 256
"""Maximum length of a run of characters (base64, DNA, a script without spaces); longer runs are split, because the
trainer's time grows with the square of the length."""

MAX_DISTINCT_BYTES = 3_000_000
"""Maximum size of the distinct words; the trainer needs 100 to 120 bytes of memory for each byte of them."""

_RUN = regex.compile(r"\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+")
_SPACES = regex.compile(rf"\s{{{MAX_RUN + 1}}}")


def untrained_tokenizer(kind: str, pattern: str) -> Tokenizer:
    """Return an untrained tokenizer of the kind "bpe", "char" or "word". `pattern` is a key of PATTERNS, for "bpe"."""
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        if PATTERNS[pattern] == GPT2:  # as in GPT-2's own tokenizer.json, which converters recognize
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # pyright: ignore
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
                [
                    pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # pyright: ignore
        tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
        return tokenizer
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    split = WORD if kind == "word" else r"[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split), behavior="isolated")  # pyright: ignore
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore
    return tokenizer


def make_trainer(kind: str, vocab_size: int, special_tokens: list[str]) -> Any:
    """Return the library's trainer. It breaks ties by the smaller ids, and reports progress as JSON lines on stderr."""
    added = [AddedToken(name, special=True, normalized=False) for name in special_tokens]
    if kind == "bpe":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=added,
            initial_alphabet=alphabet,
            show_progress=True,
            progress_format="json",
        )
    return trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=added, show_progress=False)


def split_long_runs(text: str, max_run: int = MAX_RUN) -> list[str]:
    """Split `text` so that no run of letters, digits, punctuation or spaces is longer than `max_run` characters."""
    if all(len(word) <= max_run for word in text.split()) and not _SPACES.search(text):
        return [text]
    parts, start = [], 0
    for run in _RUN.finditer(text):
        for at in range(run.start() + max_run, run.end(), max_run):
            parts.append(text[start:at])
            start = at
    return [*parts, text[start:]]


class DistinctWordBytes:
    """Estimates the total size of the distinct words: one bit per word, by its CRC, in 8 MiB of memory."""

    def __init__(self, pattern: str):
        self.bytes = 0
        self._pattern = regex.compile(pattern)
        self._seen = bytearray(1 << 23)

    def add(self, text: str) -> None:
        for word in set(self._pattern.findall(text)):
            data = word.encode()
            index, bit = divmod(zlib.crc32(data) & 0x3FFFFFF, 8)
            if not self._seen[index] >> bit & 1:
                self._seen[index] |= 1 << bit
                self.bytes += len(data)


class TextFeed:
    """Iterates over the texts for the trainer; ends early when the distinct words exceed MAX_DISTINCT_BYTES."""

    def __init__(self, source: BinaryIO, total: int, pattern: str | None):
        self.source, self.total = source, total
        self.used, self.full = 0, False
        self.distinct = DistinctWordBytes(pattern) if pattern and total > MAX_DISTINCT_BYTES else None

    def __iter__(self) -> Iterator[str]:
        reported = 0
        for data in read_frames(self.source):
            if self.full:
                continue  # read on: the parent would block on a full pipe
            text = data.decode()
            if self.distinct:
                self.distinct.add(text)
                self.full = self.distinct.bytes > MAX_DISTINCT_BYTES
            self.used += len(data)
            yield from split_long_runs(text)
            if self.used - reported >= 1 << 20:
                reported = self.used
                send(stage="counting words", current=reported, total=self.total)
        send(stage="counting words", current=self.used, total=self.total)
        threading.Thread(target=_exit_with_parent, daemon=True).start()


def read_frames(source: BinaryIO) -> Iterator[bytes]:
    """Yield the frames up to END. Exits the process if the pipe closes before END."""
    while (head := source.read(FRAME.size)) != END:
        if len(head) < FRAME.size:
            os._exit(1)
        yield source.read(FRAME.unpack(head)[0])


def send(**message: Any) -> None:
    """Send one JSON line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes; 0 where the system does not report it."""
    try:
        with open("/proc/self/status") as status:  # not ru_maxrss: it includes the parent's peak after fork and exec
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def _exit_with_parent() -> None:
    """Exit when the parent closes the pipe or exits."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """Serve one request, then exit at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and kills this process
    request = json.loads(sys.stdin.buffer.readline())
    kind, pattern = request["kind"], request["pattern"]
    split = {"bpe": PATTERNS[pattern], "word": WORD, "char": None}[kind]
    feed = TextFeed(sys.stdin.buffer, request["total"], split)
    tokenizer = untrained_tokenizer(kind, pattern)
    tokenizer.train_from_iterator(iter(feed), make_trainer(kind, request["vocab_size"], request["special_tokens"]))
    send(tokenizer=tokenizer.to_str(), used=feed.used, full=feed.full, peak=peak_memory())
    os._exit(0)

"""The child process that trains a tokenizer: a request and pieces of text come in on stdin, JSON lines go out.

    parent -> child   one JSON line, then frames (4 bytes length, UTF-8 text), then END; the pipe stays open
    child -> parent   {"stage", "current", "total"} as it goes; at the end {"tokenizer", "used", "full", "peak"}

When the parent is gone, the pipe closes and the child ends at once, also in the middle of the library's merging.
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

LONGEST = 256
"""Characters: a longer run (base64, DNA, a script without spaces) is cut: the trainer's time grows with its square."""

DISTINCT_BYTES = 3_000_000
"""How much text in different words is counted: the trainer takes 100 to 120 bytes of memory for each byte of them."""

_RUN = regex.compile(r"\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+")
_SPACES = regex.compile(rf"\s{{{LONGEST + 1}}}")


def blank(kind: str, pattern: str) -> Tokenizer:
    """An untrained tokenizer of the kind "bpe", "char" or "word"; pattern is a name in PATTERNS, for bpe."""
    if kind == "bpe":
        core = Tokenizer(models.BPE())
        if PATTERNS[pattern] == GPT2:  # what GPT-2's own tokenizer.json says, so converters know it
            core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # pyright: ignore
        else:
            core.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
                [
                    pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        core.post_processor = processors.ByteLevel(trim_offsets=False)  # pyright: ignore
        core.decoder = decoders.ByteLevel()  # pyright: ignore
        return core
    core = Tokenizer(models.WordLevel(unk_token=UNK))
    cut = WORD if kind == "word" else r"[\s\S]"
    core.pre_tokenizer = pre_tokenizers.Split(Regex(cut), behavior="isolated")  # pyright: ignore
    core.decoder = decoders.Fuse()  # pyright: ignore
    return core


def trainer_for(kind: str, vocab_size: int, special: list[str]) -> Any:
    """The library's trainer; it breaks ties by the smaller ids, and reports its merges as JSON lines on stderr."""
    marked = [AddedToken(name, special=True, normalized=False) for name in special]
    if kind == "bpe":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=marked,
            initial_alphabet=alphabet,
            show_progress=True,
            progress_format="json",
        )
    return trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=marked, show_progress=False)


def cut_runs(text: str, longest: int = LONGEST) -> list[str]:
    """`text` in parts, so that no run of letters, digits, signs or spaces is longer than `longest` characters."""
    if all(len(word) <= longest for word in text.split()) and not _SPACES.search(text):
        return [text]
    parts, start = [], 0
    for run in _RUN.finditer(text):
        for at in range(run.start() + longest, run.end(), longest):
            parts.append(text[start:at])
            start = at
    return [*parts, text[start:]]


class Distinct:
    """About how many bytes of different words were seen: one bit per word by its CRC, so memory stays at 8 MiB."""

    def __init__(self, pattern: str):
        self.bytes = 0
        self._pattern = regex.compile(pattern)
        self._seen = bytearray(1 << 23)

    def add(self, text: str) -> None:
        for word in set(self._pattern.findall(text)):
            data = word.encode()
            place, bit = divmod(zlib.crc32(data) & 0x3FFFFFF, 8)
            if not self._seen[place] >> bit & 1:
                self._seen[place] |= 1 << bit
                self.bytes += len(data)


class Feed:
    """The texts for the trainer: read frame by frame, cut, and ended early when there are too many different words."""

    def __init__(self, source: BinaryIO, total: int, pattern: str | None):
        self.source, self.total = source, total
        self.used, self.full = 0, False
        self.distinct = Distinct(pattern) if pattern and total > DISTINCT_BYTES else None

    def __iter__(self) -> Iterator[str]:
        told = 0
        for data in frames(self.source):
            if self.full:
                continue  # read on, so that the parent is not left with a full pipe
            text = data.decode()
            if self.distinct:
                self.distinct.add(text)
                self.full = self.distinct.bytes > DISTINCT_BYTES
            self.used += len(data)
            yield from cut_runs(text)
            if self.used - told >= 1 << 20:
                told = self.used
                say(stage="counting words", current=told, total=self.total)
        say(stage="counting words", current=self.used, total=self.total)
        threading.Thread(target=_end_with_parent, daemon=True).start()


def frames(source: BinaryIO) -> Iterator[bytes]:
    """The frames up to END.  Ends the process when the parent is gone before that."""
    while (head := source.read(FRAME.size)) != END:
        if len(head) < FRAME.size:
            os._exit(1)
        yield source.read(FRAME.unpack(head)[0])


def say(**message: Any) -> None:
    """One JSON line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def peak_memory() -> int:
    """The most memory this process has had resident, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/status") as status:  # not ru_maxrss: it keeps the parent's peak across fork and exec
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def _end_with_parent() -> None:
    """Wait until the parent closes the pipe, which it does at the latest by dying."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """Answer one request, and end without waiting for anything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it ends this process
    request = json.loads(sys.stdin.buffer.readline())
    kind, pattern = request["kind"], request["pattern"]
    cut = {"bpe": PATTERNS[pattern], "word": WORD, "char": None}[kind]
    feed = Feed(sys.stdin.buffer, request["total"], cut)
    core = blank(kind, pattern)
    core.train_from_iterator(iter(feed), trainer_for(kind, request["vocab_size"], request["special"]))
    say(tokenizer=core.to_str(), used=feed.used, full=feed.full, peak=peak_memory())
    os._exit(0)

"""Source-target pairs for seq2seq training: read from files, tokenized, and stored in memory.

    the third of March, 1984<TAB>1984-03-03                          .tsv, and any other file given by its name
    {"source": "the third of March, 1984", "target": "1984-03-03"}   .jsonl, .ndjson

One example per line, in UTF-8; .gz files of these kinds are decompressed while they are read. A .tsv line has exactly
one tab; each side is used unchanged, up to the tab or the line end (LF or CRLF). Blank lines are ignored. Any other
line is skipped and counted by reason, with file and line, or raises an error with strict=True.

In memory an example takes 4 bytes per token and 24 more: a million examples of 60 tokens take 264 MB, and at most twice
that while they are tokenized.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glassformer.counted import counted
from glassformer.errors import DataError
from glassformer.training.data.byte_streams import MAX_RECORD, OpenFile, Unreadable
from glassformer.training.data.held_out import choose_held_out
from glassformer.training.data.prepare import BATCH_TEXTS, ParallelEncoder
from glassformer.training.data.read_options import ReadOptions
from glassformer.training.data.records import LONG
from glassformer.training.data.sources import STRUCTURED, FileStream, Skipped


@dataclass(frozen=True, slots=True)
class Seq2SeqExample:
    """A source, its target, and their origin ("file:line", or the name of a generator)."""

    source: str
    target: str
    origin: str = ""


class Seq2SeqFiles(FileStream[Seq2SeqExample]):
    """A `FileStream` of seq2seq examples. A file of an unknown type is TSV, unless its content is structured."""

    unit, formats = "example", {".tsv": "plain"} | {k: v for k, v in STRUCTURED.items() if k != ".tsv"}

    @classmethod
    def fields_of(cls, read: ReadOptions) -> tuple[str, ...]:
        read.check_for_examples()
        return "source", "target"

    def _plain(self, file: OpenFile) -> Iterator[Seq2SeqExample]:
        start = 0
        for number, line in enumerate(file.lines(), 1):
            where, begin, start = f"{file.name}:{number}", start, start + len(line)
            if len(line) >= MAX_RECORD:
                raise Unreadable(LONG, f"{where}, the rest of the file is left out")
            try:
                text = line.decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                self._skip("not UTF-8", f"{where}: byte {begin + error.start:,}")
                continue
            sides = text.removeprefix("\ufeff").split("\t")
            if len(sides) == 2:
                yield from self._record({"source": sides[0], "target": sides[1]}, where)
            elif len(sides) > 2:
                self._skip("more than two columns", f"{where}: it has {len(sides)}")
            elif text.strip():
                self._skip("no tab between source and target", where)

    def _record(self, record: dict[str, Any], where: str) -> Iterator[Seq2SeqExample]:
        """Yield the example of a record; where a side cannot be used, count one reason."""
        source = self._string(record, "source", where, "empty source")
        target = None if source is None else self._string(record, "target", where, "empty target")
        if source is not None and target is not None:
            yield Seq2SeqExample(source, target, where)


class TokenSequences(NamedTuple):
    """The token sequences of all sources, or of all targets, in one array."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]  # [examples], offsets in `tokens`
    lengths: NDArray[np.int32]  # [examples], each at least 1

    def sequence(self, index: int) -> NDArray[np.int32]:
        return self.tokens[self.starts[index] : self.starts[index] + self.lengths[index]]

    def select(self, indices: NDArray[Any]) -> TokenSequences:
        return TokenSequences(self.tokens, self.starts[indices], self.lengths[indices])


@dataclass(frozen=True, eq=False)
class Seq2SeqExamples:
    """Tokenized examples. Neither side has a start or end token; `make_batch` adds them to the targets.

    bos_id: the decoder's first input (the tokenizer's bos_id, or eos_id where it has none). eos_id: its last target.
    skipped: the lines and examples that were not used.
    """

    source: TokenSequences
    target: TokenSequences
    bos_id: int
    eos_id: int
    vocab_size: int
    skipped: Skipped

    def __len__(self) -> int:
        return len(self.source.starts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of both sides in their order, and of the start and end tokens."""
        digest = hashlib.sha256(repr((self.bos_id, self.eos_id, self.vocab_size)).encode())
        for part in (*self.source, *self.target):
            digest.update(part.data)
        return digest.hexdigest()

    def select(self, indices: NDArray[Any]) -> Seq2SeqExamples:
        """Return the examples of these indices in this order, without copying tokens."""
        return replace(self, source=self.source.select(indices), target=self.target.select(indices))

    def hold_out(self, share: float = 0.05, most: int = 10_000) -> tuple[Seq2SeqExamples, Seq2SeqExamples]:
        """Split into training and held-out examples: a `share` of them, at least one and at most `most`.

        The split depends on a hash of the source, so that no held-out source occurs in training, and most held-out
        examples stay held out when examples are added. Raises DataError when all sources are equal.
        """
        if not 0 < share <= 0.5:
            raise DataError(f"held_out must be above 0 and at most 0.5, got {share!r}")
        digests = (hashlib.sha256(self.source.sequence(i).data).digest()[:8] for i in range(len(self)))
        hashes = np.frombuffer(b"".join(digests), "<u8")
        held_out = choose_held_out(hashes, np.ones(len(self), np.int64), share, most)
        if not held_out.any():
            raise DataError("no example can be held out, because all sources are equal: give more, or held_out_data")
        return self.select(np.flatnonzero(~held_out)), self.select(np.flatnonzero(held_out))


def tokenize_examples(
    examples: Iterable[Seq2SeqExample],
    tokenizer: ParallelEncoder,
    *,
    context: int,
    source_context: int = 0,
    strict: bool = False,
    on_example: Callable[[Seq2SeqExample, list[int], list[int]], None] | None = None,
) -> Seq2SeqExamples:
    """Tokenize all examples into memory.

    An example that is too long, or whose source or target has no tokens, is skipped and counted with file and line.

    Args:
        context: maximum tokens of a target, including its start token.
        source_context: maximum tokens of a source; 0 is as many as `context`.
        strict: raise an error instead of skipping an example.
        on_example: called with each example and the ids of its source and target, also where they are too long.

    Raises:
        DataError: no example is left, the tokenizer has no end token, or (strict) an example cannot be used.
    """
    if tokenizer.eos_id is None:
        raise DataError("seq2seq training needs a tokenizer with an end token (eos_token), this one has none")
    if context < 2:
        raise DataError(f"context must be at least 2 tokens, got {context}")
    if source_context < 0:
        raise DataError(f"source_context must be at least 1 token, or 0 for the value of context, got {source_context}")
    found, too_long = (_SequencesBuilder(), _SequencesBuilder()), Skipped()
    stream = iter(examples)
    while batch := list(islice(stream, BATCH_TEXTS)):
        sources = tokenizer.encode_batch([example.source for example in batch], bare=True)
        targets = tokenizer.encode_batch([example.target for example in batch], bare=True)
        for example, source, target in zip(batch, sources, targets, strict=True):
            if on_example is not None:
                on_example(example, source, target)
            if fault := _fault(source, target, source_context or context, context - 1):
                if strict:
                    raise DataError(f"{example.origin}: {': '.join(fault)}")
                too_long.add(fault[0], f"{example.origin}: {fault[1]}")
            else:
                found[0].add(source)
                found[1].add(target)
    skipped = Skipped()
    if isinstance(examples, Seq2SeqFiles):
        skipped.merge(examples.skipped)
    skipped.merge(too_long)
    if not found[0].lengths:
        raise DataError(f"there are no usable examples: {'; '.join(skipped.lines()) or 'the data has none'}")
    bos, eos, size = getattr(tokenizer, "bos_id", None), tokenizer.eos_id, tokenizer.vocab_size
    return Seq2SeqExamples(found[0].build(size), found[1].build(size), eos if bos is None else bos, eos, size, skipped)


def _fault(source: list[int], target: list[int], max_source: int, max_target: int) -> tuple[str, str] | None:
    """Return the reason why an example cannot be used and its number of tokens; None where it can."""
    for name, ids, limit in (("source", source, max_source), ("target", target, max_target)):
        if not ids:
            return f"{name} without tokens", "0 tokens"
        if len(ids) > limit:
            return f"{name} of more than {limit:,} tokens", counted(len(ids), "token")
    return None


class _SequencesBuilder:
    """Collects token sequences."""

    def __init__(self) -> None:
        self.tokens, self.lengths = array("i"), array("i")

    def add(self, ids: list[int]) -> None:
        self.tokens.extend(ids)
        self.lengths.append(len(ids))

    def build(self, vocab_size: int) -> TokenSequences:
        tokens, lengths = np.frombuffer(self.tokens, np.int32), np.frombuffer(self.lengths, np.int32)
        if int(tokens.max()) >= vocab_size:
            raise DataError(f"the tokenizer returned id {tokens.max()}, outside its vocab_size of {vocab_size}")
        return TokenSequences(tokens, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)

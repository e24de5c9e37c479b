"""Pairs of texts, a source and the target to be written from it: read from files, tokenized, and held in memory.

    the third of March, 1984<TAB>1984-03-03                          .tsv, and every other file that is named itself
    {"source": "the third of March, 1984", "target": "1984-03-03"}   .jsonl, .ndjson

One pair a line, in UTF-8; .gz after any of these is unpacked while it is read. A .tsv line has exactly one tab; each
side is taken as it stands between tab and line end (LF or CRLF). Blank lines are passed over. Whatever else is no pair
is skipped and counted by its reason, with file and line, or refused with strict=True.

In memory a pair costs 4 bytes a token and 24 bytes more: a million pairs of 60 tokens in all take 264 MB, and at most
twice that while they are tokenized. Nothing is written to disk.
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

from glassformer.errors import DataError
from glassformer.training.data.held_out import choose_held_out
from glassformer.training.data.prepare import BATCH_TEXTS, ParallelEncoder
from glassformer.training.data.sources import LINES, FileStream, Skipped


@dataclass(frozen=True, slots=True)
class Seq2SeqExample:
    """A source, the target to be written from it, and where they stand ("file:line", or the name of what made them)."""

    source: str
    target: str
    origin: str = ""


class Seq2SeqFiles(FileStream[Seq2SeqExample]):
    """Files, folders, globs and "-" (standard input: JSONL if its first line is a JSON object) as a stream of pairs.

    `skipped` fills up as the stream is read. Raises DataError as `Files` does.
    """

    unit, kinds = "pair", (".tsv", *LINES)

    def _plain(self, file: Any, name: str) -> Iterator[Seq2SeqExample]:
        start = 0
        for number, line in enumerate(file, 1):
            where, begin, start = f"{name}:{number}", start, start + len(line)
            try:
                text = line.decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                self._skip("not UTF-8", f"{where}: byte {begin + error.start:,}")
                continue
            sides = text.removeprefix("\ufeff").split("\t")
            if len(sides) == 2:
                yield from self._pair({"source": sides[0], "target": sides[1]}, where)
            elif len(sides) > 2:
                self._skip("more than two columns", f"{where}: it has {len(sides)}")
            elif text.strip():
                self._skip("no tab between source and target", where)

    def _jsonl(self, lines: Iterable[bytes], name: str) -> Iterator[Seq2SeqExample]:
        for where, record in self._records(lines, name):
            yield from self._pair(record, where)

    def _pair(self, record: dict[str, Any], where: str) -> Iterator[Seq2SeqExample]:
        """The record's pair; none, and one reason counted, where a side cannot be used."""
        source = self._string(record, "source", where, "empty source")
        target = None if source is None else self._string(record, "target", where, "empty target")
        if source is not None and target is not None:
            yield Seq2SeqExample(source, target, where)


class TokenSequences(NamedTuple):
    """The sources, or the targets, of many pairs: all tokens in one array, and where each text lies in it."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]  # [pairs]
    lengths: NDArray[np.int32]  # [pairs], in tokens, each at least 1

    def sequence(self, number: int) -> NDArray[np.int32]:
        return self.tokens[self.starts[number] : self.starts[number] + self.lengths[number]]

    def select(self, numbers: NDArray[Any]) -> TokenSequences:
        return TokenSequences(self.tokens, self.starts[numbers], self.lengths[numbers])


@dataclass(frozen=True, eq=False)
class Seq2SeqExamples:
    """Tokenized pairs. Neither side holds the tokens that begin and end a text: batches put them around a target.

    bos_id begins what the decoder reads (the tokenizer's own, or eos_id where it has none); eos_id ends what it writes.
    skipped: what was left out of the files, and what was too long.
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
        """SHA-256 over both sides in their order, and the tokens around a target."""
        digest = hashlib.sha256(repr((self.bos_id, self.eos_id, self.vocab_size)).encode())
        for part in (*self.source, *self.target):
            digest.update(part.data)
        return digest.hexdigest()

    def select(self, numbers: NDArray[Any]) -> Seq2SeqExamples:
        """These pairs alone, in this order; the tokens are not copied."""
        return replace(self, source=self.source.select(numbers), target=self.target.select(numbers))

    def hold_out(self, share: float = 0.05, most: int = 10_000) -> tuple[Seq2SeqExamples, Seq2SeqExamples]:
        """Pairs to train on, and pairs held out: `share` of them, at least one and at most `most`.

        Chosen by a hash of the source, so that no held-out source occurs in training, whatever its target; and by and
        large what is held out stays so when pairs are added. Raises DataError when all sources are the same.
        """
        if not 0 < share <= 0.5:
            raise DataError(f"held_out must be a share above 0 and up to 0.5, got {share!r}")
        digests = (hashlib.sha256(self.source.sequence(i).data).digest()[:8] for i in range(len(self)))
        hashes = np.frombuffer(b"".join(digests), "<u8")
        aside = choose_held_out(hashes, np.ones(len(self), np.int64), share, most)
        if not aside.any():
            raise DataError("no pair can be held out: there is but one source. Give more pairs, or held-out ones")
        return self.select(np.flatnonzero(~aside)), self.select(np.flatnonzero(aside))


def tokenize_examples(
    examples: Iterable[Seq2SeqExample],
    tokenizer: ParallelEncoder,
    *,
    context: int,
    source_context: int = 0,
    strict: bool = False,
    on_example: Callable[[Seq2SeqExample, list[int], list[int]], None] | None = None,
) -> Seq2SeqExamples:
    """Read all pairs into memory as tokens.

    context: the most tokens that a model reads of a target, with the token that begins it; source_context: of a source
    (0: as many). look: shown each pair and the ids of both its sides, those that are too long too.
    What is longer is skipped and counted, with file and line, or refused with strict=True; so is a side that the
    tokenizer leaves without a token. Raises DataError also when no pair is left, or the tokenizer has no token that
    ends a text.
    """
    if tokenizer.eos_id is None:
        raise DataError("pairs need a tokenizer with a token that ends a text (eos_token), this one has none")
    if context < 2:
        raise DataError(f"context must be at least 2 tokens, got {context}")
    if source_context < 0:
        raise DataError(f"source_context must be at least 1 token, or 0 for as many as context, got {source_context}")
    found, too_long = (_Builder(), _Builder()), Skipped()
    stream = iter(examples)
    while batch := list(islice(stream, BATCH_TEXTS)):
        sources = tokenizer.encode_batch([pair.source for pair in batch], bare=True)
        targets = tokenizer.encode_batch([pair.target for pair in batch], bare=True)
        for pair, source, target in zip(batch, sources, targets, strict=True):
            if on_example is not None:
                on_example(pair, source, target)
            if fault := _fault(source, target, source_context or context, context - 1):
                if strict:
                    raise DataError(f"{pair.origin}: {': '.join(fault)}")
                too_long.add(fault[0], f"{pair.origin}: {fault[1]}")
            else:
                found[0].add(source)
                found[1].add(target)
    skipped = Skipped()
    if isinstance(examples, Seq2SeqFiles):
        skipped.merge(examples.skipped)
    skipped.merge(too_long)
    if not found[0].lengths:
        raise DataError(f"no pair is left to use: {'; '.join(skipped.lines()) or 'there is none'}")
    bos, eos, size = getattr(tokenizer, "bos_id", None), tokenizer.eos_id, tokenizer.vocab_size
    return Seq2SeqExamples(found[0].done(size), found[1].done(size), eos if bos is None else bos, eos, size, skipped)


def _fault(source: list[int], target: list[int], source_room: int, target_room: int) -> tuple[str, str] | None:
    """Why a pair cannot be used, and the number to it."""
    for name, ids, room in (("source", source, source_room), ("target", target, target_room)):
        if not ids:
            return f"{name} without a token", "0 tokens"
        if len(ids) > room:
            return f"{name} of more than {room:,} tokens", f"{len(ids):,} tokens"
    return None


class _Builder:
    """A side that grows."""

    def __init__(self) -> None:
        self.tokens, self.lengths = array("i"), array("i")

    def add(self, ids: list[int]) -> None:
        self.tokens.extend(ids)
        self.lengths.append(len(ids))

    def done(self, vocab_size: int) -> TokenSequences:
        tokens, lengths = np.frombuffer(self.tokens, np.int32), np.frombuffer(self.lengths, np.int32)
        if int(tokens.max()) >= vocab_size:
            raise DataError(f"the tokenizer gave id {tokens.max()}, its vocab_size is {vocab_size}")
        return TokenSequences(tokens, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)

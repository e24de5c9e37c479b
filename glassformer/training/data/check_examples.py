"""Report on seq2seq examples: counts, lengths, duplicates, ambiguous sources, and skipped lines."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from glassformer.counted import counted
from glassformer.text.tokenizer import Tokenizer
from glassformer.training.data.check_documents import MAX_REMEMBERED, min_median_max, visible_token
from glassformer.training.data.prepare import BATCH_TEXTS, Progress
from glassformer.training.data.read_options import DEFAULT_READ, ReadOptions
from glassformer.training.data.seq2seq_examples import Seq2SeqExample, Seq2SeqExamples, Seq2SeqFiles, tokenize_examples

SAMPLES = 3


@dataclass(frozen=True)
class SideReport:
    """The sources, or the targets, of all examples read.

    bytes: in UTF-8. characters_each, tokens_each: minimum, median and maximum. limit: the maximum number of tokens.
    """

    bytes: int
    characters_each: tuple[int, int, int]
    tokens_each: tuple[int, int, int]
    limit: int


@dataclass(frozen=True)
class ExampleReport:
    """The result of `check_examples`.

    examples: that were read; train, held_out: those that are usable. unit: the meaning of a token in this report.
    train_targets: target tokens of an epoch, including end tokens. duplicates: examples equal to an earlier one.
    ambiguous: sources with more than one target, at most one of which a model can generate. duplicate, ambiguity: an
    example of each. unknown: examples with text that the tokenizer has no token for.
    skipped: reason -> {"count", "examples"}. sample: the first examples as plain text.
    """

    examples: int
    train: int
    held_out: int
    train_targets: int
    unit: str
    source: SideReport
    target: SideReport
    duplicates: int
    duplicate: str | None
    ambiguous: int
    ambiguity: str | None
    unknown: int
    skipped: dict[str, dict]
    skipped_lines: list[str]
    sample: str

    def render(self) -> str:
        """The report as plain text."""
        lines = [f"examples     {self.examples:,}, of which {self.train + self.held_out:,} are usable"]
        for name, side in (("sources", self.source), ("targets", self.target)):
            low, median, high = side.characters_each
            lines.append(
                f"{name:12} {low:,} to {counted(high, 'character')}, median {median:,}; {counted(side.bytes, 'byte')}"
            )
            low, median, high = side.tokens_each
            lines.append(f"             {low:,} to {counted(high, 'token')}, median {median:,}; limit {side.limit:,}")
        lines.append(f"tokens       {self.unit}")
        for name, n, example in (
            ("duplicates", self.duplicates, self.duplicate),
            ("ambiguous", self.ambiguous, self.ambiguity),
        ):
            lines.append(f"{name:12} {f'{n:,}, e.g. {example}' if n else 'none'}")
        if self.unknown:
            lines.append(
                f"unknown      {counted(self.unknown, 'example')} with text that the tokenizer has no token for"
            )
        lines += [
            f"training     {counted(self.train, 'example')}, {counted(self.train_targets, 'target token')}",
            f"held out     {counted(self.held_out, 'example')}",
        ]
        lines += [f"skipped      {line}" for line in self.skipped_lines or ["nothing"]]
        return "\n".join([*lines, "", self.sample])


def check_examples(
    sources: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer | None = None,
    *,
    held_out: float = 0.05,
    context: int = 128,
    source_context: int = 0,
    read: ReadOptions = DEFAULT_READ,
    strict: bool = False,
    progress: Progress | None = None,
) -> ExampleReport:
    """Read all examples as training does, and return a report. For the contexts see `tokenize_examples`.

    Without a tokenizer each character counts as a token, as in the character tokenizer that training makes by default;
    the held-out examples may then differ.

    Raises DataError when no example is usable, or when strict=True and one is broken or too long.
    """
    files = Seq2SeqFiles(sources, read, strict=strict)
    statistics = _ExampleStatistics(files, progress)
    found = tokenize_examples(
        files,
        tokenizer or CharacterTokenizer(),
        context=context,
        source_context=source_context,
        strict=strict,
        on_example=statistics.add,
    )
    train, evaluation = found.hold_out(held_out) if held_out else (found, found.select(np.arange(0)))
    example_hashes, source_hashes = np.array(statistics.hashes, np.uint64).reshape(-1, 2).T
    distinct = np.unique(np.stack([source_hashes, example_hashes]), axis=1)
    _, targets = np.unique(distinct[0], return_counts=True)
    return ExampleReport(
        examples=len(example_hashes),
        train=len(train),
        held_out=len(evaluation),
        train_targets=int(train.target.lengths.sum()) + len(train),
        unit="characters; give a --tokenizer to count its tokens" if tokenizer is None else "of the tokenizer",
        source=statistics.sides[0].report(source_context or context),
        target=statistics.sides[1].report(context - 1),
        duplicates=len(example_hashes) - distinct.shape[1],
        duplicate=statistics.duplicate,
        ambiguous=int((targets > 1).sum()),
        ambiguity=statistics.ambiguity,
        unknown=_unknown(found, tokenizer),
        skipped=found.skipped.as_json(),
        skipped_lines=found.skipped.lines(),
        sample="\n".join(_sample(*shown, tokenizer) for shown in statistics.first),
    )


class CharacterTokenizer:
    """A tokenizer whose ids are code points, with one more for the end token."""

    vocab_size, eos_id = 0x110001, 0x110000

    def encode_batch(self, texts: Sequence[str], *, bare: bool = False) -> list[list[int]]:
        return [[ord(character) for character in text] for text in texts]

    def save(self, folder: Path, /) -> None: ...


@dataclass
class _Side:
    bytes: int = 0
    characters: array = field(default_factory=lambda: array("i"))
    tokens: array = field(default_factory=lambda: array("i"))

    def add(self, text: str, ids: list[int]) -> None:
        self.bytes += len(text.encode())
        self.characters.append(len(text))
        self.tokens.append(len(ids))

    def report(self, limit: int) -> SideReport:
        return SideReport(
            self.bytes, min_median_max(np.array(self.characters)), min_median_max(np.array(self.tokens)), limit
        )


class _ExampleStatistics:
    """Counts of the examples in the files, including those that are too long."""

    def __init__(self, files: Seq2SeqFiles, progress: Progress | None):
        self.files, self.progress = files, progress
        self.sides = (_Side(), _Side())
        self.hashes = array("Q")  # of each example, then of its source
        self.first: list[tuple[Seq2SeqExample, list[int], list[int]]] = []
        self.duplicate: str | None = None
        self.ambiguity: str | None = None
        self._known: dict[int, tuple[int, str]] = {}  # hash of a source -> hash and origin of its first example

    def add(self, example: Seq2SeqExample, source: list[int], target: list[int]) -> None:
        self.sides[0].add(example.source, source)
        self.sides[1].add(example.target, target)
        here, both = (_hash(part) for part in (example.source, f"{example.source}\t{example.target}"))
        self.hashes.extend((both, here))
        if len(self._known) < MAX_REMEMBERED:
            self._known.setdefault(here, (both, example.origin))
        first, origin = self._known.get(here, (both, example.origin))
        if first == both and origin != example.origin:
            self.duplicate = self.duplicate or f"{example.origin} = {origin}"
        elif first != both:
            self.ambiguity = self.ambiguity or f"{example.origin} and {origin} have the same source"
        if len(self.first) < SAMPLES:
            self.first.append((example, source, target))
        if self.progress is not None and len(self.hashes) // 2 % BATCH_TEXTS == 0:
            self.progress(self.files.bytes_read, self.files.total_bytes or 0, "reading")


def _hash(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little")


def _unknown(examples: Seq2SeqExamples, tokenizer: Tokenizer | None) -> int:
    """Count the examples with the tokenizer's unknown token."""
    if tokenizer is None:
        return 0
    unknown = tokenizer.special_tokens.get(str(tokenizer.config.get("unk_token")))
    if unknown is None:
        return 0
    sides = (np.add.reduceat(side.tokens == unknown, side.starts) > 0 for side in (examples.source, examples.target))
    return int(np.logical_or(*sides).sum())


def _sample(example: Seq2SeqExample, source: list[int], target: list[int], tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return f"{example.origin}: {example.source!r} -> {example.target!r}"
    sides = ("|".join(visible_token(tokenizer, token) for token in side) for side in (source, target))
    return f"{example.origin}: {' -> '.join(sides)}"

"""What would be trained on, of pairs: counts, lengths against the context, copies, what is skipped and why."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from glassformer.text.tokenizer import Tokenizer
from glassformer.training.data.check_documents import REMEMBERED, min_median_max, visible_token
from glassformer.training.data.prepare import BATCH_TEXTS, Progress
from glassformer.training.data.seq2seq_examples import Seq2SeqExample, Seq2SeqExamples, Seq2SeqFiles, tokenize_examples

SHOWN = 3


@dataclass(frozen=True)
class SideReport:
    """The sources, or the targets, of all pairs that could be read. bytes: in UTF-8.

    characters_each, tokens_each: of one: fewest, median, most. room: the most tokens that are used.
    """

    bytes: int
    characters_each: tuple[int, int, int]
    tokens_each: tuple[int, int, int]
    room: int


@dataclass(frozen=True)
class ExampleReport:
    """What `check_pairs` found.

    pairs: that could be read; train and held_out: those of them that are used. unit: what a token is here.
    duplicates: pairs that equal an earlier one; ambiguous: sources that stand beside more than one target, of which at
    most one can be what a model writes; duplicate, ambiguity: an example of each. unknown: pairs that hold something
    the tokenizer has no token for. train_targets: tokens to learn from in an epoch, ends included.
    skipped: reason -> {"count", "examples"}. sample: the first pairs as plain text.
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
        lines = [f"pairs        {self.examples:,}, of which {self.train + self.held_out:,} can be used"]
        for name, side in (("sources", self.source), ("targets", self.target)):
            few, median, most = side.characters_each
            lines.append(f"{name:12} {few:,} to {most:,} characters, half at most {median:,}; {side.bytes:,} bytes")
            few, median, most = side.tokens_each
            lines.append(f"             {few:,} to {most:,} tokens, half at most {median:,}; room for {side.room:,}")
        lines.append(f"tokens       {self.unit}")
        for name, n, example in (
            ("duplicates", self.duplicates, self.duplicate),
            ("ambiguous", self.ambiguous, self.ambiguity),
        ):
            lines.append(f"{name:12} {f'{n:,}, e.g. {example}' if n else 'none'}")
        if self.unknown:
            lines.append(f"unknown      {self.unknown:,} pairs hold something that the tokenizer has no token for")
        lines += [
            f"training     {self.train:,} pairs, {self.train_targets:,} tokens of targets",
            f"held out     {self.held_out:,} pairs",
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
    strict: bool = False,
    progress: Progress | None = None,
) -> ExampleReport:
    """Read all pairs as training does, and report. Nothing is kept.

    Without a tokenizer each character counts as a token, as it is one of the tokenizer that training makes of pairs;
    which pairs are held out may then differ. context, source_context: see `tokenize_pairs`.

    Raises DataError when no pair can be used, or strict=True and something is broken or too long.
    """
    files, letters = Seq2SeqFiles(sources, strict=strict), Letters()
    seen = _PairHashes(files, progress)
    found = tokenize_examples(
        files, tokenizer or letters, context=context, source_context=source_context, strict=strict, on_example=seen.add
    )
    train, aside = found.hold_out(held_out) if held_out else (found, found.select(np.arange(0)))
    pair_hashes, source_hashes = np.array(seen.hashes, np.uint64).reshape(-1, 2).T
    different = np.unique(np.stack([source_hashes, pair_hashes]), axis=1)
    _, targets = np.unique(different[0], return_counts=True)
    return ExampleReport(
        examples=len(pair_hashes),
        train=len(train),
        held_out=len(aside),
        train_targets=int(train.target.lengths.sum()) + len(train),
        unit="characters: name a --tokenizer to count its own" if tokenizer is None else "as the tokenizer has them",
        source=seen.sides[0].report(source_context or context),
        target=seen.sides[1].report(context - 1),
        duplicates=len(pair_hashes) - different.shape[1],
        duplicate=seen.duplicate,
        ambiguous=int((targets > 1).sum()),
        ambiguity=seen.ambiguity,
        unknown=_unknown(found, tokenizer),
        skipped=found.skipped.as_json(),
        skipped_lines=found.skipped.lines(),
        sample="\n".join(_sample(*shown, tokenizer) for shown in seen.first),
    )


class Letters:
    """Each character a token, by its code point; one more that ends a text."""

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

    def report(self, room: int) -> SideReport:
        return SideReport(
            self.bytes, min_median_max(np.array(self.characters)), min_median_max(np.array(self.tokens)), room
        )


class _PairHashes:
    """What is counted of the pairs as they stand in the files, those that are too long among them."""

    def __init__(self, files: Seq2SeqFiles, progress: Progress | None):
        self.files, self.progress = files, progress
        self.sides = (_Side(), _Side())
        self.hashes = array("Q")  # of each pair, then of its source
        self.first: list[tuple[Seq2SeqExample, list[int], list[int]]] = []
        self.duplicate: str | None = None
        self.ambiguity: str | None = None
        self._known: dict[int, tuple[int, str]] = {}  # a source's hash -> the hash of its first pair, and where it is

    def add(self, pair: Seq2SeqExample, source: list[int], target: list[int]) -> None:
        self.sides[0].add(pair.source, source)
        self.sides[1].add(pair.target, target)
        here, both = (_hash(part) for part in (pair.source, f"{pair.source}\t{pair.target}"))
        self.hashes.extend((both, here))
        if len(self._known) < REMEMBERED:
            self._known.setdefault(here, (both, pair.origin))
        first, where = self._known.get(here, (both, pair.origin))
        if first == both and where != pair.origin:
            self.duplicate = self.duplicate or f"{pair.origin} = {where}"
        elif first != both:
            self.ambiguity = self.ambiguity or f"{pair.origin} and {where} have the same source"
        if len(self.first) < SHOWN:
            self.first.append((pair, source, target))
        if self.progress is not None and len(self.hashes) // 2 % BATCH_TEXTS == 0:
            self.progress(self.files.bytes_read, self.files.total_bytes or 0, "reading")


def _hash(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little")


def _unknown(pairs: Seq2SeqExamples, tokenizer: Tokenizer | None) -> int:
    """How many pairs hold the token of what a tokenizer does not know."""
    if tokenizer is None:
        return 0
    unknown = tokenizer.special_tokens.get(str(tokenizer.config.get("unk_token")))
    if unknown is None:
        return 0
    sides = (np.add.reduceat(side.tokens == unknown, side.starts) > 0 for side in (pairs.source, pairs.target))
    return int(np.logical_or(*sides).sum())


def _sample(pair: Seq2SeqExample, source: list[int], target: list[int], tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return f"{pair.origin}: {pair.source!r} -> {pair.target!r}"
    sides = ("|".join(visible_token(tokenizer, token) for token in side) for side in (source, target))
    return f"{pair.origin}: {' -> '.join(sides)}"

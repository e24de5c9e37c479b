"""Report on training documents: counts, duplicates, skipped files, and a training sequence."""

from __future__ import annotations

import textwrap
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from glassformer.counted import counted
from glassformer.errors import DataError
from glassformer.training.data.held_out import UNDECIDED, choose_held_out, exclude_duplicates, hold_out_tails
from glassformer.training.data.packing import IGNORE, PackedBatch, packed_eval_batches
from glassformer.training.data.prepare import (
    Data,
    ParallelEncoder,
    Progress,
    ProgressMeter,
    ShardWriter,
    as_documents,
    counts,
    leading_id,
)
from glassformer.training.data.read_options import DEFAULT_READ, ReadOptions
from glassformer.training.data.shards import HELD_OUT, TRAIN, DocumentIndex
from glassformer.training.data.sources import Document, DocumentFiles, Skipped

SAMPLE_SEQUENCES, SAMPLE_CHARS, MAX_REMEMBERED = 32, 160, 100_000


@dataclass(frozen=True)
class DocumentReport:
    """The result of `check_documents`.

    bytes: of the text in UTF-8. duplicates: documents equal to an earlier one; duplicate: an example.
    characters_each, tokens_each: minimum, median and maximum per document (tokens_each is None without a tokenizer, or
    where the ends of documents are held out).
    train, held_out, left_out: {"documents", "tokens", "bytes"}; tokens include those that start and end a document.
    skipped: reason -> {"count", "examples"}. sample: the first documents, or a training sequence, as plain text.
    """

    documents: int
    bytes: int
    characters: int
    tokens: int | None
    duplicates: int
    duplicate: str | None
    characters_each: tuple[int, int, int]
    tokens_each: tuple[int, int, int] | None
    train: dict[str, int]
    held_out: dict[str, int]
    left_out: dict[str, int]
    context: int
    notes: list[str]
    skipped: dict[str, dict]
    skipped_lines: list[str]
    sample: str

    def render(self) -> str:
        """The report as plain text."""
        low, median, high = self.characters_each
        lines = [
            f"documents    {self.documents:,}",
            f"text         {counted(self.bytes, 'byte')}, {counted(self.characters, 'character')}",
        ]
        if self.tokens is not None:
            lines.append(f"tokens       {self.tokens:,} ({self.bytes / max(1, self.tokens):.2f} bytes each)")
        lines.append(f"length       {low:,} to {counted(high, 'character')}, median {median:,}")
        if self.tokens_each:
            low, median, high = self.tokens_each
            lines.append(f"             {low:,} to {counted(high, 'token')}, median {median:,}")
        duplicates = f"{self.duplicates:,}" + (f", e.g. {self.duplicate}" if self.duplicate else "")
        lines.append(f"duplicates   {duplicates if self.duplicates else 'none'}")
        for name, side in (("training", self.train), ("held out", self.held_out), ("excluded", self.left_out)):
            if side["documents"] or name != "excluded":
                unit = "byte" if self.tokens is None else "token"
                documents = counted(side["documents"], "document")
                lines.append(f"{name:12} {documents}, {counted(side[f'{unit}s'], unit)}")
        if self.tokens is not None:
            lines.append(f"sequences    {self.train['tokens'] // self.context:,} of {self.context} tokens per epoch")
        lines += [f"note         {note}" for note in self.notes]
        lines += [f"skipped      {line}" for line in self.skipped_lines or ["nothing"]]
        return "\n".join([*lines, "", self.sample])


def check_documents(
    sources: Data,
    tokenizer: ParallelEncoder | None = None,
    *,
    held_out: float | int = 0.05,
    held_out_tokens: int = 1_000_000,
    context: int = 256,
    read: ReadOptions = DEFAULT_READ,
    strict: bool = False,
    progress: Progress | None = None,
) -> DocumentReport:
    """Read the documents as `prepare` does, and return a report.

    Without a tokenizer the held-out split is by bytes, and may differ from the one by tokens.

    Raises DataError when there is no document, or when strict=True and a document is broken.
    """
    if not 0 <= held_out <= 0.5:
        raise DataError(f"held_out must be from 0 to 0.5, got {held_out!r}")
    if context < 1:
        raise DataError(f"context must be at least 1 token, got {context}")
    documents = as_documents(sources, read, strict)
    statistics, notes = _DocumentStatistics(), []
    with TemporaryDirectory() as folder:
        stream: Iterable[tuple[Document, int]] = ((d, TRAIN) for d in statistics.over(documents))
        if held_out:
            stream = hold_out_tails(statistics.over(documents), Path(folder, "few"), notes, held_out, held_out_tokens)
        build = _TokenCounter(Path(folder), tokenizer or _NoTokenizer(), SAMPLE_SEQUENCES * context)
        build.run(stream, ProgressMeter(documents, progress, "reading").update)
    records = build.records()
    if not len(records):
        raise DataError("the data has no documents")
    split_ends = not (records["side"] == UNDECIDED).any() and held_out > 0
    if not split_ends and held_out:
        mask = choose_held_out(records["hash"], records["tokens" if tokenizer else "bytes"], held_out, held_out_tokens)
        records["side"] = np.where(mask, HELD_OUT, TRAIN)
    exclude_duplicates(records, notes)
    found = counts(records)
    skipped = Skipped()
    if isinstance(documents, DocumentFiles):
        skipped, notes = documents.skipped, notes + documents.notes
    return DocumentReport(
        documents=len(statistics.lengths),
        bytes=statistics.bytes,
        characters=sum(statistics.lengths),
        tokens=found["n_tokens"] if tokenizer else None,
        duplicates=len(statistics.hashes) - len(np.unique(np.array(statistics.hashes, np.uint64))),
        duplicate=statistics.duplicate,
        characters_each=min_median_max(np.array(statistics.lengths)),
        tokens_each=min_median_max(records["tokens"]) if tokenizer and not split_ends else None,
        train=found["train"],
        held_out=found["held_out"],
        left_out=found["left_out"],
        context=context,
        notes=notes,
        skipped=skipped.as_json(),
        skipped_lines=skipped.lines(),
        sample=_sample(build, records, tokenizer, context) if tokenizer else "\n".join(statistics.beginnings),
    )


@dataclass
class _DocumentStatistics:
    """Counts of the documents in the order of the sources."""

    bytes: int = 0
    lengths: array = field(default_factory=lambda: array("q"))  # characters
    hashes: array = field(default_factory=lambda: array("Q"))
    beginnings: list[str] = field(default_factory=list)
    duplicate: str | None = None

    def over(self, documents: Iterable[Document]) -> Iterator[Document]:
        sha, length, first = sha256(), 0, {}
        start = ""
        for document in documents:
            data = document.text.encode()
            sha.update(data)
            self.bytes += len(data)
            start = start if length else document.text[:SAMPLE_CHARS]
            length += len(document.text)
            if document.ends:
                number = int.from_bytes(sha.digest()[:8], "little")
                self.lengths.append(length)
                self.hashes.append(number)
                if self.duplicate is None and number in first:
                    self.duplicate = f"{document.origin} = {first[number]}"
                elif len(first) < MAX_REMEMBERED:
                    first[number] = document.origin
                if len(self.beginnings) < 3:
                    self.beginnings.append(f"{document.origin}: {start!r}{'...' if length > len(start) else ''}")
                sha, length = sha256(), 0
            yield document


class _TokenCounter(ShardWriter):
    """Counts tokens without writing them; stores the first `keep` for the sample."""

    def __init__(self, folder: Path, tokenizer: ParallelEncoder, keep: int):
        super().__init__(folder, tokenizer, 1)
        self.first: list[np.ndarray] = []
        self.keep = keep

    def _write(self, tokens: np.ndarray) -> None:
        if self.keep > 0:
            self.first.append(tokens[: self.keep].astype(np.int64))
            self.keep -= len(self.first[-1])


class _NoTokenizer:
    vocab_size, eos_id = 1, None

    def encode_batch(self, texts: Any, *, bare: bool = False) -> list[list[int]]:
        return [[] for _ in texts]

    def save(self, folder: Path, /) -> None: ...


def min_median_max(lengths: np.ndarray) -> tuple[int, int, int]:
    """Return the minimum, the lower median and the maximum."""
    return int(lengths.min()), int(np.sort(lengths)[(len(lengths) - 1) // 2]), int(lengths.max())


def _sample(build: _TokenCounter, records: np.ndarray, tokenizer: ParallelEncoder, context: int) -> str:
    """Render the first training sequence with a document boundary, else the first sequence."""
    tokens = np.concatenate(build.first) if build.first else np.zeros(0, np.int64)
    ends = np.cumsum(records["tokens"])
    parts = np.split(tokens, ends[ends < len(tokens)])
    train = [part.tolist() for part, side in zip(parts, records["side"], strict=False) if side == TRAIN]
    documents = DocumentIndex.of(train, begins=leading_id(tokenizer) is not None, ends=tokenizer.eos_id is not None)
    try:
        batches = list(packed_eval_batches(documents, context, 1))
    except DataError:
        return "the first training documents are too short to show"
    return render_sequence(next((b for b in batches if b.documents is not None), batches[0]), tokenizer)


def render_sequence(batch: PackedBatch, tokenizer: Any, index: int = 0) -> str:
    """Render a sequence of a batch as text: its documents below each other, "|" between tokens."""
    ids, positions, targets = (x[index].tolist() for x in (batch.ids, batch.positions, batch.targets))
    documents = [0] * len(ids) if batch.documents is None else batch.documents[index].tolist()
    lines = [
        f"a training sequence of {counted(len(ids), 'token')}, {counted(documents[-1] + 1, 'document')} "
        "(| separates tokens, \u23ce is a line break)"
    ]
    for document in range(documents[-1] + 1):
        here = [column for column, d in enumerate(documents) if d == document]
        text = "|".join(visible_token(tokenizer, ids[column]) for column in here)
        span = f"positions {positions[here[0]]} to {positions[here[-1]]}"
        ends = ", its last token has no target" if targets[here[-1]] == IGNORE else ", continues in another sequence"
        lines.append(f"document {document}: {span}{ends}")
        lines += textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent="    ", drop_whitespace=False)
    return "\n".join(lines)


def visible_token(tokenizer: Any, index: int) -> str:
    """Return the text of a token with incomplete characters as \\x.. and line breaks as symbols."""
    if hasattr(tokenizer, "token_bytes"):
        text = tokenizer.token_bytes(index).decode("utf-8", "backslashreplace")
    elif hasattr(tokenizer, "decode"):
        text = tokenizer.decode([index])
    else:
        text = str(index)
    return text.replace("\n", "\u23ce").replace("\r", "\u240d").replace("\t", "\u21e5")

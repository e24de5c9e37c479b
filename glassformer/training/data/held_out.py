"""Choose the held-out documents by a hash of their content, so that duplicates never occur on both sides.

Of a corpus with fewer than MIN_DOCUMENTS documents the end of each document is held out instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glassformer.counted import counted
from glassformer.training.data.shards import HELD_OUT, LEFT_OUT, TRAIN
from glassformer.training.data.sources import Document

MIN_DOCUMENTS, TAIL = 5, 0.1
UNDECIDED = 255  # `choose_held_out` decides when all documents are known


def choose_held_out(
    hashes: NDArray[np.uint64], tokens: NDArray[np.int64], share: float, most: int
) -> NDArray[np.bool_]:
    """Return a mask of the held-out documents, [documents] bool.

    Documents are visited in the order of their hashes, duplicates together. Each is held out if it fits into the budget
    of share * all tokens (at most `most`), until one does not fit and half of the budget is filled. If none fits, the
    smallest is held out. Most held-out documents stay held out when the corpus grows.
    """
    order = np.argsort(hashes, kind="stable")
    _, first = np.unique(hashes[order], return_index=True)
    groups = np.add.reduceat(tokens[order], first)
    budget = min(share * int(tokens.sum()), most)
    chosen, filled = [], 0
    for group, size in enumerate(groups.tolist()):
        if filled + size <= budget:
            chosen.append(group)
            filled += size
        elif filled > budget / 2:
            break
    if not chosen and len(groups) > 1:
        chosen = [int(np.argmin(groups))]
    mask = np.zeros(len(groups), bool)
    mask[chosen] = True
    result = np.empty(len(hashes), bool)
    result[order] = np.repeat(mask, np.diff(first, append=len(hashes)))
    return result


def exclude_duplicates(records: NDArray[Any], notes: list[str]) -> None:
    """Exclude training documents that are equal to a held-out one."""
    held_out = records["hash"][records["side"] == HELD_OUT]
    copies = (records["side"] == TRAIN) & np.isin(records["hash"], held_out)
    if copies.any():
        records["side"][copies] = LEFT_OUT
        notes.append(f"excluded: {counted(int(copies.sum()), 'training document')} equal to a held-out one")


class _Chunk(NamedTuple):
    document: int
    origin: str
    size: int  # UTF-8 bytes
    ends: bool


def hold_out_tails(
    documents: Iterable[Document], stash: Path, notes: list[str], share: float, most: int
) -> Iterator[tuple[Document, int]]:
    """Yield documents with their side.

    With at least MIN_DOCUMENTS documents the side is UNDECIDED. Otherwise each document is split: its start for
    training, its end held out (split at a line break if one is near); duplicates are dropped. The end is TAIL of the
    document, or `share` if that is more, and at most `most` bytes in all.

    Args:
        stash: a temporary file for the first documents, until their number is known.
        notes: receives a sentence about the split.
    """
    stream, waiting, ended = iter(documents), [], 0
    following: Document | None = None
    with open(stash, "w+b") as file:
        for following in stream:
            if ended == MIN_DOCUMENTS - 1:
                break
            data = following.text.encode()
            file.write(data)
            waiting.append(_Chunk(ended, following.origin, len(data), following.ends))
            ended += following.ends
            following = None
        file.seek(0)
        if following is not None:
            for chunk in waiting:
                yield Document(file.read(chunk.size).decode(), chunk.origin, chunk.ends), UNDECIDED
            yield following, UNDECIDED
        elif waiting:
            total = sum(chunk.size for chunk in waiting)
            yield from _tails(file, waiting, notes, min(max(share, TAIL), most / max(1, total)))
    stash.unlink()
    yield from ((document, UNDECIDED) for document in stream)


def _tails(file: BinaryIO, waiting: list[_Chunk], notes: list[str], share: float) -> Iterator[tuple[Document, int]]:
    start, seen, count = 0, set(), 0
    for number in range(waiting[-1].document + 1):
        parts = [p for p in waiting if p.document == number]
        size = sum(p.size for p in parts)
        file.seek(start)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(file.read(part.size))
        if digest.digest() not in seen:
            seen.add(digest.digest())
            count += 1
            cut = _tail_start(file, start, size, share)
            file.seek(start)
            yield from _split_at(file, parts, cut)
        start += size
    each = (
        f"1 document: its last {100 * share:.3g}%"
        if count == 1
        else f"{count} documents: the last {100 * share:.3g}% of each"
    )
    notes.append(f"{each} is held out, as a document of its own")
    if count <= waiting[-1].document:
        notes.append(f"excluded: {counted(waiting[-1].document + 1 - count, 'duplicate')} of these documents")


def _split_at(file: BinaryIO, parts: list[_Chunk], cut: int) -> Iterator[tuple[Document, int]]:
    """Yield the chunks of one document, split after `cut` bytes into a training and a held-out document."""
    position = 0
    for part in parts:
        data = file.read(part.size)
        before, after = data[: max(0, cut - position)], data[max(0, cut - position) :]
        position += len(data)
        if before:
            yield Document(before.decode(), part.origin, position >= cut), TRAIN
        if after:
            yield Document(after.decode(), f"{part.origin} (end)", part.ends), HELD_OUT


def _tail_start(file: BinaryIO, start: int, size: int, share: float) -> int:
    """Return the offset in bytes at which the held-out end of a document starts.

    It is after a line break within the next 64 bytes or 2% of the document (at most 5%, or 4 KiB), else after a space
    in that range, else between two characters.
    """
    cut = int(size * (1 - share))
    file.seek(start + cut)
    near = file.read(max(4, min(max(64, size // 50), 4096, size // 20)))
    for separator in (b"\n", b" "):
        if (at := near.find(separator)) >= 0 and cut + at + 1 < size:
            return cut + at + 1
    while cut < size and near and near[0] & 0xC0 == 0x80:
        cut, near = cut + 1, near[1:]
    return cut

"""Which documents are held out: by a hash of the content, so that copies never fall on both sides.

A corpus of fewer than FEW documents cannot give one away: the end of each is held out instead, a tenth or so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glassformer.training.data.shards import HELD_OUT, LEFT_OUT, TRAIN
from glassformer.training.data.sources import Document

FEW, TAIL = 5, 0.1
UNDECIDED = 255  # the side is chosen by `split`, when all documents are known


def choose_held_out(
    hashes: NDArray[np.uint64], tokens: NDArray[np.int64], share: float, most: int
) -> NDArray[np.bool_]:
    """Which documents are held out: [documents] bool.

    Documents are gone through in the order of their hashes, copies together; each is held out if it still fits into
    share * all tokens (and into `most`), until the first that does not fit once half of that is filled. If none fits,
    the smallest is held out. By and large, what is held out stays so when the corpus grows.
    """
    order = np.argsort(hashes, kind="stable")
    _, first = np.unique(hashes[order], return_index=True)
    groups = np.add.reduceat(tokens[order], first)
    room = min(share * int(tokens.sum()), most)
    chosen, filled = [], 0
    for group, size in enumerate(groups.tolist()):
        if filled + size <= room:
            chosen.append(group)
            filled += size
        elif filled > room / 2:
            break
    if not chosen and len(groups) > 1:
        chosen = [int(np.argmin(groups))]
    mask = np.zeros(len(groups), bool)
    mask[chosen] = True
    result = np.empty(len(hashes), bool)
    result[order] = np.repeat(mask, np.diff(first, append=len(hashes)))
    return result


def exclude_duplicates(records: NDArray[Any], notes: list[str]) -> None:
    """Training documents that equal a held-out one are left out of training."""
    aside = records["hash"][records["side"] == HELD_OUT]
    copies = (records["side"] == TRAIN) & np.isin(records["hash"], aside)
    if copies.any():
        records["side"][copies] = LEFT_OUT
        notes.append(f"{int(copies.sum()):,} training documents equal a held-out one and are left out")


class _Piece(NamedTuple):
    document: int
    where: str
    size: int  # UTF-8 bytes
    ends: bool


def hold_out_tails(
    documents: Iterable[Document], stash: Path, notes: list[str], share: float, most: int
) -> Iterator[tuple[Document, int]]:
    """Documents with their side: UNDECIDED if there are at least FEW; else each document twice, its first part for
    training and its end held out (cut at a line break if one is near), and copies not at all. Held out is TAIL of each
    document, or `share` if that is more, but together no more than `most` bytes.

    Until that is known the first documents wait in the file `stash`. What was done is added to `notes`.
    """
    stream, waiting, ended = iter(documents), [], 0
    following: Document | None = None
    with open(stash, "w+b") as file:
        for following in stream:
            if ended == FEW - 1:
                break
            data = following.text.encode()
            file.write(data)
            waiting.append(_Piece(ended, following.origin, len(data), following.ends))
            ended += following.ends
            following = None
        file.seek(0)
        if following is not None:
            for piece in waiting:
                yield Document(file.read(piece.size).decode(), piece.where, piece.ends), UNDECIDED
            yield following, UNDECIDED
        elif waiting:
            whole = sum(piece.size for piece in waiting)
            yield from _tails(file, waiting, notes, min(max(share, TAIL), most / max(1, whole)))
    stash.unlink()
    yield from ((document, UNDECIDED) for document in stream)


def _tails(file: BinaryIO, waiting: list[_Piece], notes: list[str], share: float) -> Iterator[tuple[Document, int]]:
    start, seen, kept = 0, set(), 0
    for number in range(waiting[-1].document + 1):
        parts = [p for p in waiting if p.document == number]
        size = sum(p.size for p in parts)
        file.seek(start)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(file.read(part.size))
        if digest.digest() not in seen:
            seen.add(digest.digest())
            kept += 1
            cut = _tail(file, start, size, share)
            file.seek(start)
            yield from _in_two(file, parts, cut)
        start += size
    each = (
        f"1 document: its last {100 * share:.3g}%"
        if kept == 1
        else f"{kept} documents: the last {100 * share:.3g}% of each"
    )
    notes.append(f"{each} is held out, as a document of its own")
    if kept <= waiting[-1].document:
        notes.append(f"{waiting[-1].document + 1 - kept} copies of them are left out")


def _in_two(file: BinaryIO, parts: list[_Piece], cut: int) -> Iterator[tuple[Document, int]]:
    """The pieces of one document, cut after `cut` bytes: the part before it ends there."""
    position = 0
    for part in parts:
        data = file.read(part.size)
        before, after = data[: max(0, cut - position)], data[max(0, cut - position) :]
        position += len(data)
        if before:
            yield Document(before.decode(), part.where, position >= cut), TRAIN
        if after:
            yield Document(after.decode(), f"{part.where} (end)", part.ends), HELD_OUT


def _tail(file: BinaryIO, start: int, size: int, share: float) -> int:
    """Where the end begins that is held out, in bytes from the document's start: after a line break within the next
    64 bytes or 2% of the document (at most 5%, or 4 KiB), else after a space there, else between two characters."""
    cut = int(size * (1 - share))
    file.seek(start + cut)
    near = file.read(max(4, min(max(64, size // 50), 4096, size // 20)))
    for border in (b"\n", b" "):
        if (at := near.find(border)) >= 0 and cut + at + 1 < size:
            return cut + at + 1
    while cut < size and near and near[0] & 0xC0 == 0x80:
        cut, near = cut + 1, near[1:]
    return cut

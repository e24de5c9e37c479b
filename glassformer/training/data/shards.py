"""Tokens on disk: a folder of memory-mapped shards with an index. `prepare` (in prepare.py) writes it, here it is read.

    DATA/tokens-00000.bin ...   token ids, little-endian uint16 (vocabulary up to 65,536) or uint32, in source order
    DATA/documents.npy          for each document: tokens, UTF-8 bytes, hash of the text, side (TRAIN, HELD_OUT, ...)
    DATA/index.json             sizes, SHA-256 of each file, fingerprint, settings, counts, notes, what was skipped

Documents lie in source order and stay there: the order of training is a permutation that the row loader makes from
(seed, epoch), so one folder serves every seed. Each document ends with the tokenizer's end-of-document token (eos_id),
and begins with its bos_id if the tokenizer says so (add_bos).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import DataError

FORMAT, VERSION = "glassformer-shards", 1
TRAIN, HELD_OUT, LEFT_OUT = 0, 1, 2
RECORD = np.dtype([("tokens", "<i8"), ("bytes", "<i8"), ("hash", "<u8"), ("side", "u1")])


class TokenArray:
    """One long sequence of token ids, lying in several arrays of `each` ids (the last may be shorter)."""

    def __init__(self, arrays: Sequence[NDArray[Any]], each: int):
        self.arrays, self.each = arrays, each

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids at `index`, in its shape."""
        if len(self.arrays) == 1:
            return self.arrays[0][index].astype(np.int64)
        which, result = index // self.each, np.empty(index.shape, np.int64)
        for number in np.unique(which):
            here = which == number
            result[here] = self.arrays[number][index[here] - number * self.each]
        return result


@dataclass(frozen=True)
class DocumentIndex:
    """The documents of one side. Row d of the arrays is document d: where its tokens start, how many there are (those
    that begin and end it included), and the UTF-8 bytes of its text."""

    tokens: TokenArray
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    byte_counts: NDArray[np.int64]
    begins: bool  # each document begins with a beginning-of-text token, which stands for no byte of text
    ends: bool  # each ends with an end-of-document token, which stands for none either
    ordered: bool = False
    fingerprint: str = ""

    @property
    def n_documents(self) -> int:
        return len(self.starts)

    @property
    def n_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return int(self.byte_counts.sum())

    def document(self, number: int) -> NDArray[np.int64]:
        start = self.starts[number]
        return self.tokens[np.arange(start, start + self.lengths[number])]

    @classmethod
    def of(
        cls,
        documents: Sequence[Sequence[int]],
        sizes: Sequence[int] | None = None,
        *,
        begins: bool = False,
        ends: bool = True,
        ordered: bool = False,
    ) -> DocumentIndex:
        """A view of token ids in memory; `sizes` in UTF-8 bytes, 0 where not given."""
        lengths = np.array([len(d) for d in documents], np.int64)
        flat = np.fromiter((i for d in documents for i in d), np.int64, int(lengths.sum()))
        known = np.zeros(len(documents), np.int64) if sizes is None else np.array(sizes, np.int64)
        starts = np.cumsum(lengths) - lengths
        return cls(TokenArray([flat], max(1, len(flat))), starts, lengths, known, begins, ends, ordered)


class Shards:
    """An opened folder of shards: `train` and `held_out` views, `fingerprint`, `notes` for a person, `skipped`.

    Raises DataError when the folder is no such folder, of another version, or a file is missing or cut short;
    `verify()` also reads every byte and compares SHA-256.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.index = _read_index(self.folder)
        try:
            self._open()
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.folder}/index.json is broken ({error!r}): prepare the data again") from error

    def _open(self) -> None:
        index = self.index
        dtype = np.dtype(index["dtype"])
        arrays: list[NDArray[Any]] = []
        for file in index["files"]:
            path, count = self.folder / file["name"], file["tokens"]
            self._sized(path, count * dtype.itemsize)
            arrays.append(np.asarray(np.memmap(path, dtype, "r", shape=(count,))))
        self._sized(self.folder / "documents.npy", index["documents_bytes"])
        try:
            records = np.load(self.folder / "documents.npy", allow_pickle=False)
            fits = records.dtype == RECORD and int(records["tokens"].sum()) == index["n_tokens"]
        except Exception as error:  # NumPy passes on whatever its parser of headers stumbles over
            raise DataError(f"{self.folder}/documents.npy cannot be read: {error}: prepare the data again") from error
        if not fits or sum(len(a) for a in arrays) != index["n_tokens"]:
            raise DataError(f"{self.folder}: documents.npy does not belong to these shards: prepare the data again")
        self.fingerprint: str = index["fingerprint"]
        self.notes: list[str] = index["notes"]
        self.skipped: dict[str, dict] = index["skipped"]
        self.ordered: bool = index["settings"]["ordered"]
        self.vocab_size: int = index["vocab_size"]
        self.bos_id: int | None = index["bos_id"]  # None where documents do not begin with it
        self.eos_id: int | None = index["eos_id"]
        self.n_tokens: int = index["n_tokens"]
        tokens, lengths = TokenArray(arrays, index["shard_tokens"]), records["tokens"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths

        def view(side: int, ordered: bool) -> DocumentIndex:
            rows = np.flatnonzero(records["side"] == side)
            sizes = records["bytes"][rows].astype(np.int64)
            begins, ends = self.bos_id is not None, self.eos_id is not None
            return DocumentIndex(tokens, starts[rows], lengths[rows], sizes, begins, ends, ordered, self.fingerprint)

        self.train, self.held_out = view(TRAIN, self.ordered), view(HELD_OUT, True)

    def _sized(self, path: Path, size: int) -> None:
        try:
            there = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}: prepare the data again") from error
        if there != size:
            raise DataError(f"{path} has {there:,} bytes, the index says {size:,}: it is cut short or was changed, "
                            "prepare the data again")  # fmt: skip

    def verify(self) -> None:
        """Read everything and compare it with the index. Raises DataError naming the file that differs."""
        for name, digest in self.index["sha256"].items():
            with open(self.folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise DataError(f"{self.folder / name} is damaged (SHA-256 differs): prepare the data again")


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{folder} is no folder of prepared data: {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is cut short or damaged ({error}): prepare the data again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path} is no index of prepared data: its format is not {FORMAT}")
    if index.get("version") != VERSION:
        said = index.get("version")
        raise DataError(f"{path} has version {said}, this Glassformer reads {VERSION}: prepare the data again")
    return index

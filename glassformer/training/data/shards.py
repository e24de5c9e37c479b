"""Tokens on disk: a folder of memory-mapped shards with an index, written by `prepare`.

    DATA/tokens-00000.bin ...   token ids, little-endian uint16 (vocabulary up to 65,536) or uint32, in source order
    DATA/documents.npy          for each document: tokens, UTF-8 bytes, hash of the text, side (TRAIN, HELD_OUT, ...)
    DATA/index.json             sizes, SHA-256 of each file, fingerprint, settings, counts, notes, what was skipped

Documents are stored in source order; `PackedLoader` permutes them by (seed, epoch), so that one folder serves every
seed. Each document ends with the tokenizer's eos_id, and starts with its bos_id if the tokenizer has add_bos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from glassformer.errors import DataError
from glassformer.json_file import Count, check_schema, read_json

FORMAT, VERSION = "glassformer-shards", 1
TRAIN, HELD_OUT, LEFT_OUT = 0, 1, 2
RECORD = np.dtype([("tokens", "<i8"), ("bytes", "<i8"), ("hash", "<u8"), ("side", "u1")])


class ShardFile(TypedDict):
    """One token file in the index."""

    name: Annotated[str, Field(pattern=r"^tokens-[0-9]{5,9}\.bin$")]
    tokens: Count


class ShardSettings(TypedDict):
    """The settings in the index that an opened folder uses."""

    ordered: bool


class Index(TypedDict):
    """The values of index.json that an opened folder uses; others are for the reader of the file."""

    fingerprint: str
    tokenizer: str
    settings: ShardSettings
    vocab_size: Annotated[int, Field(ge=1, lt=1 << 32)]
    eos_id: Count | None
    bos_id: Count | None
    n_tokens: Count
    notes: list[str]
    skipped: dict[str, dict[str, Any]]
    dtype: Literal["<u2", "<u4"]
    shard_tokens: Annotated[int, Field(ge=1, lt=1 << 60)]
    files: list[ShardFile]
    documents_bytes: Count
    sha256: dict[str, str]


class TokenArray:
    """One sequence of token ids, stored in several arrays of `each` ids (the last may be shorter)."""

    def __init__(self, arrays: Sequence[NDArray[Any]], each: int):
        self.arrays, self.each = arrays, each

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at `index`, in its shape."""
        if len(self.arrays) == 1:
            return self.arrays[0][index].astype(np.int64)
        which, result = index // self.each, np.empty(index.shape, np.int64)
        for number in np.unique(which):
            here = which == number
            result[here] = self.arrays[number][index[here] - number * self.each]
        return result


@dataclass(frozen=True)
class DocumentIndex:
    """The training or the held-out documents: the offset, the number of tokens and the UTF-8 bytes of each.

    The number of tokens includes those that start and end a document.
    """

    tokens: TokenArray
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    byte_counts: NDArray[np.int64]
    begins: bool  # each document starts with a start token, which has no bytes of text
    ends: bool  # each document ends with an end token, which has no bytes of text
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
        """Return the index of documents given as token ids; `sizes` are in UTF-8 bytes, 0 where not given."""
        lengths = np.array([len(d) for d in documents], np.int64)
        flat = np.fromiter((i for d in documents for i in d), np.int64, int(lengths.sum()))
        known = np.zeros(len(documents), np.int64) if sizes is None else np.array(sizes, np.int64)
        starts = np.cumsum(lengths) - lengths
        return cls(TokenArray([flat], max(1, len(flat))), starts, lengths, known, begins, ends, ordered)


class Shards:
    """A folder of shards, opened: `train` and `held_out` documents, `fingerprint`, `notes` and `skipped`.

    Raises DataError when the folder is of another kind or version, or a file is missing or truncated. `verify()` also
    reads every byte and compares SHA-256.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.index = _read_index(self.folder)
        try:
            self._open()
        except OSError as error:
            name = error.filename or self.folder
            raise DataError(f"{name} cannot be read: {error.strerror}: prepare the data again") from error

    def _open(self) -> None:
        index = self.index
        dtype = np.dtype(index["dtype"])
        arrays: list[NDArray[Any]] = []
        for file in index["files"]:
            path, count = self.folder / file["name"], file["tokens"]
            self._check_size(path, count * dtype.itemsize)
            arrays.append(np.asarray(np.memmap(path, dtype, "r", shape=(count,))))
        self._check_size(self.folder / "documents.npy", index["documents_bytes"])
        try:
            records = np.load(self.folder / "documents.npy", allow_pickle=False)
            fits = records.dtype == RECORD and records.ndim == 1 and int(records["tokens"].sum()) == index["n_tokens"]
            fits = fits and all(int(records[name].min(initial=0)) >= 0 for name in ("tokens", "bytes"))
        except Exception as error:  # NumPy's header parser raises errors of several types
            raise DataError(f"{self.folder}/documents.npy cannot be read: {error}: prepare the data again") from error
        if not fits or sum(len(a) for a in arrays) != index["n_tokens"]:
            raise DataError(f"{self.folder}: documents.npy does not match these shards: prepare the data again")
        self.fingerprint: str = index["fingerprint"]
        self.notes: list[str] = index["notes"]
        self.skipped: dict[str, dict] = index["skipped"]
        self.ordered: bool = index["settings"]["ordered"]
        self.vocab_size: int = index["vocab_size"]
        self.bos_id: int | None = index["bos_id"]  # None where documents do not start with it
        self.eos_id: int | None = index["eos_id"]
        self.n_tokens: int = index["n_tokens"]
        tokens, lengths = TokenArray(arrays, index["shard_tokens"]), records["tokens"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths

        def documents_of(side: int, ordered: bool) -> DocumentIndex:
            numbers = np.flatnonzero(records["side"] == side)
            sizes = records["bytes"][numbers].astype(np.int64)
            begins, ends = self.bos_id is not None, self.eos_id is not None
            return DocumentIndex(
                tokens, starts[numbers], lengths[numbers], sizes, begins, ends, ordered, self.fingerprint
            )

        self.train, self.held_out = documents_of(TRAIN, self.ordered), documents_of(HELD_OUT, True)

    def _check_size(self, path: Path, size: int) -> None:
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}: prepare the data again") from error
        if found != size:
            raise DataError(
                f"{path} has {found:,} bytes, the index has {size:,}: the file is truncated or was changed, "
                "prepare the data again"
            )

    def verify(self) -> None:
        """Compare every file with its SHA-256 in the index. Raises DataError that names a file which differs."""
        recorded = self.index["sha256"]
        for name in (*(file["name"] for file in self.index["files"]), "documents.npy"):
            path = self.folder / name
            try:
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}: prepare the data again") from error
            if digest != recorded.get(name):
                raise DataError(f"{path} is damaged (SHA-256 differs): prepare the data again")


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.is_file():
        raise DataError(f"{folder} is not a folder of prepared data: it has no file index.json")
    index = read_json(path, dict[str, Any], error_type=DataError)
    if index.get("format") != FORMAT:
        raise DataError(f"{path} is not an index of prepared data: its format is not {FORMAT}")
    if index.get("version") != VERSION:
        raise DataError(
            f"{path} has version {index.get('version')}, this Glassformer reads {VERSION}: prepare the data again"
        )
    check_schema(index, path, Index, error_type=DataError)
    return index

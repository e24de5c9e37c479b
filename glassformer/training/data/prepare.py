"""Tokenize documents into a folder of shards, which appears atomically."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import DataError
from glassformer.training.data.held_out import UNDECIDED, choose_held_out, exclude_duplicates, hold_out_tails
from glassformer.training.data.read_options import DEFAULT_READ, ReadOptions
from glassformer.training.data.shards import FORMAT, HELD_OUT, LEFT_OUT, RECORD, TRAIN, VERSION, Shards
from glassformer.training.data.sources import Document, DocumentFiles, Skipped

SHARD_TOKENS = 100_000_000
BATCH_CHARS, BATCH_TEXTS = 1 << 20, 4096  # of one call of the tokenizer
Data = str | Path | Sequence[str | Path] | Iterable[Document]
Progress = Callable[[int, int, str], None]


@runtime_checkable
class ParallelEncoder(Protocol):
    """The tokenizer interface of `prepare`; `bos_id` and `add_bos` are used where they exist."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int | None: ...
    def encode_batch(self, texts: Sequence[str], *, bare: bool = False) -> list[list[int]]: ...
    def save(self, folder: Path, /) -> None: ...


def prepare(
    sources: Data,
    tokenizer: ParallelEncoder,
    out: str | Path,
    *,
    held_out: float | int = 0.05,
    held_out_tokens: int = 1_000_000,
    held_out_sources: Data | None = None,
    ordered: bool = False,
    read: ReadOptions = DEFAULT_READ,
    strict: bool = False,
    rebuild: bool = False,
    progress: Progress | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Shards:
    """Tokenize documents into the folder `out`, and open it.

    An existing folder made from the same documents, tokenizer and options is opened without tokenizing.

    Args:
        sources: names of files, folders, globs or "-"; or a `DocumentFiles`, a `Texts`, any iterable of Document.
        held_out: fraction of the tokens to hold out, in complete documents, at least one and at most
            `held_out_tokens`; 0 for none. With fewer than 5 documents the end of each, a tenth or `held_out` if that
            is more, at most `held_out_tokens` bytes.
        held_out_sources: hold out exactly these instead; a training document equal to one of them is excluded.
        read: how files are read. strict: raise an error for what would be skipped.
        ordered: keep the order of the documents in the first epoch of training (a curriculum).
        rebuild: replace an existing folder that was made from other documents, instead of raising an error.
        progress: called with (bytes done, total bytes, activity); the total is 0 where it is not known.

    Raises:
        DataError: there is nothing to read or to train on, another folder exists, or the disk is full.
    """
    if not 0 <= held_out <= 0.5:
        raise DataError(f"held_out must be from 0 to 0.5, got {held_out!r}")
    out = Path(out)
    main = as_documents(sources, read, strict)
    evaluation = None if held_out_sources is None else as_documents(held_out_sources, read, strict)
    settings = {"held_out": held_out if evaluation is None else "given", "held_out_tokens": held_out_tokens,
                "ordered": ordered, "shard_tokens": shard_tokens}  # fmt: skip
    identity = {"settings": settings, "tokenizer": tokenizer_fingerprint(tokenizer)}

    old = _existing(out, identity, rebuild)
    if old is not None and getattr(main, "repeatable", False) and getattr(evaluation, "repeatable", True):
        digest = _Digest(identity)
        meter = ProgressMeter(main, progress, "reading")
        for part in [main] if evaluation is None else [main, evaluation]:
            for number, document in enumerate(digest.over(part)):
                meter.update(len(document.text), number % 1000 == 0)
        meter.update(0)
        return _check_fingerprint(old, digest)

    digest, notes, meter = _Digest(identity), [], ProgressMeter(main, progress, "tokenizing")
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        if evaluation is not None:
            stream = ((d, side) for docs, side in ((main, TRAIN), (evaluation, HELD_OUT)) for d in digest.over(docs))
        elif held_out == 0:
            stream = ((d, TRAIN) for d in digest.over(main))
        else:
            stream = hold_out_tails(digest.over(main), partial / "few", notes, held_out, held_out_tokens)
        build = ShardWriter(partial, tokenizer, shard_tokens)
        build.run(stream, meter.update)
        if old is not None:
            return _check_fingerprint(old, digest)
        records = build.records()
        if (records["side"] == UNDECIDED).any():
            mask = choose_held_out(records["hash"], records["tokens"], held_out, held_out_tokens)
            records["side"] = np.where(mask, HELD_OUT, TRAIN)
        exclude_duplicates(records, notes)
        index = {
            "format": FORMAT, "version": VERSION, **identity, "fingerprint": digest.hexdigest(),
            "vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "bos_id": leading_id(tokenizer),
            **counts(records), **_skipped(main, evaluation, notes), "notes": notes,
        }  # fmt: skip
        build.finish(records, index)
        _replace_folder(partial, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(_disk_full(out, partial, meter, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Shards(out)


def as_documents(sources: Data, read: ReadOptions = DEFAULT_READ, strict: bool = False) -> Iterable[Document]:
    """Return names as `DocumentFiles(names, ...)`, and documents unchanged."""
    names = isinstance(sources, str | Path) or (
        isinstance(sources, list | tuple) and not any(isinstance(s, Document) for s in sources)
    )
    if names:
        return DocumentFiles(sources, read, strict=strict)  # pyright: ignore
    if (read, strict) != (DEFAULT_READ, False):
        raise DataError("options of reading and strict apply to file names: give them to DocumentFiles(...) instead")
    return sources  # pyright: ignore


def tokenizer_fingerprint(tokenizer: ParallelEncoder) -> str:
    """Return the SHA-256 of the files that the tokenizer saves, and of the tokens that start and end a document."""
    digest = hashlib.sha256(repr((tokenizer.vocab_size, tokenizer.eos_id, leading_id(tokenizer))).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def leading_id(tokenizer: ParallelEncoder) -> int | None:
    """Return the token that starts each document; None where the tokenizer has no add_bos."""
    return getattr(tokenizer, "bos_id", None) if getattr(tokenizer, "add_bos", False) else None


def counts(records: NDArray[Any]) -> dict[str, Any]:
    """Return the index entries of documents, tokens, bytes and duplicates."""
    result: dict[str, Any] = {"n_tokens": int(records["tokens"].sum())}
    for name, side in (("train", TRAIN), ("held_out", HELD_OUT), ("left_out", LEFT_OUT)):
        part = records[records["side"] == side]
        sums = {key: int(part[key].sum()) for key in ("tokens", "bytes")}
        result[name] = {"documents": len(part), **sums}
    return result | {"duplicates": len(records) - len(np.unique(records["hash"]))}


class _Digest:
    """The fingerprint: SHA-256 of the text of all documents in order, the tokenizer and the options."""

    def __init__(self, identity: dict[str, Any]):
        self._sha = hashlib.sha256(json.dumps({"version": VERSION, **identity}, sort_keys=True).encode())

    def over(self, documents: Iterable[Document]) -> Iterator[Document]:
        self._sha.update(b"\xfe")  # not a byte of UTF-8: separates the sides, as 0xff the documents
        for document in documents:
            if not isinstance(document, Document):
                raise DataError(f"a document must be a Document, got {type(document).__name__}: use Texts(...)")
            self._sha.update(_utf8(document))
            if document.ends:
                self._sha.update(b"\xff")
            yield document

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


class ShardWriter:
    """Tokenizes a stream of documents in batches and writes token files."""

    def __init__(self, folder: Path, tokenizer: ParallelEncoder, shard_tokens: int):
        self.folder, self.tokenizer, self.shard_tokens = folder, tokenizer, shard_tokens
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.files: list[dict[str, Any]] = []
        self.sha256: dict[str, str] = {}
        self._file: BinaryIO | None = None
        self._free = 0
        self._tokens, self._bytes, self._hashes, self._sides = array("q"), array("q"), array("Q"), array("B")
        self._before = [i for i in [leading_id(tokenizer)] if i is not None]
        self._after = [i for i in [tokenizer.eos_id] if i is not None]

    def run(self, stream: Iterable[tuple[Document, int]], update: Callable[[int], None]) -> None:
        batch: list[tuple[Document, int]] = []
        chars, self._sha, self._started, self._count, self._size = 0, hashlib.sha256(), False, 0, 0
        for document, side in stream:
            batch.append((document, side))
            chars += len(document.text)
            if chars >= BATCH_CHARS or len(batch) >= BATCH_TEXTS:
                self._encode(batch)
                update(chars)
                batch, chars = [], 0
        self._encode(batch)
        update(chars)
        self._close()

    def _encode(self, batch: list[tuple[Document, int]]) -> None:
        ids: list[int] = []
        encoded = self.tokenizer.encode_batch([document.text for document, _ in batch], bare=True)
        for (document, side), tokens in zip(batch, encoded, strict=True):
            start = len(ids)
            ids += tokens if self._started else self._before + tokens
            if document.ends:
                ids += self._after
            data = _utf8(document)
            self._sha.update(data)
            self._started, self._count, self._size = True, self._count + len(ids) - start, self._size + len(data)
            if document.ends:
                self._tokens.append(self._count)
                self._bytes.append(self._size)
                self._hashes.append(int.from_bytes(self._sha.digest()[:8], "little"))
                self._sides.append(side)
                self._sha, self._started, self._count, self._size = hashlib.sha256(), False, 0, 0
        packed = np.frombuffer(array("I", ids), np.uint32)  # np.array(ids) is four times slower
        if len(packed) and int(packed.max()) >= self.tokenizer.vocab_size:
            raise DataError(f"the tokenizer returned id {packed.max()}, its vocab_size is {self.tokenizer.vocab_size}")
        self._write(packed.astype(self.dtype))

    def _write(self, tokens: NDArray[Any]) -> None:
        while len(tokens):
            if not self._free:
                self._close()
                name = f"tokens-{len(self.files):05d}.bin"
                self.files.append({"name": name, "tokens": 0})
                self._file, self._file_sha = open(self.folder / name, "wb"), hashlib.sha256()  # noqa: SIM115
                self._free = self.shard_tokens
            part, tokens = tokens[: self._free], tokens[self._free :]
            assert self._file is not None
            data = part.tobytes()
            self._file.write(data)
            self._file_sha.update(data)
            self.files[-1]["tokens"] += len(part)
            self._free -= len(part)

    def _close(self) -> None:
        if self._file is not None:
            _fsync(self._file)
            self._file.close()
            self.sha256[self.files[-1]["name"]] = self._file_sha.hexdigest()
            self._file = None

    def records(self) -> NDArray[Any]:
        """Return one RECORD per document."""
        result = np.empty(len(self._tokens), RECORD)
        result["tokens"], result["bytes"] = self._tokens, self._bytes
        result["hash"], result["side"] = self._hashes, self._sides
        return result

    def finish(self, records: NDArray[Any], index: dict[str, Any]) -> None:
        """Write documents.npy and index.json. Raises DataError where there is no training document."""
        if not (records["side"] == TRAIN).any():
            raise DataError(
                "there is no training document: " + "; ".join(index["notes"] or ["the data has no documents"])
            )
        path = self.folder / "documents.npy"
        with open(path, "wb") as file:
            np.save(file, records, allow_pickle=False)
            _fsync(file)
        self.sha256["documents.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
        index |= {"dtype": self.dtype.str, "shard_tokens": self.shard_tokens, "files": self.files,
                  "documents_bytes": path.stat().st_size, "sha256": self.sha256}  # fmt: skip
        with open(self.folder / "index.json", "wb") as file:
            file.write(json.dumps(index, ensure_ascii=False, indent=1).encode())
            _fsync(file)


def _existing(out: Path, identity: dict[str, Any], rebuild: bool) -> Shards | None:
    """Return the existing folder if it was made with the same tokenizer and options and is not to be rebuilt."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / "index.json").exists():
        raise DataError(f"{out} exists and holds other files: name another folder")
    if rebuild:
        return None
    shards = Shards(out)
    for key, value in identity.items():
        if shards.index.get(key) != value:
            other = f"options {shards.index.get(key)}, not {value}" if key == "settings" else f"another {key}"
            raise DataError(f"{out} was prepared with {other}: name another folder, or rebuild it")
    return shards


def _check_fingerprint(shards: Shards, digest: _Digest) -> Shards:
    if digest.hexdigest() != shards.fingerprint:
        raise DataError(f"{shards.folder} was prepared from other documents: name another folder, or rebuild it")
    return shards


def _skipped(main: Iterable[Document], held_out: Iterable[Document] | None, notes: list[str]) -> dict[str, Any]:
    skipped = Skipped()
    for part in (main, held_out):
        if isinstance(part, DocumentFiles):
            skipped.merge(part.skipped)
            notes += part.notes
    return {"skipped": skipped.as_json()}


def reading_report(shards: Shards) -> list[str]:
    """Return what was skipped and noticed while the documents of `shards` were read, one sentence each."""
    found = shards.index["skipped"].items()
    skipped = Skipped({r: part["count"] for r, part in found}, {r: part["examples"] for r, part in found})
    return [*(f"skipped: {line}" for line in skipped.lines()), *shards.index["notes"]]


class ProgressMeter:
    """Reports progress: bytes read of files, or characters of documents from another source."""

    def __init__(self, documents: Iterable[Document], progress: Progress | None, activity: str):
        self.sources = documents if isinstance(documents, DocumentFiles) else None
        self.progress, self.activity, self.done = progress, activity, 0

    def update(self, more: int, now: bool = True) -> None:
        self.done = self.sources.bytes_read if self.sources and now else self.done + more
        if self.progress is not None and now:
            self.progress(self.done, (self.sources.total_bytes or 0) if self.sources else 0, self.activity)


def _utf8(document: Document) -> bytes:
    try:
        return document.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{document.origin}: character {error.start:,} is an unpaired surrogate") from error


def _disk_full(out: Path, partial: Path, meter: ProgressMeter, error: OSError) -> str:
    """Return the message for a full disk, with an estimate of the required size."""
    written = sum(p.stat().st_size for p in partial.iterdir()) / 1e6
    required = f"more than {written:,.1f} MB"
    if meter.sources is not None and meter.sources.total_bytes and meter.done:
        required = f"about {written * meter.sources.total_bytes / meter.done:,.1f} MB"
    return f"{out}: {error.strerror}: {written:,.1f} MB of shards were written, {required} are required"


def _remove_leftovers(out: Path) -> None:
    """Remove the folders of earlier processes that were killed while they wrote."""
    for kind in ("partial", "old"):
        prefix = f".{out.name}.{kind}-"
        for path in out.parent.glob(glob.escape(prefix) + "*"):
            with suppress(ValueError, PermissionError):
                try:
                    os.kill(int(path.name.removeprefix(prefix)), 0)
                except ProcessLookupError:
                    shutil.rmtree(path, ignore_errors=True)


def _replace_folder(partial: Path, out: Path) -> None:
    """Rename the finished folder to its name, and remove the folder that it replaces."""
    _fsync_folder(partial)
    if out.exists():
        old = out.with_name(f".{out.name}.old-{os.getpid()}")
        os.rename(out, old)
        os.rename(partial, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(partial, out)
    _fsync_folder(out.parent)


def _fsync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    with suppress(PermissionError):  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

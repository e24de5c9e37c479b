"""Damaged data files of every format: documents, or a DataError; no other error, crash, hang or large allocation."""

import csv
import gzip
import io
import json
import random
import tempfile
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard
from mutate import mutate_bytes, mutate_json_file, mutate_lines

from glassformer.training.data.read_options import ReadOptions
from glassformer.training.data.seq2seq_examples import Seq2SeqFiles
from glassformer.training.data.sources import DocumentFiles

TEXTS = [f"text {i}, of \"Zoë\" and 'Øystein'\n" * (1 + i % 4) for i in range(40)]
ROWS = [{"text": text, "id": i, "source": text, "target": f"target {i}"} for i, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(ROWS)).encode()


def table() -> pyarrow.Table:
    return pyarrow.Table.from_pylist(ROWS)


def parquet(compression: str) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table(), file, compression=compression, row_group_size=16)
    return file.getvalue()


def arrow(new_writer, compression: str | None = None) -> bytes:
    file = io.BytesIO()
    with new_writer(file, table().schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table(), max_chunksize=16)
    return file.getvalue()


def csv_file() -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


FORMATS = {  # file name -> valid content, mutation
    "a.txt": ("\n---\n".join(TEXTS).encode(), mutate_lines),
    "a.jsonl": (LINES, mutate_lines),
    "a.json": (json.dumps(ROWS).encode(), mutate_json_file),
    "a.csv": (csv_file(), mutate_lines),
    "a.tsv": (b"text\tsource\ttarget\n" + b"one two\tthree\tfour\n" * 30, mutate_lines),
    "a.jsonl.gz": (gzip.compress(LINES), partial(mutate_bytes, header=20)),
    "a.jsonl.zst": (zstandard.compress(LINES), partial(mutate_bytes, header=40)),
    "a.parquet": (parquet("none"), mutate_bytes),
    "b.parquet": (parquet("zstd"), mutate_bytes),
    "a.arrow": (arrow(pyarrow.ipc.new_file), mutate_bytes),
    "b.arrow": (arrow(pyarrow.ipc.new_stream, "zstd"), mutate_bytes),
    "unknown": (LINES, mutate_bytes),
}


def check(name: str, rng: random.Random) -> None:
    """Read a damaged file with both readers and random options; what they give must be text."""
    data, mutate = FORMATS[name]
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "cp1252", "shift_jis"))
    files = rng.choice((DocumentFiles, Seq2SeqFiles))
    options = {"encoding": encoding}
    if files is DocumentFiles:
        options["separator"] = rng.choice((None, "---"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(mutate(data, rng))
        stream = files(path, ReadOptions(**options), strict=rng.random() < 0.1)
        for item in stream:
            for text in (item.text,) if files is DocumentFiles else (item.source, item.target):
                assert text.encode().decode() == text
            assert item.origin.isprintable()
        assert all(line.isprintable() for line in [*stream.skipped.lines(), *stream.notes])


CHECKS = {name: partial(check, name) for name in FORMATS}


def check_any(rng: random.Random) -> None:
    """Read a damaged file of a random format."""
    check(rng.choice(list(FORMATS)), rng)

"""Test that damaged shard folders raise errors."""

import json

import pytest
from test_prepare import ByteTokenizer, stories

from glassformer.errors import DataError
from glassformer.training.data.prepare import prepare
from glassformer.training.data.shards import Shards
from glassformer.training.data.sources import Texts


@pytest.fixture
def folder(tmp_path):
    prepare(Texts(stories(100)), ByteTokenizer(), tmp_path / "data", shard_tokens=3000)
    return tmp_path / "data"


def test_truncated_grown_or_missing_shard_raises_error(folder):
    path = folder / "tokens-00001.bin"
    data = path.read_bytes()
    for broken in (data[:-2], data + b"\0", b""):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"tokens-00001.bin has {len(broken):,} bytes, the index has 6,000"):
            Shards(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"tokens-00001.bin: No such file"):
        Shards(folder)


def test_verify_detects_changed_bytes(folder):
    for name in ("tokens-00002.bin", "documents.npy"):
        path = folder / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"{name} is damaged"):
            Shards(folder).verify()
        data[-1] ^= 1
        path.write_bytes(data)
    Shards(folder).verify()


def test_damaged_documents(folder):
    path = folder / "documents.npy"
    data = path.read_bytes()
    for broken in (b"\0" * len(data), data[:128] + b"\xff" * (len(data) - 128)):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"documents.npy (cannot be read|does not match)"):
            Shards(folder)
    path.write_bytes(data[:-25])
    with pytest.raises(DataError, match=r"documents.npy has"):
        Shards(folder)


def test_damaged_index(folder):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index)[:-50])
    with pytest.raises(DataError, match=r"index.json is not valid JSON"):
        Shards(folder)
    changes = (
        ({"version": 2}, "has version 2, this Glassformer reads 1"),
        ({"format": "x"}, "not an index of"),
        ({"files": None}, "index.json: files: input should be a valid list"),
        ({"n_tokens": 5}, "does not match"),
    )
    for change, message in changes:
        path.write_text(json.dumps(index | change))
        with pytest.raises(DataError, match=message):
            Shards(folder)
    del index["eos_id"]
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index.json: eos_id: field required"):
        Shards(folder)
    path.unlink()
    with pytest.raises(DataError, match="not a folder of prepared data"):
        Shards(folder)

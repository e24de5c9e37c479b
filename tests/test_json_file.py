"""The reader of JSON files: bounded, strict, one error that names the file and the field."""

import os
from typing import NotRequired

import pytest
from typing_extensions import TypedDict

from glassformer.errors import DataError
from glassformer.json_file import MAX_DEPTH, parse_json, read_json


class Index(TypedDict):
    weight_map: dict[str, str]
    total: NotRequired[int]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"weight_map": ', "is not valid JSON"),
        (b'{"weight_map": {"a": "\xff"}}', "is not UTF-8: byte 22 is 0xff"),
        (b"[" * 100_000, "nests more than 100 levels"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "nests more than 100 levels"),
        (b"1" * 5_000, "is not valid JSON"),
        (b'{"weight_map": {"a\\ud800": "b"}}', "lone surrogate, \\ud800"),
        (b"[]", "index.json: input should be"),
        (b"{}", "weight_map: field required"),
        (b'{"weight_map": {"a": 3}}', "weight_map.a: input should be a valid string"),
        (b'{"weight_map": {}, "total": "3"}', "total: input should be a valid integer"),
    ],
)
def test_damaged_file_raises_one_error(tmp_path, content, message):
    path = tmp_path / "index.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_json(path, Index, error_type=DataError)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)


def test_valid_file_with_byte_order_mark(tmp_path):
    path = tmp_path / "index.json"
    path.write_bytes(b'\xef\xbb\xbf{"weight_map": {"a": "b"}, "other": 1}')
    assert read_json(path, Index, error_type=DataError)["weight_map"] == {"a": "b"}
    assert parse_json("[1, [2]]", "text") == [1, [2]]
    assert parse_json('["\\ud83d\\ude00", "\\\\ud800"]', "text") == ["😀", "\\ud800"]


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "nul", "large"])
def test_what_is_not_a_small_regular_file_is_rejected(tmp_path, kind):
    path = tmp_path / ("a\0b" if kind == "nul" else "index.json")
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b" " * 101)
    with pytest.raises(DataError):
        read_json(path, error_type=DataError, max_bytes=100)

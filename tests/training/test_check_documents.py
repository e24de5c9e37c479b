"""Test that `check_documents` reports the same counts as `prepare`."""

import json

import pytest
from test_prepare import ByteTokenizer, stories

from glassformer.errors import DataError
from glassformer.training.data.check_documents import check_documents
from glassformer.training.data.prepare import prepare
from glassformer.training.data.sources import Texts


class TokenBytesTokenizer(ByteTokenizer):
    def token_bytes(self, index):
        return bytes([index]) if index < 256 else b"<end>"


@pytest.mark.parametrize("n", [1, 3, 4, 5, 200])
def test_counts_equal_those_of_prepare(tmp_path, n):
    documents = stories(n) + stories(n)[::10]
    report = check_documents(Texts(documents), ByteTokenizer(), held_out=0.1)
    shards = prepare(Texts(documents), ByteTokenizer(), tmp_path / "data", held_out=0.1)
    assert report.train == shards.index["train"]
    assert report.held_out == shards.index["held_out"]
    assert report.tokens == shards.n_tokens
    assert report.notes == shards.notes
    assert (report.tokens_each is None) == (len(documents) < 5)
    assert report.documents == len(documents)
    assert report.duplicates == len(stories(n)[::10])
    assert report.duplicate == f"text#{n + 1} = text#1"
    assert report.bytes == sum(len(d.encode()) for d in documents)
    assert report.characters == sum(map(len, documents))


def test_held_out_tail_that_equals_another_document(tmp_path):
    documents = ["b" * 90 + "c" * 10, "c" * 12]  # held out "c" * 10, and the first 10 of the second to train on
    report = check_documents(Texts(documents), ByteTokenizer())
    shards = prepare(Texts(documents), ByteTokenizer(), tmp_path / "data")
    assert report.left_out == shards.index["left_out"] == {"documents": 1, "tokens": 11, "bytes": 10}
    assert "excluded     1 document," in report.render()


def test_without_a_tokenizer(tmp_path):
    report = check_documents(Texts(["a" * n for n in range(1, 100)]))
    assert report.tokens is None
    assert report.characters_each == (1, 50, 99)
    assert report.train["bytes"] + report.held_out["bytes"] == 99 * 50
    assert 0 < report.held_out["bytes"] <= 0.05 * 99 * 50
    assert "text#1: 'a'\ntext#2: 'aa'" in report.render()


def test_chunks_of_a_long_document_count_as_one(monkeypatch):
    monkeypatch.setattr("glassformer.training.data.sources.CHUNK", 50)
    report = check_documents(Texts(["word " * n for n in (3, 50, 200, 9, 9, 7)]), ByteTokenizer())
    assert report.characters_each == (15, 45, 1000)
    assert report.tokens_each == (16, 46, 1001)
    assert report.documents == 6


def test_skipped_files_are_reported_by_reason(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in stories(9)) + "{broken\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xff")
    (tmp_path / "c.png").write_bytes(b"x")
    report = check_documents(tmp_path, ByteTokenizer())
    assert {reason: s["count"] for reason, s in report.skipped.items()} == {
        "not JSON": 1, "not UTF-8": 1, "of another type": 1
    }  # fmt: skip
    text = report.render()
    assert f"skipped      1 not JSON ({tmp_path}/a.jsonl:10: " in text
    assert f"1 not UTF-8 ({tmp_path}/b.txt: byte 0)" in text
    json.dumps(vars(report))
    with pytest.raises(DataError, match=r"a.jsonl:10"):
        check_documents(tmp_path, strict=True)


def test_sample_shows_document_boundaries():
    documents = ["ab\n", "cdé", "efg", "hijk", "lmnop"] * 20
    report = check_documents(Texts(documents), TokenBytesTokenizer(), context=10, held_out=0.0)
    lines = report.sample.split("\n")
    assert lines[0].startswith("a training sequence of 10 tokens, 3 documents")
    assert lines[1:] == [
        "document 0: positions 0 to 3, its last token has no target",
        "    a|b|⏎|<end>",
        "document 1: positions 0 to 4, its last token has no target",
        r"    c|d|\xc3|\xa9|<end>",
        "document 2: positions 0 to 0, continues in another sequence",
        "    e",
    ]


def test_missing_data_and_invalid_options_raise_data_error(tmp_path):
    with pytest.raises(DataError, match="the data has no documents"):
        check_documents(Texts([]))
    with pytest.raises(DataError, match="no such file"):
        check_documents([str(tmp_path / "x")])
    with pytest.raises(DataError, match="held_out must be"):
        check_documents(Texts(["a"]), held_out=0.9)

"""Test reading documents from files of every type, and invalid input."""

import gzip
import io
import json
import subprocess
import sys
import types

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from glassformer.errors import DataError
from glassformer.training.data.read_options import ReadOptions
from glassformer.training.data.sources import CHUNK, DocumentFiles, Texts, split_document


def texts(sources):
    return [(d.origin, d.text) for d in sources]


def whole(documents):
    """Pieces put together again."""
    result, parts = [], []
    for document in documents:
        parts.append(document.text)
        if document.ends:
            result.append("".join(parts))
            parts = []
    assert not parts
    return result


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def test_files_folders_globs_and_jsonl(data_dir):
    (data_dir / "d/sub").mkdir(parents=True)
    (data_dir / "d/.git").mkdir()
    (data_dir / "d/.git/x.txt").write_text("hidden")
    (data_dir / "d/b.txt").write_text("two\n")
    (data_dir / "d/a.md").write_text("one")
    (data_dir / "d/sub/c.jsonl").write_text('{"text": "three"}\n\n{"text": "fo\\u00fcr\\n", "n": 1}\n')
    (data_dir / "d/picture.png").write_bytes(b"\x89PNG\0")
    (data_dir / "code.py").write_text("x = 1\n")
    (data_dir / "z.txt.gz").write_bytes(gzip.compress(b"packed"))
    (data_dir / "y.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed too"}\n'))
    sources = DocumentFiles(["d", "*.py", "z.txt.gz", "y.jsonl.gz", "d/a.md"])
    expected = [("d/a.md", "one"), ("d/b.txt", "two\n"), ("d/sub/c.jsonl:1", "three"), ("d/sub/c.jsonl:3", "foür\n"),
                ("code.py", "x = 1\n"), ("z.txt.gz", "packed"), ("y.jsonl.gz:1", "packed too")]  # fmt: skip
    assert texts(sources) == expected
    assert sources.skipped.counts == {"hidden": 1, "of another type": 1, "named twice": 1}
    assert (
        sources.bytes_read
        == sources.total_bytes
        == sum(
            (data_dir / n).stat().st_size
            for n in ("d/b.txt", "d/a.md", "d/sub/c.jsonl", "code.py", "z.txt.gz", "y.jsonl.gz")
        )
    )
    assert texts(sources) == expected
    assert sources.skipped.total == 3


def test_separator(data_dir):
    (data_dir / "a.txt").write_text("one\n<|endoftext|>\ntwo\nlines\n<|endoftext|>\n\n<|endoftext|>")
    files = DocumentFiles("a.txt", ReadOptions(separator="<|endoftext|>"))
    assert texts(files) == [("a.txt#1", "one"), ("a.txt#2", "two\nlines")]
    assert files.notes == []
    (data_dir / "b.txt").write_text("one\n\ntwo\nlines\n\n\n\nthree\n")
    assert whole(DocumentFiles("b.txt", ReadOptions(separator="\n\n"))) == ["one", "two\nlines", "three"]


@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n\n"])
def test_separators_across_blocks(data_dir, monkeypatch, separator):
    monkeypatch.setattr("glassformer.training.data.sources.BLOCK", 7)
    monkeypatch.setattr("glassformer.training.data.sources.CHUNK", 11)
    documents = ["ä" * n + f" {n} " + "b\nc" * n for n in range(1, 40)]
    (data_dir / "a.txt").write_text(separator.join(documents))
    assert whole(DocumentFiles("a.txt", ReadOptions(separator=separator))) == documents


def test_long_document_is_split_between_words(data_dir):
    text = "".join(f"line {i} of the text\n" for i in range(40_000))
    (data_dir / "a.txt").write_text(text)
    (data_dir / "b.jsonl").write_text(json.dumps({"text": text}))
    for name in ("a.txt", "b.jsonl"):
        found = list(DocumentFiles(name))
        assert "".join(d.text for d in found) == text
        assert len(found) > 5
        assert max(len(d.text) for d in found) <= 2 * CHUNK
        assert [d.ends for d in found] == [False] * (len(found) - 1) + [True]


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    "words",
    [
        "The cat's  mat, (said) 12 or\n\n  so... it'll\tbe?  ",
        "吾輩は猫である。\n\u3000名前は、まだ無い。「ニャー」と",
        "a\nb\n3\n",
        "x = f(1)\n    return  y\r\n",
    ],
)
def test_chunks_have_the_words_of_the_document(monkeypatch, words):
    monkeypatch.setattr("glassformer.training.data.sources.CHUNK", 70)
    text = "".join(words + "ab"[: i % 3] + " " * (i % 4 == 1) for i in range(300))
    found = [d.text for d in split_document(text, "")]
    assert "".join(found) == text
    assert len(found) > 30
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for splitter in (gpt2, pre_tokenizers.Split(tokenizers.Regex(QWEN2), "isolated"), pre_tokenizers.Whitespace()):
        whole = [word for word, _ in splitter.pre_tokenize_str(text)]
        assert [word for piece in found for word, _ in splitter.pre_tokenize_str(piece)] == whole


def test_byte_order_mark_and_line_ends(data_dir):
    (data_dir / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (data_dir / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one\\r\\n"}\r\n{"text": "two"}\r\n')
    sources = DocumentFiles(["a.txt", "b.jsonl"])
    assert whole(sources) == ["one\ntwo\rthree\n", "one\r\n", "two"]
    assert sources.crlf_files == 1


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_line_ends_and_characters_across_blocks(data_dir, monkeypatch, block):
    monkeypatch.setattr("glassformer.training.data.sources.BLOCK", block)
    (data_dir / "a.txt").write_bytes("\ufeffä\r\n😀\r\r\nz\r".encode())
    assert "".join(d.text for d in DocumentFiles("a.txt")) == "ä\n😀\r\nz\r"


BAD = {
    "empty.txt": (b" \n\t", "empty", "empty.txt"),
    "nul.txt": (b"abc\0def", "binary", "nul.txt: NUL at byte 3"),
    "latin.txt": (b"fine\n" * 300_000 + b"caf\xe9 and more", "not UTF-8", "latin.txt: byte 1,500,003"),
    "cut.txt": ("aä".encode()[:-1], "not UTF-8", "cut.txt: byte 1"),
    "utf16.txt": (
        "hello".encode("utf-16"),
        "not UTF-8",
        "utf16.txt: byte 0, it looks like utf-16: give --enc",
    ),
    "gone.txt.gz": (gzip.compress(b"text" * 1000)[:-9], "broken gzip", "gone.txt.gz"),
    "a.jsonl": (b'{"text": "good"}\n{"text": "half\n', "not JSON", "a.jsonl:2"),
    "b.jsonl": (b'{"text": "good"}\n\n{"body": "x", "id": 1}\n', 'no field "text"', "b.jsonl:3: it has body, id"),
    "c.jsonl": (b'{"text": ["x"]}\n', '"text" is not a string', "c.jsonl:1: list"),
    "d.jsonl": (b'"x"\n', "not a JSON object", "d.jsonl:1: str"),
    "e.jsonl": (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "not UTF-8", "e.jsonl:2: byte 27"),
    "f.jsonl": (b'{"text": "\\ud800x"}\n', "unpaired surrogate (not a character)", "f.jsonl:1"),
    "g.jsonl": (b'{"text": " "}\n', "empty", "g.jsonl:1"),
    "h.jsonl": (b"[" * 100_000 + b"\n", "not JSON", "h.jsonl:1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_skipped_or_raises_error(data_dir, name):
    data, reason, where = BAD[name]
    (data_dir / name).write_bytes(data)
    (data_dir / "good.txt").write_text("good")
    sources = DocumentFiles([name, "good.txt"])
    assert set(whole(sources)) <= {"good", "a"}  # nothing of a broken document gets through
    assert sources.skipped.counts == {reason: 1}
    assert sources.skipped.examples[reason][0].startswith(where)
    assert f"1 {reason} ({where}" in sources.skipped.lines()[0]
    with pytest.raises(DataError) as error:
        list(DocumentFiles([name, "good.txt"], strict=True))
    assert where in str(error.value)
    assert reason in str(error.value)


def test_not_readable(data_dir):
    (data_dir / "a.txt").write_text("text")
    sources = DocumentFiles("a.txt")

    def refuse(name):
        raise PermissionError(13, "Permission denied")
        yield

    sources._file = refuse
    with pytest.raises(DataError, match=r"no document could be read from a.txt: 1 not readable \(a.txt: Permission"):
        list(sources)


def test_missing_files_raise_data_error(data_dir):
    (data_dir / "d").mkdir()
    (data_dir / "d/x.png").write_bytes(b"x")
    (data_dir / "e.txt").write_text("")
    for given, message in (
        ("no.txt", "no.txt: there is no such file"),
        ("no/*.txt", "no/.*no file matches"),
        ("d", r"d: this folder and those inside it have no files of the types \.txt \.md"),
        ([], "there is no training data"),
    ):
        with pytest.raises(DataError, match=message):
            DocumentFiles(given)
    with pytest.raises(DataError, match=r"no document could be read from e.txt: 1 empty \(e.txt\)"):
        list(DocumentFiles("e.txt"))


def test_stdin(data_dir, monkeypatch):
    stdin(monkeypatch, b'{"text": "one"}\n{"text": "two"}\n')
    assert texts(DocumentFiles("-")) == [("standard input:1", "one"), ("standard input:2", "two")]
    stdin(monkeypatch, b"{not json}\nbut text\n")
    assert texts(DocumentFiles("-")) == [("standard input", "{not json}\nbut text\n")]
    stdin(monkeypatch, b"one\n---\ntwo")
    given = DocumentFiles(["-"], ReadOptions(separator="---"))
    for _ in range(2):
        assert texts(given) == [("standard input#1", "one"), ("standard input#2", "two")]
    assert given.total_bytes == given.bytes_read == 11
    stdin(monkeypatch, b"")
    with pytest.raises(DataError, match=r"from standard input: 1 empty \(standard input\)"):
        list(DocumentFiles("-"))


def test_text_field(data_dir):
    (data_dir / "a.jsonl").write_text('{"story": "x", "text": "y"}\n')
    assert texts(DocumentFiles("a.jsonl", ReadOptions(text_field="story"))) == [("a.jsonl:1", "x")]


def test_texts_in_memory():
    assert texts(Texts(["a", "b"], "stories")) == [("stories#1", "a"), ("stories#2", "b")]
    assert Texts(["a"]).repeatable
    assert Texts(lambda: iter("ab")).repeatable
    assert not Texts(iter("ab")).repeatable
    twice = Texts(lambda: (str(i) for i in range(3)))
    assert texts(twice) == texts(twice) != []
    with pytest.raises(DataError, match="text#1: a document must be a string, got bytes"):
        list(Texts(iter([b"x"])))  # pyright: ignore[reportArgumentType]


def test_large_file_needs_little_memory(tmp_path):
    line = json.dumps({"text": "a few words of a story " * 43}) + "\n"
    with open(tmp_path / "large.jsonl", "w") as file:
        for _ in range(50):
            file.write(line * (200_000_000 // len(line) // 50))
    with open(tmp_path / "large.txt", "w") as file:
        for _ in range(20):
            file.write("a few words of a story\n" * (40_000_000 // 23 // 20))
    code = """
import resource, sys
from glassformer.training.data.read_options import ReadOptions
from glassformer.training.data.sources import DocumentFiles
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = sum(len(d.text) for d in DocumentFiles(sys.argv[1:]))
print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    out = subprocess.run([sys.executable, "-c", code, *map(str, tmp_path.iterdir())], capture_output=True, check=True)
    characters, megabytes = map(int, out.stdout.split())
    assert characters > 230_000_000
    assert megabytes < 30

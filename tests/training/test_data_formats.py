"""Every file type has the documents that an independent reader finds, on disk, compressed, and through a pipe."""

import csv
import gzip
import io
import json
import os
import sys
import threading
import types
import zlib

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from mutate import run_mutations

from glassformer.errors import ConfigError, DataError
from glassformer.training.data import byte_streams, records
from glassformer.training.data.read_options import ReadOptions
from glassformer.training.data.seq2seq_examples import Seq2SeqFiles
from glassformer.training.data.sources import DocumentFiles

TEXTS = ["plain", 'comma, "quotes" and; semicolon', "line\r\nbreaks\n\nand\ttab", "Zoë 🎈 \u2028 中文", " spaces "] * 36
TEXTS = [f"{text} {i}" for i, text in enumerate(TEXTS)]
ROWS = [{"id": i, "text": text, "none": None} for i, text in enumerate(TEXTS)]


def texts(names, **options):
    return [d.text for d in DocumentFiles(names, ReadOptions(**options))]


def pretty(rows):
    return json.dumps(rows, indent=2, ensure_ascii=False).encode()


def delimited(delimiter):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def parquet(**options):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, **options)
    return file.getvalue()


def arrow(new_writer, table=None, **options):
    file, table = io.BytesIO(), table or pyarrow.Table.from_pylist(ROWS)
    with new_writer(file, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=50)
    return file.getvalue()


def feather():
    file = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


def typed_columns():
    """The texts as a dictionary column, a large string and a string view, of which the second is the text."""
    column = pyarrow.array(TEXTS)
    names = {"a": column.dictionary_encode(), "text": column.cast(pyarrow.large_string()), "b": column}
    return arrow(pyarrow.ipc.new_stream, pyarrow.table(names))


LINES = "".join(json.dumps(row, ensure_ascii=row["id"] % 2 == 0) + "\n" for row in ROWS).encode()
CONTENT = {
    "a.jsonl": LINES,
    "b.ndjson": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"),
    "lines.json": LINES,
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": pretty(ROWS),
    "objects.json": b"\n".join(pretty(row) for row in ROWS),
    "a.csv": delimited(","),
    "bom.csv": b"\xef\xbb\xbf" + delimited(","),
    "german.csv": delimited(";"),
    "tabs.csv": delimited("\t"),
    "a.parquet": parquet(row_group_size=37),
    "b.parquet": parquet(compression="zstd", use_dictionary=False, version="1.0"),
    "file.arrow": arrow(pyarrow.ipc.new_file),
    "stream.arrow": arrow(pyarrow.ipc.new_stream),
    "packed.arrow": arrow(pyarrow.ipc.new_stream, compression="lz4"),
    "types.arrow": typed_columns(),
    "a.feather": feather(),
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", CONTENT)
def test_documents_are_those_of_the_library_that_wrote_them(tmp_path, name, packed):
    (tmp_path / (name + packed)).write_bytes(PACK[packed](CONTENT[name]))
    files = DocumentFiles(tmp_path)
    assert [d.text for d in files] == TEXTS
    assert (files.skipped.counts, files.notes) == ({}, [])
    assert files.bytes_read == files.total_bytes
    assert [d.text for d in files] == TEXTS


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "a.parquet", "file.arrow", "stream.arrow"])
def test_standard_input_is_recognised_by_its_content(monkeypatch, tmp_path, name, packed):
    data = PACK[packed](CONTENT[name])
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    assert texts("-") == TEXTS
    (tmp_path / "corpus").write_bytes(data)  # as is a file without a type
    assert texts(tmp_path / "corpus") == TEXTS


@pytest.mark.parametrize("text", ["[1] a footnote\n", "[{]", "{not json}\n", "PARIS\n", '{"a": 1} and more\n', "[[x]]"])
def test_plain_text_on_standard_input_stays_text(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert texts("-") == [text]


def test_seq2seq_examples_from_records(tmp_path):
    rows = [{"source": f"s {i}", "target": f"t, {i}", "n": i} for i in range(100)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.csv").write_text("n,target,source\n" + "".join(f'{i},"t, {i}",s {i}\n' for i in range(100)))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress("\n".join(map(json.dumps, rows)).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    found = [(e.source, e.target) for e in Seq2SeqFiles(tmp_path)]
    assert found == [(row["source"], row["target"]) for row in rows] * 4
    with pytest.raises(ConfigError, match="separator is an option of task lm"):
        Seq2SeqFiles(tmp_path, ReadOptions(separator="x"))


def test_tsv_has_a_header_and_no_quotes(tmp_path):
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"Ha," he said.\n2\tone\ttwo\n\n3\t\n4\tlast\n')
    files = DocumentFiles(tmp_path)
    assert [(d.origin, d.text) for d in files] == [
        (f"{tmp_path}/a.tsv:2", '"Ha," he said.'),
        (f"{tmp_path}/a.tsv:6", "last"),
    ]
    assert files.skipped.counts == {"row of another length than the header": 1, "empty": 1}


def test_a_row_of_several_lines_is_named_after_its_first(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"one\ntwo"\nthree\n')
    origins = [document.origin.rpartition(":")[2] for document in DocumentFiles(tmp_path)]
    assert origins == ["2", "4"]


BROKEN = {
    "end.json": (b'[{"text": "a"}, {"text": "b"', ["a"], "not JSON", "end.json#2: "),
    "noend.json": (b'[{"text": "a"}', ["a"], "not JSON", "noend.json: the array has no end"),
    "comma.json": (b'[{"text": "a"},]', ["a"], "not JSON", "comma.json#1: a comma before the end"),
    "nocomma.json": (b'[{"text": "a"} {"text": "b"}]', ["a"], "not JSON", "nocomma.json#1: no comma or ]"),
    "after.json": (b'[{"text": "a"}] x', ["a"], "not JSON", "after.json: text after the end"),
    "deep.json": (b'[{"text": "a"},' + b"[" * 100_000, ["a"], "not JSON", "deep.json#2: it nests too deep"),
    "strings.json": (b'["x", {"text": "a"}, 12, 3.5e1]', ["a"], "not a JSON object", "strings.json#1: str"),
    "bytes.json": (b'[{"text": "a"}, {"text": "\xff"}]', [], "not UTF-8", "bytes.json: after byte 26"),
    "quote.csv": (b'text\na\n"b"c\nd\n', ["a"], "not CSV", "quote.csv: ',' expected after '\"'"),
    "open.csv": (b'text\na\n"b\nc\n', ["a"], "not CSV", "open.csv: unexpected end of data"),
    "bytes.csv": (b"text,n\na,1\nb\xff,2\nc,3\n", ["a", "c"], "not UTF-8", "bytes.csv:3"),
    "other.csv": (b"title,n\na,1\n", [], 'no field "text"', "other.csv: it has title, n; choose one with --text-field"),
    "twice.csv": (b"text,text\na,1\n", [], 'two fields "text"', "twice.csv: it has text, text"),
    "other.parquet": (parquet()[:-9], [], "broken Parquet", "other.parquet: "),
    "noparquet.parquet": (b"text", [], "broken Parquet", "noparquet.parquet: "),
    "noarrow.arrow": (b"ARROW1\0\0text", [], "broken Arrow", "noarrow.arrow: "),
    "end.txt.zst": (zstandard.compress(b"text" * 1000)[:-3], [], "broken zstd", "end.txt.zst: it ends inside"),
    "no.txt.zst": (b"text", [], "broken zstd", "no.txt.zst: "),
    "no.txt.gz": (b"text", [], "broken gzip", "no.txt.gz: Not a gzipped file"),
    "page.html": (b"<p>text</p>", [], "markup, not text", "page.html"),
    "empty.jsonl": (b"\n", [], "empty", "empty.jsonl"),
    "zero.parquet": (b"", [], "empty", "zero.parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_structured_files_are_reported_with_the_position(tmp_path, monkeypatch, name):
    data, good, reason, where = BROKEN[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.txt").write_text("good")
    files = DocumentFiles([name, "good.txt"])
    assert [d.text for d in files] == [*good, "good"]
    found = next(r for r in files.skipped.counts if r.startswith(reason))
    assert files.skipped.examples[found][0].startswith(where)
    with pytest.raises(DataError) as error:
        list(DocumentFiles([name, "good.txt"], strict=True))
    assert reason in str(error.value)


def test_values_of_tables_that_are_no_text(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, " ", "b"]}), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"\xff", b"x"]}), tmp_path / "b.parquet")
    invalid = pyarrow.array([b"ok", b"\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": invalid}), tmp_path / "c.parquet")
    files = DocumentFiles(tmp_path)
    assert [(d.origin.rpartition("/")[2], d.text) for d in files] == [
        ("a.parquet#1", "a"),
        ("a.parquet#4", "b"),
        ("c.parquet#1", "ok"),
    ]
    assert files.skipped.counts == {'"text" is not a string': 3, "empty": 1, "not UTF-8": 1}


def test_long_records_are_skipped_and_not_held(tmp_path, monkeypatch):
    for module in (byte_streams, records):
        monkeypatch.setattr(module, "MAX_RECORD", 100)
    monkeypatch.setattr(records, "BLOCK", 64)
    long, short = json.dumps({"text": "x" * 500}), json.dumps({"text": "short"})
    (tmp_path / "a.jsonl").write_text(f"{short}\n{long}\n{short}\n{long}")
    files = DocumentFiles(tmp_path / "a.jsonl")
    assert [d.origin.rpartition(":")[2] for d in files] == ["1", "3"]
    assert files.skipped.counts == {"longer than 64 MiB": 2}
    (tmp_path / "a.json").write_text(f"[{short}, {long}, {short}]")
    assert texts(tmp_path / "a.json") == ["short"]
    (tmp_path / "a.csv").write_text(f"text\nshort\n{'x' * 500}\nshort\n")
    assert texts(tmp_path / "a.csv") == ["short"]


class CountedFile(io.BytesIO):
    """A file that counts the bytes read from it and never returned to."""

    largest = 0

    def read(self, size=-1):
        assert size > 0, "everything is read at once"
        self.largest = max(self.largest, size)
        return super().read(size)


def test_json_arrays_and_zstd_are_read_in_parts():
    rows = [{"text": f"text {i} " * 50} for i in range(20_000)]
    raw = CountedFile(zstandard.compress(json.dumps(rows).encode()))
    found = records.read_json(byte_streams.OpenFile(raw, "a.json.zst", "utf-8"), ("text",), lambda *_: None)
    assert next(found)[1] == rows[0]
    assert raw.tell() < len(raw.getvalue()) / 2
    assert sum(1 for _ in found) == len(rows) - 1
    assert raw.largest <= 4096


def read_bombs(rng) -> None:
    packer = zlib.compressobj(9, wbits=31)
    data = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(300)) + packer.flush()
    zstd = zstandard.ZstdCompressor(19).compressobj()
    frame = b"".join(zstd.compress(b" " * (1 << 20)) for _ in range(300)) + zstd.flush()
    for bomb in (data, frame):
        text = byte_streams.OpenFile(io.BytesIO(bomb), "a", "utf-8").text()
        assert sum(len(block) for block in iter(lambda text=text: text.read(1 << 20), b"")) == 300 << 20


def test_a_compression_bomb_takes_little_memory():
    assert run_mutations(read_bombs, [0], memory_bytes=150 << 20) == []


# --- encodings


TEXT_OF = {
    "utf-16": "Zoë says: “hello” and 你好",
    "utf-16-le": "Zoe says hello to all",
    "utf-32": "Zoë says hello",
    "cp1252": "Zoë says: “café”, naïve",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "euc_jp": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "gb18030": "我们在这里学习，因为他说这是一个很好的地方。你和我都来了。",
    "big5": "我們在這裡學習，因為他說這是一個很好的地方。你和我都來了。",
    "euc_kr": "나는 학교에 가고 있다. 그는 이 책을 읽는다. 우리는 서울에서 사는 사람이다.",
    "cp1251": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "koi8_r": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "cp1253": "Η γλώσσα που μιλάμε και γράφουμε σήμερα είναι η ελληνική.",
}


@pytest.mark.parametrize("encoding", TEXT_OF)
def test_an_error_names_the_encoding_and_the_option_reads_it(tmp_path, encoding):
    text = TEXT_OF[encoding] * 3
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=rf"not UTF-8.*it looks like {encoding}: give --encoding {encoding}"):
        texts(tmp_path / "a.txt")
    assert texts(tmp_path / "a.txt", encoding=encoding) == [text]
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.jsonl").write_bytes(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in (text, "b")).encode(encoding)
    )
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(f'text\n"{text}"\n'.encode(encoding)))
    (tmp_path / "d.json").write_bytes(json.dumps([{"text": text}], ensure_ascii=False).encode(encoding))
    assert texts(tmp_path, encoding=encoding) == [text, "b", text, text]


def test_text_of_another_encoding_than_given(tmp_path):
    (tmp_path / "a.txt").write_bytes("Zoë".encode("cp1252"))
    with pytest.raises(DataError, match=r"1 not shift_jis \(.*a.txt: after byte 0: "):
        texts(tmp_path, encoding="shift-jis")
    (tmp_path / "b.jsonl").write_bytes(json.dumps({"text": "good"}).encode("utf-16") + b"\0")
    with pytest.raises(DataError, match=r"not utf-16 \(.*b.jsonl: after byte"):
        texts(tmp_path / "b.jsonl", encoding="utf-16")


@pytest.mark.parametrize("encoding", ["", "nothing", "base64", "unicode_escape", "idna", 8])
def test_encodings_of_no_text_raise_config_error(encoding):
    with pytest.raises(ConfigError, match="encoding must be"):
        ReadOptions(encoding=encoding)


# --- options


def test_ext_chooses_the_types_in_folders(tmp_path):
    for name, text in (("a.py", "x = 1"), ("b.txt", "text"), ("c.html", "<p>"), ("d.jsonl", '{"text": "record"}')):
        (tmp_path / name).write_text(text)
    assert texts(tmp_path) == ["text", "record"]
    assert texts(tmp_path, ext=("py", ".HTML")) == ["x = 1", "<p>"]
    assert texts(tmp_path, ext=(".jsonl",)) == ["record"]
    with pytest.raises(DataError, match=r"no files of the types \.rs \(also"):
        DocumentFiles(tmp_path, ReadOptions(ext=(".rs",)))
    for ext in ("", ".", "*.py", ".py,.md", "a/b"):
        with pytest.raises(ConfigError, match="ext must be a file type"):
            ReadOptions(ext=(ext,))


@pytest.mark.parametrize("options", [{"separator": ""}, {"text_field": ""}, {"text_field": None}, {"separator": b"x"}])
def test_options_that_match_nothing_raise_config_error(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ReadOptions(**options)


def test_notes_about_separators(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two<|endoftext|>three")
    files = DocumentFiles(tmp_path)
    assert len(list(files)) == 1
    assert files.notes == [
        "<|endoftext|> occurs 2 times and is ordinary text: give --separator '<|endoftext|>' to split documents at it"
    ]
    other = DocumentFiles(tmp_path, ReadOptions(separator="---"))
    assert len(list(other)) == 1
    assert other.notes == ["the separator '---' occurs in none of the plain text files"]


@pytest.mark.parametrize("module", ["zstandard", "pyarrow"])
def test_a_missing_extra_is_one_line(tmp_path, monkeypatch, module):
    name, data = ("a.txt.zst", zstandard.compress(b"x")) if module == "zstandard" else ("a.parquet", parquet())
    (tmp_path / name).write_bytes(data)
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"{name}: .* need the package {module}: pip install 'glassformer\[data\]'"):
        texts(tmp_path)


# --- pipes, links and names


def fed(path, data):
    """Write to a pipe from another thread, as another process would."""
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(data,), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("data", [LINES, gzip.compress(LINES), CONTENT["a.parquet"]], ids=["jsonl", "gz", "parquet"])
def test_a_named_pipe_is_read_once_and_iterated_twice(tmp_path, data):
    thread, said = fed(tmp_path / "p", data), []
    files = DocumentFiles(tmp_path / "p", announce=said.append)
    assert [d.text for d in files] == [d.text for d in files] == TEXTS
    assert files.total_bytes == files.bytes_read == len(data)
    assert said == [f"reading the pipe {tmp_path / 'p'}"]
    thread.join()


def test_pipes_of_a_process_substitution(tmp_path):
    ends = [os.pipe() for _ in range(2)]
    for number, (_, end) in enumerate(ends):
        os.write(end, f"source {number}\ttarget\n".encode())
        os.close(end)
    names = [f"/dev/fd/{end}" for end, _ in ends]
    assert [e.source for e in Seq2SeqFiles([*names, names[0]])] == ["source 0", "source 1"]
    for end, _ in ends:
        os.close(end)


def test_pipes_and_devices_in_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    (tmp_path / "a.txt").write_text("text")
    for given in (tmp_path, str(tmp_path / "*")):
        files = DocumentFiles(given)
        assert [d.text for d in files] == ["text"]
        assert files.skipped.counts == {"pipe or device, not a file": 1}
    with pytest.raises(DataError, match="/dev/full is a device or a socket"):
        DocumentFiles("/dev/full")


def test_links_and_folders_that_cannot_be_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d/closed").mkdir(parents=True)
    (tmp_path / "d/a.txt").write_text("text")
    (tmp_path / "d/b.txt").symlink_to("nowhere")
    (tmp_path / "d/loop").symlink_to("../d")
    (tmp_path / "d/same.txt").symlink_to("a.txt")
    listdir = os.listdir

    def closed(path):
        if path == "d/closed":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", closed)
    files = DocumentFiles("d")
    assert [d.origin for d in files] == ["d/a.txt"]
    assert files.skipped.examples == {
        "link that leads nowhere": ["d/b.txt"],
        "linked folder, not followed": ["d/loop"],
        "named twice": ["d/same.txt"],
        "folder not readable": ["d/closed: Permission denied"],
    }
    with pytest.raises(DataError, match=r"d/b\.txt is a link to nowhere, which does not exist"):
        DocumentFiles("d/b.txt")
    with pytest.raises(
        DataError, match=r"no files of the types .*: folder not readable \(d/closed: Permission denied\)"
    ):
        DocumentFiles("d/closed")
    with pytest.raises(DataError, match="a name of DATA is empty"):
        DocumentFiles("")
    for name in ("a\0b", "x" * 300):
        with pytest.raises(DataError, match="cannot be read"):
            DocumentFiles(name)


def test_a_file_that_disappears_is_skipped(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    files = DocumentFiles(tmp_path)
    (tmp_path / "a.txt").unlink()
    assert [d.text for d in files] == ["b.txt"]
    assert files.skipped.examples == {"not readable": [f"{tmp_path}/a.txt: No such file or directory"]}


def test_deep_folders_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    (tmp_path / "d/z.txt").write_text("above")
    with open("a.txt", "w") as file:
        file.write("below")
    os.chdir(tmp_path)
    assert texts("d") == ["above", "below"]
    while os.path.isdir("d"):  # a recursive removal would need as many calls inside each other
        os.rename("d", "old")
        if os.path.isdir("old/d"):
            os.rename("old/d", "d")
        for name in os.listdir("old"):
            os.remove(f"old/{name}")
        os.rmdir("old")


def test_names_and_keys_that_are_not_unicode_are_shown_escaped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in ((b"good\xff.txt", b"text"), (b"pic\xe9.png", b"x"), (b"bad\xff\n\x1b[31m.txt", b"\xff\xfe\xfd")):
        with open(name, "wb") as file:
            file.write(data)
    (tmp_path / "s.jsonl").write_text('{"\\ud83c": "x"}\n')
    files = DocumentFiles(".")
    assert [(d.origin, d.text) for d in files] == [("./good\\xff.txt", "text")]
    lines = files.skipped.lines()
    assert any("./bad\\xff\\n\\x1b[31m.txt: byte 0" in line for line in lines)
    assert "1 of another type (./pic\\xe9.png)" in lines
    assert any("s.jsonl:1: it has \\ud83c" in line for line in lines)
    assert json.dumps(files.skipped.as_json(), ensure_ascii=False).encode()
    with pytest.raises(DataError, match=r"no\\xff: there is no such file"):
        DocumentFiles("no\udcff")
    with pytest.raises(DataError) as error:
        texts("s.jsonl", text_field="\udcff")
    assert str(error.value).isprintable()

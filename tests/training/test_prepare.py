"""Test the preparation of shards: contents, held-out split, reuse and full disks."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glassformer.errors import DataError
from glassformer.training.data import prepare as module
from glassformer.training.data.held_out import choose_held_out
from glassformer.training.data.prepare import prepare
from glassformer.training.data.read_options import ReadOptions
from glassformer.training.data.shards import HELD_OUT, LEFT_OUT, TRAIN, DocumentIndex, Shards
from glassformer.training.data.sources import Document, DocumentFiles, Texts


class ByteTokenizer:
    """UTF-8 bytes as ids; 256 ends a text."""

    def __init__(self, vocab_size=257, eos_id: int | None = 256, add_bos=False):
        self.vocab_size, self.eos_id, self.bos_id, self.add_bos, self.calls = vocab_size, eos_id, 7, add_bos, 0

    def encode_batch(self, texts, *, bare=False):
        assert bare
        self.calls += 1
        return [list(t.encode()) for t in texts]

    def save(self, folder):
        (Path(folder) / "tokenizer.json").write_text(json.dumps([self.vocab_size, self.eos_id]))


def document_texts(view: DocumentIndex):
    return [bytes(i for i in view.document(d).tolist() if i < 256).decode() for d in range(view.n_documents)]


def stories(n, length=40):
    return [f"Story {i}: " + "é" * (length + i % 7) + "." for i in range(n)]


def test_tokens_documents_and_counts(tmp_path):
    documents = stories(200)
    shards = prepare(Texts(documents), ByteTokenizer(), tmp_path / "data", shard_tokens=1000)
    assert len(list((tmp_path / "data").glob("tokens-*.bin"))) == -(-shards.n_tokens // 1000) > 10
    train, aside = document_texts(shards.train), document_texts(shards.held_out)
    assert [d for d in documents if d in train] == train  # source order
    assert sorted(train + aside) == sorted(documents)
    assert 5 <= len(aside) <= 12
    assert shards.held_out.n_bytes == sum(len(d.encode()) for d in aside)
    assert shards.train.n_tokens == sum(len(d.encode()) + 1 for d in train)
    assert all(shards.train.document(d)[-1] == 256 for d in range(shards.train.n_documents))
    assert shards.index["train"]["documents"] == len(train)
    assert shards.index["duplicates"] == 0
    assert not list(tmp_path.glob(".*"))
    shards.verify()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "<u2"), (1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_dtype_is_chosen_by_the_vocabulary(tmp_path, vocab_size, dtype):
    shards = prepare(Texts(stories(20)), ByteTokenizer(vocab_size), tmp_path / "data")
    assert shards.index["dtype"] == dtype
    assert document_texts(shards.train)[0] in stories(20)


def test_ids_outside_the_vocabulary_raise_data_error(tmp_path):
    with pytest.raises(DataError, match="returned id 195, its vocab_size is 128"):
        prepare(Texts(stories(20)), ByteTokenizer(128, None), tmp_path / "data")


def test_tokens_around_a_document(tmp_path):
    none = prepare(Texts(stories(9)), ByteTokenizer(eos_id=None), tmp_path / "none")
    assert none.train.n_tokens == none.train.n_bytes
    assert not none.train.ends
    both = prepare(Texts(stories(9)), ByteTokenizer(add_bos=True), tmp_path / "both")
    assert both.train.begins
    assert both.bos_id == 7
    assert [both.train.document(0)[i] for i in (0, -1)] == [7, 256]
    assert both.train.n_tokens == both.train.n_bytes + 2 * both.train.n_documents


def test_long_documents_are_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr("glassformer.training.data.sources.CHUNK", 50)
    monkeypatch.setattr(module, "BATCH_CHARS", 170)
    documents = ["word " * n for n in range(1, 200, 9)]
    shards = prepare(Texts(documents), ByteTokenizer(add_bos=True), tmp_path / "data", held_out=0.0)
    assert [d.replace("\7", "") for d in document_texts(shards.train)] == documents
    assert shards.train.lengths.tolist() == [len(d) + 2 for d in documents]


# ---- held out


def test_split_depends_on_content_and_keeps_duplicates_together(tmp_path):
    documents = stories(150) + stories(150)[::3]
    one = prepare(Texts(documents), ByteTokenizer(), tmp_path / "one", held_out=0.2)
    two = prepare(Texts(documents[::-1]), ByteTokenizer(), tmp_path / "two", held_out=0.2)
    assert sorted(document_texts(one.held_out)) == sorted(document_texts(two.held_out))
    assert not set(document_texts(one.held_out)) & set(document_texts(one.train))
    assert one.index["duplicates"] == 50
    assert one.fingerprint != two.fingerprint


def test_share_cap_and_at_least_one():
    rng = np.random.default_rng(0)
    hashes, tokens = rng.integers(0, 2**63, 5000).astype(np.uint64), rng.integers(1, 100, 5000)
    for share in (0.01, 0.05, 0.3):
        assert 0.9 * share < tokens[choose_held_out(hashes, tokens, share, 10**9)].sum() / tokens.sum() <= share
    assert 900 < tokens[choose_held_out(hashes, tokens, 0.05, 1000)].sum() <= 1000
    grown = choose_held_out(np.append(hashes, hashes[:10] + 1), np.append(tokens, np.full(10, 50)), 0.05, 10**9)[:5000]
    before = choose_held_out(hashes, tokens, 0.05, 10**9)
    assert (grown & before).sum() > 0.95 * before.sum()
    few = choose_held_out(hashes[:6], np.array([50, 20, 30, 40, 60, 70]), 0.05, 10**9)
    assert few.tolist() == [False, True, False, False, False, False]  # none fits: the smallest
    large_first = np.array([10**6, *[10] * 99])
    assert not choose_held_out(np.arange(100, dtype=np.uint64), large_first, 0.05, 10**9)[0]


@pytest.mark.parametrize("size", [400, 300_000])
def test_one_document_holds_out_its_last_tenth(tmp_path, size):
    text = "".join(f"línea {i}\n" for i in range(size // 10))
    shards = prepare(Texts([text]), ByteTokenizer(), tmp_path / "data")
    [train], [aside] = document_texts(shards.train), document_texts(shards.held_out)
    assert train + aside == text
    assert train.endswith("\n")
    assert 0.04 < len(aside) / len(text) <= 0.101
    assert shards.held_out.n_bytes == len(aside.encode())
    assert shards.notes == ["1 document: its last 10% is held out, as a document of its own"]


def test_few_documents_hold_out_the_tail_of_each_without_duplicates(tmp_path):
    documents = ["吾輩は猫である" * 50, "ab" * 100, "吾輩は猫である" * 50]
    shards = prepare(Texts(documents), ByteTokenizer(), tmp_path / "data")
    train, aside = document_texts(shards.train), document_texts(shards.held_out)
    assert [a + b for a, b in zip(train, aside, strict=True)] == documents[:2]
    assert all(0.07 < len(b) / len(d) < 0.11 for b, d in zip(aside, documents, strict=False))
    assert shards.notes[1] == "excluded: 1 duplicate of these documents"
    assert "2 documents" in shards.notes[0]


def test_share_and_cap_of_tails(tmp_path):
    text = "ab " * 1000
    more = prepare(Texts([text]), ByteTokenizer(), tmp_path / "more", held_out=0.3)
    assert 850 < more.held_out.n_bytes <= 900
    capped = prepare(Texts([text]), ByteTokenizer(), tmp_path / "capped", held_out_tokens=40)
    assert 0 < capped.held_out.n_bytes <= 40
    assert capped.notes == ["1 document: its last 1.33% is held out, as a document of its own"]


def test_file_options_with_documents_raise_data_error(tmp_path):
    with pytest.raises(DataError, match="give them to DocumentFiles"):
        prepare(Texts(["a"]), ByteTokenizer(), tmp_path / "data", read=ReadOptions(separator="x"))


def test_four_and_five_documents(tmp_path):
    four = prepare(Texts(stories(4)), ByteTokenizer(), tmp_path / "four")
    five = prepare(Texts(stories(5)), ByteTokenizer(), tmp_path / "five")
    assert four.held_out.n_documents == 4 == four.train.n_documents
    assert five.held_out.n_documents == 1
    assert sorted(document_texts(five.train) + document_texts(five.held_out)) == stories(5)
    assert five.notes == []


def test_held_out_given(tmp_path):
    shards = prepare(Texts(stories(20)), ByteTokenizer(), tmp_path / "data",
                     held_out_sources=Texts(["aside", stories(20)[3]]))  # fmt: skip
    assert document_texts(shards.held_out) == ["aside", stories(20)[3]]
    assert document_texts(shards.train) == [s for i, s in enumerate(stories(20)) if i != 3]
    assert shards.index["left_out"]["documents"] == 1
    assert "excluded: 1 training document equal" in shards.notes[0]
    assert set(np.load(tmp_path / "data/documents.npy")["side"]) == {TRAIN, HELD_OUT, LEFT_OUT}


def test_no_training_document_raises_data_error(tmp_path):
    assert prepare(Texts(["abc"]), ByteTokenizer(), tmp_path / "a", held_out=0.0).held_out.n_documents == 0
    with pytest.raises(DataError, match="there is no training document: excluded: 1 training document equal"):
        prepare(Texts(["abc"]), ByteTokenizer(), tmp_path / "b", held_out_sources=Texts(["abc"]))
    with pytest.raises(DataError, match="there is no training document: the data has no documents"):
        prepare(Texts([]), ByteTokenizer(), tmp_path / "b")
    with pytest.raises(DataError, match=r"held_out must be from 0 to 0.5, got 5.0"):
        prepare(Texts(["abc"]), ByteTokenizer(), tmp_path / "b", held_out=5.0)
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob(".*"))


# ---- reuse


def test_same_data_is_reused_and_other_data_raises_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": s}) + "\n" for s in stories(30)))
    out = tmp_path / "data"
    tokenizer = ByteTokenizer()
    first = prepare(path, tokenizer, out)
    before, calls = (out / "index.json").stat().st_ino, tokenizer.calls
    again = prepare([str(path)], tokenizer, out)
    assert again.fingerprint == first.fingerprint
    assert tokenizer.calls == calls
    once = prepare(iter(DocumentFiles(path)), tokenizer, out)  # goes by only once: tokenized, found the same, dropped
    assert once.fingerprint == first.fingerprint
    assert tokenizer.calls > calls
    assert (out / "index.json").stat().st_ino == before

    for change, message in (({"held_out": 0.1}, "options"), ({"ordered": True}, "options")):
        with pytest.raises(DataError, match=message):
            prepare(path, tokenizer, out, **change)
    with pytest.raises(DataError, match="another tokenizer"):
        prepare(path, ByteTokenizer(300), out)
    path.write_text(path.read_text().replace("Story 3:", "Story 8:"))
    for source in (path, iter(DocumentFiles(path))):
        with pytest.raises(DataError, match="other documents"):
            prepare(source, tokenizer, out)
    other = prepare(path, tokenizer, out, rebuild=True)
    assert other.fingerprint != first.fingerprint
    assert not list(tmp_path.glob(".*"))
    assert document_texts(other.train).count(stories(30)[8]) == 1


def test_fingerprint_depends_on_boundaries_sides_and_tokenizer(tmp_path):
    made = [
        prepare(Texts(["ab", "c"]), ByteTokenizer(), tmp_path / "1", held_out=0.0),
        prepare(Texts(["a", "bc"]), ByteTokenizer(), tmp_path / "2", held_out=0.0),
        prepare(Texts(["ab"]), ByteTokenizer(), tmp_path / "3", held_out_sources=Texts(["c"])),
        prepare(Texts(["ab", "c"]), ByteTokenizer(add_bos=True), tmp_path / "4", held_out=0.0),
        prepare(Texts(["ab", "c"]), ByteTokenizer(), tmp_path / "7", held_out_sources=Texts(["d"])),
        prepare(Texts(["ab"]), ByteTokenizer(), tmp_path / "8", held_out_sources=Texts(["c", "d"])),
        prepare(Texts(["ab", "c"]), ByteTokenizer(300), tmp_path / "5", held_out=0.0),
    ]
    assert len({s.fingerprint for s in made}) == len(made)
    same = prepare([Document("a", "x", False), Document("b", "x"), Document("c", "y")], ByteTokenizer(), tmp_path / "6",
                   held_out=0.0)  # fmt: skip
    assert same.fingerprint == made[0].fingerprint


def test_other_folder_is_never_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    prepare(Texts(stories(9)), ByteTokenizer(), tmp_path / "mine")  # an empty folder is no obstacle
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"x")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        for rebuild in (False, True):
            with pytest.raises(DataError, match="holds other files"):
                prepare(Texts(stories(9)), ByteTokenizer(), tmp_path / name, rebuild=rebuild)
    assert (tmp_path / "photos/a.png").exists()


def test_strings_instead_of_documents_raise_data_error(tmp_path):
    with pytest.raises(DataError, match=r"got str: use Texts"):
        prepare(iter(["abc"]), ByteTokenizer(), tmp_path / "data")  # pyright: ignore[reportArgumentType]


def test_skipped_notes_and_progress(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in stories(30)) + "{broken\n")
    (tmp_path / "b.txt").write_bytes(b"one\r\ntwo\r\n")
    told = []
    shards = prepare([tmp_path / "a.jsonl", tmp_path / "b.txt"], ByteTokenizer(), tmp_path / "data",
                     progress=lambda *x: told.append(x))  # fmt: skip
    assert shards.skipped["not JSON"]["count"] == 1
    assert "a.jsonl:31" in shards.skipped["not JSON"]["examples"][0]
    assert shards.notes == ["CRLF was replaced by LF in 1 file"]
    size = (tmp_path / "a.jsonl").stat().st_size + 10
    assert told[-1] == (size, size, "tokenizing")
    with pytest.raises(DataError, match=r"a.jsonl:31.*not JSON"):
        prepare(tmp_path / "a.jsonl", ByteTokenizer(), tmp_path / "strict", strict=True)


# ---- what goes wrong while writing


def test_full_disk_raises_data_error_and_leaves_no_files(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in stories(30_000)))
    calls = 0

    def full(self, tokens):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, tokens)

    write = module.ShardWriter._write
    monkeypatch.setattr(module.ShardWriter, "_write", full)
    with pytest.raises(DataError, match=r"data: No space left on device: .* MB of shards were written, about 6\.\d MB"):
        prepare(tmp_path / "a.jsonl", ByteTokenizer(), tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


FILL = """
import resource, signal, sys
sys.path[:0] = sys.argv[1:3]
from test_prepare import ByteTokenizer, stories
from glassformer.errors import DataError
from glassformer.training.data.prepare import prepare
from glassformer.training.data.read_options import ReadOptions
from glassformer.training.data.sources import Texts
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    prepare(Texts(stories(5000)), ByteTokenizer(), sys.argv[3])
except DataError as error:
    print("DataError:", error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on the size of files")
def test_file_size_limit_raises_data_error(tmp_path):
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", FILL, str(Path(__file__).parent), str(root), str(tmp_path / "data")],
                         capture_output=True, text=True)  # fmt: skip
    assert out.stdout.startswith(f"DataError: {tmp_path / 'data'}: File too large"), out.stdout + out.stderr
    assert not list(tmp_path.iterdir())


def test_failed_save_removes_the_temporary_folder(tmp_path):
    def broken():
        yield from stories(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(Texts(broken), ByteTokenizer(), tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".data.partial-{dead.pid}").mkdir()
    (tmp_path / f".data.old-{dead.pid}").mkdir()
    (tmp_path / f".data.partial-{os.getppid()}").mkdir()  # somebody is at work there
    (tmp_path / ".data.partial-x").mkdir()
    prepare(Texts(stories(9)), ByteTokenizer(), tmp_path / "data")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(["data", f".data.partial-{os.getppid()}", ".data.partial-x"])


def test_opening_twice_gives_the_same_stream(tmp_path):
    made = prepare(Texts(stories(50)), ByteTokenizer(), tmp_path / "data", ordered=True)
    opened = Shards(tmp_path / "data")
    assert document_texts(made.train) == document_texts(opened.train)
    assert opened.train.ordered
    assert made.fingerprint == opened.fingerprint == opened.train.fingerprint

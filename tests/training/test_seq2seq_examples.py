"""Test reading and tokenizing of examples, and batches: padding, order, ranks and resumption."""

import gzip
import io
import json
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import DataError
from glassformer.training.data.packing import IGNORE
from glassformer.training.data.seq2seq_batches import PAD, Seq2SeqLoader, make_batch, seq2seq_eval_batches
from glassformer.training.data.seq2seq_examples import Seq2SeqExample, Seq2SeqExamples, Seq2SeqFiles, tokenize_examples

BOS, EOS = 1, 2
ORDER = [[6, 10, 7, 5], [0, 9, 4, 2], [3, 1, 8, 11], [3, 4, 2, 11]]


class Letters:
    """One token a character, by its code; "_" is no token at all."""

    vocab_size, eos_id = 128, EOS
    bos_id: int | None = BOS

    def encode_batch(self, texts, *, bare=False):
        assert bare
        return [[ord(c) for c in text if c != "_"] for text in texts]

    def save(self, folder, /): ...


class Endless(Letters):
    eos_id = None


def make(lengths) -> Seq2SeqExamples:
    """Pairs with sources and targets of these lengths, each of a letter of its own."""
    pairs = [Seq2SeqExample(chr(33 + i % 90) * s, chr(33 + i % 90) * t) for i, (s, t) in enumerate(lengths)]
    return tokenize_examples(pairs, Letters(), context=10_000)


def many(n=1000) -> Seq2SeqExamples:
    """Sources and targets of 1 to 60 tokens; each source is unlike all others."""
    rng = np.random.default_rng(0)
    pairs = [Seq2SeqExample(f"{i} " + "x" * int(rng.integers(60)), "y" * int(rng.integers(1, 60))) for i in range(n)]
    return tokenize_examples(pairs, Letters(), context=100)


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*names, **options):
    return [(p.origin, p.source, p.target) for p in Seq2SeqFiles(names, **options)]


def test_import_needs_no_torch_for_examples():
    program = "import sys, glassformer.training.data.seq2seq_examples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_folders_and_kinds(data_dir):
    (data_dir / "d").mkdir()
    (data_dir / "d/a.tsv").write_bytes("\ufeffone\t1\r\n\r\nzwölf \t12".encode())
    (data_dir / "d/b.jsonl").write_text(
        '{"source": "tab\\there", "target": "3", "n": 1}\n\n{"source": "4", "target": "4"}\n'
    )
    (data_dir / "d/c.csv").write_text("five,5\n")
    (data_dir / "e.txt.gz").write_bytes(gzip.compress(b"six\t6\n"))
    files = Seq2SeqFiles(["d", "e.txt.gz"])
    expected = [("d/a.tsv:1", "one", "1"), ("d/a.tsv:3", "zwölf ", "12"), ("d/b.jsonl:1", "tab\there", "3"),
                ("d/b.jsonl:3", "4", "4"), ("e.txt.gz:1", "six", "6")]  # fmt: skip
    assert [(p.origin, p.source, p.target) for p in files] == expected
    assert files.skipped.counts == {'no field "source"': 1}
    assert files.skipped.examples['no field "source"'] == ["d/c.csv: it has five, 5"]
    assert files.bytes_read == files.total_bytes


@pytest.mark.parametrize(
    "data", [b"one\t1\ntwo\t2\n", b'{"source": "one", "target": "1"}\n{"source":"two","target":"2"}']
)
def test_standard_input(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    assert read("-") == [("standard input:1", "one", "1"), ("standard input:2", "two", "2")]


BAD = {
    "a.tsv": (b"good\t1\nno target\n", "no tab between source and target", "a.tsv:2"),
    "b.tsv": (b"good\t1\n\n\t3\n", "empty source", "b.tsv:3"),
    "c.tsv": (b"good\t1\ntwo\t \r\n", "empty target", "c.tsv:2"),
    "d.tsv": (b"good\t1\n\t\n", "empty source", "d.tsv:2"),
    "e.tsv": (b"good\t1\na\tb\tc\n", "more than two columns", "e.tsv:2: it has 3"),
    "f.tsv": (b"good\t1\ncaf\xe9\tx\n", "not UTF-8", "f.tsv:2: byte 10"),
    "a.jsonl": (
        b'{"source": "good", "target": "1"}\n{"source": "x"}\n',
        'no field "target"',
        "a.jsonl:2: it has source",
    ),
    "b.jsonl": (
        b'{"source": "good", "target": "1"}\n{"target": "x"}\n',
        'no field "source"',
        "b.jsonl:2: it has target",
    ),
    "c.jsonl": (b'{"source": "x", "target": 5}\n', '"target" is not a string', "c.jsonl:1: int"),
    "d.jsonl": (b'{"source": "", "target": "x"}\n', "empty source", "d.jsonl:1"),
    "e.jsonl": (b'{"source": "x", "target": "half\n', "not JSON", "e.jsonl:1"),
    "f.jsonl": (b'["x", "y"]\n', "not a JSON object", "f.jsonl:1: list"),
    "g.jsonl": (b'{"source": "\\ud800", "target": "y"}\n', "unpaired surrogate (not a character)", "g.jsonl:1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_skipped_or_raise_error(data_dir, name):
    data, reason, where = BAD[name]
    (data_dir / name).write_bytes(data)
    (data_dir / "other.tsv").write_text("other\t2\n")
    files = Seq2SeqFiles([name, "other.tsv"])
    assert {(p.source, p.target) for p in files} <= {("good", "1"), ("other", "2")}
    assert files.skipped.counts == {reason: 1}
    assert files.skipped.examples[reason][0].startswith(where)
    with pytest.raises(DataError) as error:
        read(name, "other.tsv", strict=True)
    assert where in str(error.value)
    assert reason in str(error.value)


def test_no_examples_raises_data_error_with_reason(data_dir):
    (data_dir / "a.tsv").write_text("one,1\ntwo,2\n")
    with pytest.raises(DataError, match=r"no example could be read from a.tsv: 2 no tab .*\(a.tsv:1, a.tsv:2\)"):
        read("a.tsv")
    (data_dir / "d").mkdir()
    with pytest.raises(DataError, match=r"have no files of the types \.tsv \.jsonl"):
        Seq2SeqFiles("d")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_too_long_examples_are_skipped_or_raise_error(data_dir):
    (data_dir / "a.tsv").write_text("abcd\tabc\nabcde\ta\nabc\tabcd\n__\tx\nx\t\n")
    pairs = tokenize_examples(Seq2SeqFiles("a.tsv"), Letters(), context=4)
    assert [len(pairs), pairs.source.sequence(0).tolist(), pairs.target.sequence(0).tolist()] == [
        1, [97, 98, 99, 100], [97, 98, 99]]  # fmt: skip
    assert pairs.skipped.examples == {
        "empty target": ["a.tsv:5"], "source of more than 4 tokens": ["a.tsv:2: 5 tokens"],
        "target of more than 3 tokens": ["a.tsv:3: 4 tokens"], "source without tokens": ["a.tsv:4: 0 tokens"],
    }  # fmt: skip
    with pytest.raises(DataError, match=r"a\.tsv:2: source of more than 4 tokens: 5 tokens"):
        tokenize_examples(Seq2SeqFiles("a.tsv"), Letters(), context=4, strict=True)
    with pytest.raises(
        DataError, match=r"there are no usable examples: 1 empty target .*; 3 source of more than 2 tokens"
    ):
        tokenize_examples(Seq2SeqFiles("a.tsv"), Letters(), context=2)


def test_tokenizer_that_does_not_fit_raises_data_error():
    tokenizer = Letters()
    tokenizer.vocab_size = 100
    with pytest.raises(DataError, match="returned id 120, outside its vocab_size of 100"):
        tokenize_examples([Seq2SeqExample("x", "a")], tokenizer, context=4)
    with pytest.raises(DataError, match="eos_token"):
        tokenize_examples([Seq2SeqExample("x", "a")], Endless(), context=4)
    with pytest.raises(DataError, match="context must be at least 2"):
        tokenize_examples([Seq2SeqExample("x", "a")], Letters(), context=1)


def test_eos_id_starts_targets_without_bos_id():
    tokenizer = Letters()
    tokenizer.bos_id = None
    pairs = tokenize_examples([Seq2SeqExample("x", "a")], tokenizer, context=4)
    assert make_batch(pairs, np.array([0])).inputs.tolist() == [[EOS, ord("a")]]


def test_memory_equals_the_documented_size():
    pairs = many(1000)
    tokens = len(pairs.source.tokens) + len(pairs.target.tokens)
    assert sum(part.nbytes for part in (*pairs.source, *pairs.target)) == 4 * tokens + 24 * len(pairs)
    assert pairs.select(np.arange(10)).source.tokens is pairs.source.tokens


def test_held_out_sources_do_not_occur_in_training():
    pairs = [Seq2SeqExample(f"s{i % 300}", f"t{i}") for i in range(1000)]  # each source comes three or four times
    whole = tokenize_examples(pairs, Letters(), context=20)
    train, aside = whole.hold_out(0.1)
    sources = [{bytes(p.source.sequence(i).astype(np.uint8)) for i in range(len(p))} for p in (train, aside)]
    assert not sources[0] & sources[1]
    assert len(train) + len(aside) == 1000
    assert 80 <= len(aside) <= 100
    assert len(whole.hold_out(0.1, 20)[1]) <= 20
    more = tokenize_examples(
        [*pairs, *(Seq2SeqExample(f"n{i}", "t") for i in range(100))], Letters(), context=20
    ).hold_out(0.1)[1]
    stay = {bytes(more.source.sequence(i).astype(np.uint8)) for i in range(len(more))} & sources[1]
    assert len(stay) > 0.8 * len(sources[1])
    with pytest.raises(DataError, match="all sources are equal"):
        tokenize_examples([Seq2SeqExample("a", "b")] * 3, Letters(), context=4).hold_out()
    with pytest.raises(DataError, match=r"above 0 and at most 0\.5"):
        whole.hold_out(0)


def test_fingerprint_depends_on_the_examples():
    one = tokenize_examples([Seq2SeqExample("ab", "c"), Seq2SeqExample("d", "e")], Letters(), context=9)
    same = tokenize_examples([Seq2SeqExample("ab", "c", "x:1"), Seq2SeqExample("d", "e")], Letters(), context=9)
    moved = tokenize_examples([Seq2SeqExample("a", "c"), Seq2SeqExample("bd", "e")], Letters(), context=9)
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, moved.fingerprint, one.select(np.array([1, 0])).fingerprint}) == 3


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batch_holds_its_examples():
    pairs = tokenize_examples([Seq2SeqExample("abc", "x"), Seq2SeqExample("d", "yz")], Letters(), context=9)
    batch = make_batch(pairs, np.array([1, 0, -1]))
    a, b, c, d, x, y, z = (ord(letter) for letter in "abcdxyz")
    assert batch.source.tolist() == [[d, PAD, PAD], [a, b, c], [a, b, c]]
    assert batch.source_lengths.tolist() == [1, 3, 3]
    assert batch.inputs.tolist() == [[BOS, y, z], [BOS, x, PAD], [BOS, x, PAD]]
    assert batch.targets.tolist() == [[y, z, EOS], [x, EOS, IGNORE], [IGNORE] * 3]
    assert batch.indices.tolist() == [1, 0, -1]
    assert batch.tokens == 5
    assert batch.padding == 1 - (7 + 5) / 18
    assert all(value.dtype == torch.int64 for value in vars(batch.to("cpu")).values() if torch.is_tensor(value))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=40), st.data())
def test_batches_equal_the_examples(lengths, data):
    pairs = make(lengths)
    numbers = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    batch = make_batch(pairs, np.array(numbers))
    for row, number in enumerate(numbers):
        source, target = pairs.source.sequence(number).tolist(), pairs.target.sequence(number).tolist()
        assert batch.source[row, : batch.source_lengths[row]].tolist() == source
        assert [i for i in batch.targets[row].tolist() if i != IGNORE] == [*target, EOS]
        assert batch.inputs[row, : len(target) + 1].tolist() == [BOS, *target]
    assert batch.source.shape[1] == max(lengths[n][0] for n in numbers)
    assert batch.targets.shape[1] == max(lengths[n][1] for n in numbers) + 1
    assert batch.tokens == sum(lengths[n][1] + 1 for n in numbers)


@given(st.integers(1, 60), st.data())
def test_each_epoch_has_each_example_once(n, data):
    pairs, batch = make([(i % 7 + 1, i % 5 + 1) for i in range(n)]), data.draw(st.integers(1, n))
    loader = Seq2SeqLoader(pairs, batch, seed=data.draw(st.integers(0, 9)))
    numbers = []
    while len(numbers) < 3 * n:
        given_out = loader.next().indices.tolist()
        assert len(given_out) == batch
        numbers += given_out
    assert loader.taken == len(numbers)
    assert loader.epoch == len(numbers) // n
    assert all(sorted(numbers[e * n : (e + 1) * n]) == list(range(n)) for e in range(3))


def test_epochs_differ_and_are_a_function_of_the_seed():
    pairs = many(400)

    def epochs(seed):
        loader = Seq2SeqLoader(pairs, 20, seed)
        return [tuple(loader.next().indices.tolist()) for _ in range(60)]

    first = epochs(3)
    assert first == epochs(3)
    assert first != epochs(4)
    assert len({frozenset(batch) for batch in first}) == 60  # not only the batches' order changes
    assert first[:20] != first[20:40]


def test_permutation_has_fixed_values():
    loader = Seq2SeqLoader(make([(i % 4 + 1, i % 3 + 1) for i in range(12)]), 4, seed=0)
    assert [loader.next().indices.tolist() for _ in range(4)] == ORDER


def test_similar_lengths_share_a_batch():
    pairs, batch = many(4000), 16

    def padding(batches):
        batches = list(batches)
        cells = [b.source.numel() + b.targets.numel() for b in batches]
        return sum(b.padding * n for b, n in zip(batches, cells, strict=True)) / sum(cells)

    loader = Seq2SeqLoader(pairs, batch, seed=0)
    sorted_in_pools = padding(loader.next() for _ in range(250))
    in_any_order = padding(make_batch(pairs, np.arange(at, at + batch)) for at in range(0, 4000, batch))
    assert in_any_order > 0.4
    assert sorted_in_pools < 0.13
    sizes = [loader.next().source.shape[1] for _ in range(100)]
    assert abs(np.corrcoef(sizes[:-1], sizes[1:])[0, 1]) < 0.3  # long and short batches come mixed


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_the_batches_of_one_process(world):
    pairs = many(100)
    one, ranks = Seq2SeqLoader(pairs, 12, 5), [Seq2SeqLoader(pairs, 12, 5, rank, world) for rank in range(world)]
    for _ in range(30):
        whole, parts = one.next(), [loader.next() for loader in ranks]
        assert all(len(part.indices) == 12 // world for part in parts)
        assert torch.stack([part.indices for part in parts], 1).flatten().tolist() == whole.indices.tolist()
        assert sum(part.tokens for part in parts) == whole.tokens


@pytest.mark.parametrize("taken", [0, 3, 7, 8, 25])
def test_resumed_loader_equals_uninterrupted(taken):
    pairs = many(100)
    loader = Seq2SeqLoader(pairs, 13, seed=2)
    for _ in range(taken):
        loader.next()
    again = Seq2SeqLoader(many(100), 13, seed=2)
    again.load_state(json.loads(json.dumps(loader.state())))
    for _ in range(20):
        a, b = loader.next(), again.next()
        assert all(torch.equal(x, getattr(b, name)) for name, x in vars(a).items() if torch.is_tensor(x))
    assert again.epochs == loader.epochs == (taken + 20) * 13 / 100


@pytest.mark.parametrize(
    ("change", "key"), [({"seed": 3}, "seed"), ({"batch": 5}, "batch"), ({"n": 101}, "fingerprint")]
)
def test_state_of_other_data_raises_data_error(change, key):
    def loader(n=100, batch=10, seed=2):
        return Seq2SeqLoader(many(n), batch, seed)

    with pytest.raises(DataError, match=key):
        loader(**change).load_state(loader().state())


def test_invalid_batch_raises_data_error():
    with pytest.raises(DataError, match=r"too few examples: 10, and a batch has 12: lower batch to at most 10"):
        Seq2SeqLoader(many(10), 12, 0)
    with pytest.raises(DataError, match="lower batch to at most 8"):
        Seq2SeqLoader(many(10), 12, 0, 0, 4)
    for batch, rank, world in ((0, 0, 1), (10, 0, 3), (10, 2, 2)):
        with pytest.raises(DataError, match="cannot be divided"):
            Seq2SeqLoader(many(10), batch, 0, rank, world)
        with pytest.raises(DataError, match="cannot be divided"):
            next(seq2seq_eval_batches(many(10), batch, rank=rank, world_size=world))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_has_each_example_once_in_order_of_length(world):
    pairs = many(50)
    ranks = [list(seq2seq_eval_batches(pairs, 12, rank=rank, world_size=world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {5}
    numbers = [n for batches in ranks for b in batches for n in b.indices.tolist()]
    assert sorted(n for n in numbers if n >= 0) == list(range(50))
    assert len(numbers) == (50 if world == 1 else 60)
    assert sum(b.tokens for batches in ranks for b in batches) == int(pairs.target.lengths.sum()) + 50
    lengths = [int(b.source_lengths.max()) for b in ranks[0][:4]]
    assert lengths == sorted(lengths)

"""Test that `check_examples` reports the same counts as training, with duplicates and ambiguous sources."""

import json
from collections import Counter

import pytest
from tiny_runs import memory_folder
from tiny_seq2seq import seq2seq_config, some_examples

from glassformer.errors import DataError
from glassformer.text.files.load import load_tokenizer
from glassformer.text.train import train_tokenizer
from glassformer.training.config import TokenizerConfig
from glassformer.training.data.check_examples import check_examples
from glassformer.training.run.train import train

FAULTS = ["no tab", "\tno source", "no target\t", "a\tb\tc", "x" * 17 + "\ty", "y\t" + "x" * 16]


@pytest.fixture
def tmp_path():
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def file(tmp_path):
    """80 examples, then each fault, a duplicate of line 3, and a second target for the source of line 5."""
    examples = some_examples()
    lines = [f"{e.source}\t{e.target}" for e in examples]
    path = tmp_path / "p.tsv"
    path.write_text("\n".join([*lines, *FAULTS, lines[2], f"{examples[4].source}\tother"]) + "\n")
    return path


def test_report_equals_what_training_records(tmp_path, file):
    """The counts, reasons and origins equal those that a run with the same options records."""
    train(seq2seq_config(tmp_path / "run", data=(str(file),), tokenizer=TokenizerConfig(), steps=1))
    report = check_examples(file, load_tokenizer(tmp_path / "run" / "tokenizer"), context=16, held_out=0.1)
    recorded = json.loads((tmp_path / "run" / "data" / "pairs.json").read_text())
    assert (report.train, report.held_out, report.skipped) == (
        recorded["train"],
        recorded["held_out"],
        recorded["left_out"],
    )
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["plan"]["steps"] == 1
    assert report.skipped == {
        "no tab between source and target": {"count": 1, "examples": [f"{file}:81"]},
        "empty source": {"count": 1, "examples": [f"{file}:82"]},
        "empty target": {"count": 1, "examples": [f"{file}:83"]},
        "more than two columns": {"count": 1, "examples": [f"{file}:84: it has 3"]},
        "source of more than 16 tokens": {"count": 1, "examples": [f"{file}:85: 17 tokens"]},
        "target of more than 15 tokens": {"count": 1, "examples": [f"{file}:86: 16 tokens"]},
    }
    assert report.examples == 84
    assert report.train + report.held_out == 82


def test_counts_equal_a_reference_count(file):
    report = check_examples(file, context=16)
    pairs = [line.split("\t") for line in file.read_text().split("\n") if line.count("\t") == 1]
    pairs = [(s, t) for s, t in pairs if s and t]
    assert report.examples == len(pairs)
    assert report.duplicates == len(pairs) - len(set(pairs)) >= 1
    assert report.ambiguous == sum(n > 1 for n in Counter(s for s, _ in set(pairs)).values()) >= 1
    assert report.duplicate is not None
    later, first = report.duplicate.split(" = ")
    assert line_of(file, later) == line_of(file, first)
    later, first = report.ambiguity.removesuffix(" have the same source").split(" and ")
    a, b = (line_of(file, origin).split("\t") for origin in (later, first))
    assert (a[0] == b[0], a[1] == b[1]) == (True, False)
    for side, texts in ((report.source, [s for s, _ in pairs]), (report.target, [t for _, t in pairs])):
        lengths = sorted(map(len, texts))
        assert side.characters_each == (lengths[0], lengths[(len(lengths) - 1) // 2], lengths[-1])
        assert side.bytes == sum(lengths)
    assert (report.source.limit, report.target.limit) == (16, 15)


def line_of(file, origin):
    return file.read_text().split("\n")[int(origin.rsplit(":", 1)[1]) - 1]


def test_without_a_tokenizer_characters_count_as_tokens(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text("Grüße  aus\t🦊 x\nthe <|endoftext|>\t1\n第三月\té\n")
    made = train_tokenizer([path.read_text()], kind="char", vocab_size=100)
    plain, counted = check_examples(path, held_out=0), check_examples(path, made, held_out=0)
    assert plain.source.tokens_each == counted.source.tokens_each == (3, 10, 17)
    assert plain.target.tokens_each == counted.target.tokens_each == (1, 1, 3)
    assert plain.train_targets == counted.train_targets == 3 + 1 + 1 + 3
    assert (plain.held_out, counted.unknown) == (0, 0)
    assert counted.source.bytes == sum(len(s.encode()) for s in ("Grüße  aus", "the <|endoftext|>", "第三月"))


def test_examples_with_unknown_characters_are_counted(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text("abc\tcba\naxc\tc\nab\tbx\nb\tc\n")
    tokenizer = train_tokenizer(["abc"], kind="char", vocab_size=50)
    report = check_examples(path, tokenizer, held_out=0)
    assert report.unknown == 2
    assert "2 examples with text that the tokenizer has no token for" in report.render()


def test_rendered_report(tmp_path, file):
    text = check_examples(file, context=16, source_context=17).render()
    assert "examples     84, of which 83 are usable\n" in text
    assert "limit 17\n" in text
    assert f"skipped      1 no tab between source and target ({file}:81)\n" in text
    assert "source of more" not in text
    assert text.split("\n")[-3].startswith(f"{file}:1: '")
    assert "ambiguous    1, e.g. " in text
    tokenizer = train_tokenizer(["ab"], kind="char", vocab_size=50)
    (tmp_path / "q.jsonl").write_text('{"source": "ab", "target": "b a"}\n')
    shown = check_examples(tmp_path / "q.jsonl", tokenizer, held_out=0).render()
    assert f"{tmp_path / 'q.jsonl'}:1: a|b -> b|" in shown
    assert "skipped      nothing" in shown
    json.dumps(vars(check_examples(file)), default=vars)


def test_unusable_examples_raise_data_error(tmp_path, file):
    with pytest.raises(DataError, match=r"p.tsv:81: no tab"):
        check_examples(file, strict=True)
    good = tmp_path / "good.tsv"
    good.write_text("a\tb\n" + "x" * 9 + "\ty\n")
    with pytest.raises(DataError, match=r"good.tsv:2: source of more than 8 tokens: 9 tokens"):
        check_examples(good, context=8, strict=True)
    good.write_text("a\t" + "b" * 9 + "\n" + "x" * 9 + "\ty\n")
    with pytest.raises(DataError, match=r"there are no usable examples: 1 target of .*; 1 source of more than 8"):
        check_examples(good, context=8)
    with pytest.raises(DataError, match="context must be at least 2"):
        check_examples(file, context=0)
    with pytest.raises(DataError, match="source_context must be at least 1"):
        check_examples(file, source_context=-1)
    with pytest.raises(DataError, match="held_out must be above 0"):
        check_examples(file, held_out=0.9)
    with pytest.raises(DataError, match="no such file"):
        check_examples(tmp_path / "nothing.tsv")


def test_progress_is_reported_in_bytes(tmp_path):
    path, reports = tmp_path / "p.tsv", []
    path.write_text("".join(f"{i}\t{i}\n" for i in range(9000)))
    check_examples(path, progress=lambda *numbers: reports.append(numbers))
    assert [activity for *_, activity in reports] == ["reading"] * 2
    assert 0 < reports[0][0] <= reports[1][0] <= reports[1][1] == path.stat().st_size

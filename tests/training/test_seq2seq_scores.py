"""Exact match, token accuracy, BLEU and chrF compared with values computed by hand."""

import random
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import ConfigError, DataError
from glassformer.training.tasks.seq2seq_scores import LengthBucket, exact_by_length, score_translations, token_accuracy

RIGHT = ["the cat sat on the mat today", "a dog ran to the old town"]


def test_import_needs_neither_torch_nor_sacrebleu():
    modules = "from glassformer.training.tasks import seq2seq_scores; import sys"
    program = f"{modules}; print({{'torch', 'sacrebleu'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


def test_missing_sacrebleu_raises_config_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ConfigError, match=r"pip install 'glassformer\[bleu\]'"):
        score_translations(RIGHT, RIGHT, [1, 1])
    assert score_translations(RIGHT, RIGHT, [1, 1], bleu=False).bleu is None


def test_correct_outputs_have_maximum_scores():
    scores = score_translations(RIGHT, RIGHT, [28, 25])
    assert (scores.count, scores.exact, scores.token_accuracy) == (2, 1.0, 1.0)
    assert (scores.bleu, scores.chrf) == pytest.approx((100, 100))
    assert scores.by_length == (LengthBucket(17, 28, 2, 1.0),)
    assert "version:" in scores.bleu_signature
    assert "nc:6" in scores.chrf_signature


def test_bleu_equals_its_definition():
    """Of 7 words 6 are right, of 6 pairs 5, of 5 runs of three 4, of 4 runs of four 3; both have one length."""
    scores = score_translations(["the cat sat on the mat yesterday"], RIGHT[:1], [28])
    assert scores.bleu == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)
    assert scores.exact == 0
    assert 50 < scores.chrf < 100
    worse = score_translations(["cat the on sat mat the yesterday"], RIGHT[:1], [28])
    assert worse.bleu < scores.bleu
    assert worse.chrf < scores.chrf


def test_bleu_is_a_corpus_score_and_zero_for_short_texts():
    one = score_translations([RIGHT[0], "x"], RIGHT, [1, 1])
    assert 0 < one.bleu < 50
    assert score_translations(["a b"], ["a b"], [3]).bleu == 0
    assert score_translations(["a b"], ["a b"], [3]).chrf == pytest.approx(100)
    assert score_translations(["", ""], RIGHT, [1, 1]).chrf == 0


def test_exact_match_counts_whitespace():
    assert score_translations(["1984-03-03", "1984-03-04 "], ["1984-03-03", "1984-03-04"], [9, 9]).exact == 0.5


def test_token_accuracy_uses_given_tokens_else_characters():
    assert score_translations(["abcd"], ["abxd"], [4]).token_accuracy == 0.75
    given_ = {"hypothesis_tokens": [[1, 2, 3]], "reference_tokens": [[1, 2, 4, 5]]}
    assert score_translations(["abcd"], ["abxd"], [4], **given_).token_accuracy == 0.5


@pytest.mark.parametrize(
    ("hypothesis", "reference", "accuracy"),
    [("abc", "abc", 1), ("ab", "abc", 2 / 3), ("abcd", "abc", 3 / 4), ("xabc", "abc", 0), ("", "abc", 0), ("", "", 0)],
)
def test_token_accuracy_counts_positions(hypothesis, reference, accuracy):
    assert token_accuracy([hypothesis], [reference]) == accuracy


def test_token_accuracy_weights_texts_by_length():
    assert token_accuracy(["a", "bbb"], ["a", "ccc"]) == 0.25


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200)), min_size=1), st.sets(st.integers(1, 100)))
def test_buckets_have_every_example_once(pairs, edges):
    exact, lengths = zip(*pairs, strict=True)
    buckets = exact_by_length(exact, lengths, sorted(edges))
    assert sum(b.count for b in buckets) == len(pairs)
    assert sum(b.count * b.exact for b in buckets) == pytest.approx(sum(exact))
    for bucket in buckets:
        inside = [right for right, length in pairs if bucket.least <= length <= bucket.most]
        assert len(inside) == bucket.count > 0
    assert all(a.most < b.least for a, b in pairwise(buckets))
    assert buckets[-1].most == max(lengths)


def test_buckets_have_exact_match_by_length():
    draw = random.Random(0)
    lengths = [draw.randint(1, 64) for _ in range(1000)]
    buckets = exact_by_length([length <= 16 for length in lengths], lengths)
    assert [(b.least, b.most, b.exact) for b in buckets] == [(1, 8, 1), (9, 16, 1), (17, 32, 0), (33, 64, 0)]


@pytest.mark.parametrize("edges", [(8, 4), (4, 4), (0, 4)])
def test_edges_that_do_not_increase_raise_data_error(edges):
    with pytest.raises(DataError, match="edges must increase"):
        exact_by_length([True], [3], edges)


def test_lists_of_other_lengths_raise_data_error():
    with pytest.raises(DataError, match="1 hypotheses for 2 references"):
        score_translations(["a"], ["a", "b"], [1, 1])
    with pytest.raises(DataError, match="3 lengths for 2"):
        score_translations(["a", "b"], ["a", "b"], [1, 1, 1])
    with pytest.raises(DataError, match="nothing to score"):
        score_translations([], [], [])

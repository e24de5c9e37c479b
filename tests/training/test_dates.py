"""Test generated source-target pairs with an independent parser, their uniqueness, and the split."""

import re
import subprocess
import sys
from datetime import date, timedelta

import date_parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import DataError
from glassformer.toys import dates
from glassformer.toys.stories import SPLITS

MANY = 1000
READ = {
    "dates": date_parser.moments,
    "numbers": date_parser.numbers,
    "reverse": lambda source: {source[::-1]},
    "copy": lambda source: {source},
}
FIRST = {
    "dates": dates.Seq2SeqExample(
        "at three minutes to eight in the evening on October 2nd, nineteen eighty",
        "1980-10-02 19:57",
        "dates/train#0",
    ),
    "numbers": dates.Seq2SeqExample(
        "seventy-one million eight hundred and thirty-nine thousand six hundred and thirty-nine",
        "71839639",
        "numbers/train#0",
    ),
    "reverse": dates.Seq2SeqExample(
        "vvdkifczmptkqhsgbvv",
        "vvbgshqktpmzcfikdvv",
        "reverse/train#0",
    ),
    "copy": dates.Seq2SeqExample(
        "ycjxcgakqrrcglxgahrr",
        "ycjxcgakqrrcglxgahrr",
        "copy/train#0",
    ),
}
EVERY = pytest.mark.parametrize("task", dates.TASKS)


@pytest.fixture(scope="module")
def generated() -> dict[tuple[str, str], list[dates.Seq2SeqExample]]:
    return {(task, split): list(dates.examples(task, 0, split, MANY)) for task in dates.TASKS for split in SPLITS}


def test_imports_no_torch():
    program = "import sys, glassformer.toys.dates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@EVERY
def test_example_is_a_pure_function_of_its_number(task, generated):
    train = generated[task, "train"]
    assert [dates.example(task, 0, "train", i) for i in (7, 3)] == [train[7], train[3]]
    assert list(dates.examples(task, 0, "train", 2, start=3)) == train[3:5]
    assert dates.example(task, 1, "train", 3).source != train[3].source
    assert train[3].origin == f"{task}/train#3"


@EVERY
def test_examples_have_fixed_hashes(task):
    assert dates.example(task, 0, "train", 0, level=2) == FIRST[task]


@pytest.mark.parametrize(
    ("change", "shown"),
    [({"task": "cook"}, "'cook'"), ({"split": "test"}, "'test'"), ({"level": 3}, "3"), ({"level": -1}, "-1")],
)
def test_unknown_task_split_or_level_raises_data_error(change, shown):
    given_ = {"task": "dates", "seed": 0, "split": "train", "i": 0} | change
    with pytest.raises(DataError, match=f"must be .*{shown}"):
        dates.example(**given_)
    with pytest.raises(DataError, match="task must be one of dates, numbers, reverse, copy"):
        dates.count_sources("cook")


# --- one meaning ------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("level", range(dates.LEVELS))
def test_every_source_parses_to_its_target_only(task, level):
    for split in SPLITS:
        for pair in dates.examples(task, 3, split, MANY // 4, level):
            assert READ[task](pair.source) == {pair.target}, pair


@EVERY
def test_every_source_has_one_target(task, generated):
    targets: dict[str, str] = {}
    for split in SPLITS:
        for pair in generated[task, split]:
            assert targets.setdefault(pair.source, pair.target) == pair.target


def test_every_time_parses_back_from_each_form():
    seen: dict[str, str] = {}
    for minute in range(24 * 60):
        hour, minute = divmod(minute, 60)
        wanted = f"{hour:02}:{minute:02}"
        ways = (*dates.short_times(hour, minute), *dates.long_times(hour, minute))
        assert len(set(ways)) == len(ways) >= 7
        for way in ways:
            assert seen.setdefault(way, wanted) == wanted
            assert date_parser.times(way) == {wanted}, way


def test_every_year_and_day_parses_back_from_each_form():
    for year in range(dates.YEARS[0], dates.YEARS[1] + 1):
        for way in dates.year_ways(year):
            assert date_parser.years(way) == {year}, way
    for day in range(1, 32):
        assert date_parser.day_numbers(dates.ordinal(day)) == date_parser.day_numbers(dates.nth(day)) == {day}


@given(st.integers(0, 999_999_999), st.integers(0, 9999))
def test_every_number_parses_back_from_each_form(large, small):
    for n in (large, small):
        ways = dates.number_ways(n)
        assert len(ways) >= 1
        for way in ways:
            assert date_parser.numbers(way) == {str(n)}, way


@given(st.dates(date(1600, 1, 1), date(2199, 12, 31)))
def test_days_of_every_form_parse_back(day):
    draw = dates.RandomChoices(day.isoformat())
    for short in (True, False):
        for _ in range(10):
            way = dates._day(draw, day, short)
            assert date_parser.days(way.lower()) == {day.isoformat()}, way


def test_date_parser_returns_both_meanings():
    """The tests above can fail."""
    assert len(date_parser.moments("the third of march two thousand ten ten in the morning")) == 2
    assert date_parser.days("monday, 3 march 1984") == set()
    assert date_parser.moments("03/04/1984") == date_parser.moments("half two at noon") == set()
    assert date_parser.numbers("twelve eleven") == set()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("the third of March, nineteen eighty-four, quarter past two in the afternoon", "1984-03-03 14:15"),
        ("at noon on 29 Feb 2000", "2000-02-29 12:00"),
        ("Mar 3rd, 2005, 12:05 am", "2005-03-03 00:05"),
        ("five to one at night on the first of May in two thousand and five", "2005-05-01 00:55"),
    ],
)
def test_date_parser_parses(source, target):
    assert date_parser.moments(source) == {target}


# --- much, and many ways ----------------------------------------------------------------------------------------------


@EVERY
def test_count_sources_is_above_ten_million(task, generated):
    assert dates.count_sources(task) >= 10**7


def test_count_is_a_lower_bound():
    """Of all days with one time, and of a run of numbers, the share that training has is at least what is counted."""
    days = [date(1600, 1, 1) + timedelta(i) for i in range(20_000)]
    for task, targets in (
        ("dates", [f"{day} 14:15" for day in days]),
        ("numbers", [str(10**8 + i) for i in range(20_000)]),
    ):
        share = sum(dates.split_of(task, target) == "train" for target in targets) / len(targets)
        assert share > (dates.HELD_OUT_MODULUS - 2) / dates.HELD_OUT_MODULUS
    assert dates.count_sources("dates") == 219_146 * 1440 * 6 // 8


@EVERY
def test_levels_order_sources_by_length(task):
    medians = []
    for level in range(dates.LEVELS):
        lengths = sorted(len(pair.source) for pair in dates.examples(task, 1, "train", 200, level))
        medians.append(lengths[100])
    assert medians[0] * 1.5 < medians[1] < medians[2]
    assert medians[2] > medians[1] * 1.4


def test_dates_have_many_forms(generated):
    sources = " / ".join(pair.source for pair in generated["dates", "train"])
    for piece in (
        "quarter past", "half past", "noon", "o'clock", " hours", "p.m.", "pm", "nineteen hundred and ", " oh ", "Sep",
        "two thousand and", "21st", "twenty-first", "in the year", "day of", "Tuesday", "Tue ", "at night",
        "minutes to", "minute past", "hundred hours",
    ):  # fmt: skip
        assert piece in sources, piece
    shapes = {re.sub(r"\d", "0", re.sub("[a-z]+", "x", pair.source.lower())) for pair in generated["dates", "train"]}
    assert len(shapes) > 300


def test_ambiguous_forms_are_not_generated(generated):
    two_things = re.compile(r"\d\d?/\d\d?/\d{4}|'\d\d|midnight|half (one|two|three)|(^|[dn,] )twelve at night")
    for pair in generated["dates", "train"] + generated["dates", "held-out"]:
        assert not two_things.search(pair.source)
    assert [way for way in dates.long_times(0, 0) if "hours" not in way] == []


# --- two sides --------------------------------------------------------------------------------------------------------


@EVERY
def test_no_held_out_source_or_target_occurs_in_training(task, generated):
    for level in (None, 0):
        train = generated[task, "train"] + list(dates.examples(task, 9, "train", MANY // 2, level))
        aside = generated[task, "held-out"] + list(dates.examples(task, 4, "held-out", MANY // 2, level))
        assert {p.source for p in train}.isdisjoint(p.source for p in aside)
        assert {p.target for p in train}.isdisjoint(p.target for p in aside)


def test_short_sources_would_overlap_without_the_split():
    """The test above can fail: sources do come again where they are short."""
    halves = [{p.source for p in dates.examples("numbers", seed, "train", MANY // 2, 0)} for seed in (0, 1)]
    assert halves[0] & halves[1]

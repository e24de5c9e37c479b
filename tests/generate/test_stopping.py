"""Stop strings: however the text is cut into pieces, what comes out is the text before the first one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import RequestError
from glassformer.generate.stopping import StopStrings


def before_first(text, stops):
    """Read a character at a time: as soon as a stop string is complete (the longest of several), what is before it."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def unsure(text, stops):
    """How many of the last characters are the beginning of a stop string."""
    return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


@st.composite
def cut_texts(draw):
    text = draw(st.text("ab😀", max_size=24))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    return pieces, draw(st.lists(st.text("ab😀", min_size=1, max_size=5), max_size=3))


@settings(max_examples=600)
@given(cut_texts())
def test_any_chunking_releases_the_text_before_the_first_stop(case):
    pieces, stops = case
    expected, which = before_first("".join(pieces), stops)
    watch, out, read = StopStrings(stops), "", ""
    for piece in pieces:
        out, read = out + watch.push(piece), read + piece
        assert expected.startswith(out), "what came out was part of a stop string"
        if watch.found is None:
            assert len(out) == len(read) - unsure(read, stops), "held back too much, or too little"
    assert out + watch.finish() == expected
    assert watch.found == which


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "found"),
    [
        (["END"], ["a E", "N", "D b"], "a ", "END"),
        (["END"], ["a E", "N", "d b"], "a ENd b", None),
        (["END"], ["END"], "", "END"),
        (["aab"], ["aa", "a", "b"], "a", "aab"),
        (["abc", "b"], ["abc"], "a", "b"),
        (["abc", "b"], ["a", "b", "c"], "a", "b"),
        (["b", "ab"], ["x", "a", "b"], "x", "ab"),
        (["\n\n"], ["one\n", "\ntwo"], "one", "\n\n"),
    ],
)
def test_stop_strings_by_example(stops, pieces, text, found):
    watch = StopStrings(stops)
    assert "".join([*map(watch.push, pieces), watch.finish()]) == text
    assert watch.found == found


def test_nothing_comes_after_a_stop():
    watch = StopStrings(["b"])
    assert watch.push("ab") == "a"
    assert [watch.push("more"), watch.finish()] == ["", ""]


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_empty_stop_string_raises(stops):
    with pytest.raises(RequestError, match="stop"):
        StopStrings(stops)

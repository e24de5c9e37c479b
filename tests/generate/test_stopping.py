"""Stop strings: for every chunking of a text, the output is the text before the first stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import RequestError
from glassformer.generate.stopping import StopStrings


def text_before_first_stop(text, stops):
    """Return the text before the first complete stop string (the longest, if several end there), and that string."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def length_of_partial_stop(text, stops):
    """Return how many of the last characters are the start of a stop string."""
    return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


@st.composite
def chunked_texts(draw):
    text = draw(st.text("ab😀", max_size=24))
    boundaries = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *boundaries], [*boundaries, len(text)], strict=True)]
    return chunks, draw(st.lists(st.text("ab😀", min_size=1, max_size=5), max_size=3))


@settings(max_examples=600)
@given(chunked_texts())
def test_any_chunking_releases_the_text_before_the_first_stop(case):
    chunks, stops = case
    expected, expected_stop = text_before_first_stop("".join(chunks), stops)
    stop_strings, released, pushed = StopStrings(stops), "", ""
    for chunk in chunks:
        released, pushed = released + stop_strings.push(chunk), pushed + chunk
        assert expected.startswith(released), "part of a stop string was released"
        if stop_strings.found is None:
            assert len(released) == len(pushed) - length_of_partial_stop(pushed, stops), (
                "too many or too few characters are held back"
            )
    assert released + stop_strings.finish() == expected
    assert stop_strings.found == expected_stop


@pytest.mark.parametrize(
    ("stops", "chunks", "text", "found"),
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
def test_stop_strings_by_example(stops, chunks, text, found):
    stop_strings = StopStrings(stops)
    assert "".join([*map(stop_strings.push, chunks), stop_strings.finish()]) == text
    assert stop_strings.found == found


def test_no_text_is_released_after_a_stop():
    stop_strings = StopStrings(["b"])
    assert stop_strings.push("ab") == "a"
    assert [stop_strings.push("more"), stop_strings.finish()] == ["", ""]


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_empty_stop_string_raises(stops):
    with pytest.raises(RequestError, match="stop"):
        StopStrings(stops)

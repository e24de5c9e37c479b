"""Incremental decoding: any sequence of ids streams to the text that `decode` returns."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import TokenizerError
from glassformer.text.stream_decoder import StreamDecoder

TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("猫é👩\u200d👧🇯🇵\ufffd")))


def streamed(tokenizer, ids, **options) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*map(stream.push, ids), stream.finish()]


@given(ids=st.lists(st.integers(0, 399)))
def test_streamed_text_equals_decode(bpe, ids):
    assert "".join(streamed(bpe, ids)) == bpe.decode(ids)
    assert "".join(streamed(bpe, ids, skip_special=True)) == bpe.decode(ids, skip_special=True)


@given(text=TEXTS)
def test_valid_text_never_streams_partial_characters(bpe, text):
    parts = streamed(bpe, bpe.encode(text))
    assert "".join(parts) == text
    assert parts[-1] == ""
    assert "".join(parts).count("\ufffd") == text.count("\ufffd")


@given(text=TEXTS, data=st.data())
def test_complete_characters_are_emitted_at_once(text, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)))))
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    stream = StreamDecoder(chunks.__getitem__)
    done = b""
    for i, chunk in enumerate(chunks):
        done += chunk
        sent = len(stream.push(i)) if i == 0 else sent + len(stream.push(i))
        complete = done.decode("utf-8", "ignore")  # exactly the complete characters are emitted
        assert sent == len(complete)
    assert stream.finish() == ""


@given(raw=st.lists(st.binary(max_size=4)))
def test_invalid_bytes_are_decoded_like_python_replace(raw):
    stream = StreamDecoder(raw.__getitem__)
    text = "".join(stream.push(i) for i in range(len(raw))) + stream.finish()
    assert text == b"".join(raw).decode("utf-8", "replace")


def test_all_splits_of_a_short_text_stream_to_the_text():
    raw = "aé猫👧".encode()
    for mask in range(1 << (len(raw) - 1)):
        chunks = [raw[:1]]
        for i in range(1, len(raw)):
            if mask >> (i - 1) & 1:
                chunks.append(raw[i : i + 1])
            else:
                chunks[-1] += raw[i : i + 1]
        stream = StreamDecoder(chunks.__getitem__)
        parts = [stream.push(i) for i in range(len(chunks))]
        assert "".join(parts) == "aé猫👧"
        assert all(part == "" or unicodedata.category(part[0]) != "Cn" for part in parts)


def test_truncated_character_is_emitted_at_the_end(bpe):
    cat = [bpe.encode_offsets("𓂀").ids[i] for i in range(3)]
    assert streamed(bpe, [*cat]) == ["", "", "", "\ufffd"]
    letter = bpe.encode("x")
    assert streamed(bpe, [*cat, *letter]) == ["", "", "", "\ufffdx", ""]
    assert bpe.decode([*cat, *letter]) == "\ufffdx"


def test_invalid_id_does_not_change_the_stream(bpe):
    first, second, third, last = bpe.encode("𓂀")
    stream = bpe.stream()
    for index in (first, second, third):
        assert stream.push(index) == ""
    with pytest.raises(TokenizerError):
        stream.push(-1)
    assert stream.push(400) == ""  # an id without a token has no text
    assert stream.push(last) == "𓂀"

"""Which characters of a text each of its tokens covers."""

from __future__ import annotations

from collections.abc import Sequence

from glassformer.text.tokenizer import Tokenizer


def spans(tokenizer: Tokenizer | None, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens, and where in it each begins and ends, in characters.

    A control token covers nothing, neither in the text. A part of a character covers the whole of it, and so do the
    others of its parts. Bytes that are no text are one U+FFFD each time, as in `decode`.
    """
    if tokenizer is None:
        return "", [(0, 0)] * len(ids)
    control = set(tokenizer.special_tokens.values())
    pieces = [b"" if id in control else tokenizer.token_bytes(id) for id in ids]
    text, at = _decoded(b"".join(pieces))
    dropped = int(tokenizer.backend.drops_first_space and text.startswith(" "))
    found, begin = [], 0
    for piece in pieces:
        end = begin + len(piece)
        start = at[begin] if begin < len(at) else len(text)
        stop = at[end - 1] + 1 if piece else start
        found.append((max(start - dropped, 0), max(stop - dropped, 0)))
        begin = end
    return text[dropped:], found


def _decoded(data: bytes) -> tuple[str, list[int]]:
    """Bytes as text, and for each byte the number of its character."""
    text, at, begin = "", [], 0
    while begin < len(data):
        try:
            end, good = len(data), data[begin:].decode()
            bad = end
        except UnicodeDecodeError as error:
            bad, end = begin + error.start, begin + error.end
            good = data[begin:bad].decode()
        for character in good:
            at += [len(text)] * len(character.encode())
            text += character
        if bad < end:
            at += [len(text)] * (end - bad)
            text += "�"
        begin = end
    return text, at

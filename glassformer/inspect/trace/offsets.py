"""The characters of a text that each of its tokens covers."""

from __future__ import annotations

from collections.abc import Sequence

from glassformer.text.tokenizer import Tokenizer


def spans(tokenizer: Tokenizer | None, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of tokens, and the (start, end) of each token in it, in characters.

    A control token, and an id without a token, cover nothing, and the text does not show them. A token that is a part
    of a character covers that character, as do the tokens of its other parts. Invalid UTF-8 becomes U+FFFD, as in
    `decode`.
    """
    if tokenizer is None:
        return "", [(0, 0)] * len(ids)
    control = set(tokenizer.special_tokens.values())
    parts = [b"" if id in control else tokenizer.find_bytes(id) or b"" for id in ids]
    text, at = _decode(b"".join(parts))
    dropped = int(tokenizer.backend.drops_first_space and text.startswith(" "))
    text = text[dropped:].removesuffix(" ") if tokenizer.backend.drops_last_space else text[dropped:]
    found, begin = [], 0
    for part in parts:
        end = begin + len(part)
        start = at[begin] - dropped if begin < len(at) else len(text)
        stop = at[end - 1] + 1 - dropped if part else start
        found.append((max(start, 0), min(max(stop, 0), len(text))))
        begin = end
    return text, found


def _decode(data: bytes) -> tuple[str, list[int]]:
    """Return bytes as text, and the index of the character that each byte belongs to."""
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

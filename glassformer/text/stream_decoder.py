"""The bytes that each token stands for, read from a `tokenizer.json`; and their way back to text, piece by piece."""

import codecs
import re
from collections.abc import Callable, Mapping
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.patterns import byte_alphabet

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def token_table(layout: Mapping[str, Any], vocab: Mapping[str, int], added: Mapping[int, str]) -> list[bytes | None]:
    """The bytes of every token by id; None where an id has no token.

    layout: the parsed `tokenizer.json`, whose `decoder` says how the model's tokens are spelled.
    vocab: token -> id, with the added tokens;  added: id -> text of the added tokens, which are spelled as they are.
    Raises TokenizerError for a decoder that is not understood.
    """
    spell = _spelling(_steps(layout.get("decoder")))
    table: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        table[index] = added[index].encode() if index in added else spell(token)
    return table


def drops_first_space(layout: Mapping[str, Any]) -> bool:
    """Whether a text's first space was put there by the tokenizer and goes away in decoding (SentencePiece's dummy)."""
    steps = _steps(layout.get("decoder"))
    metaspace = any(s["type"] == "Metaspace" and s.get("prepend_scheme", "always") != "never" for s in steps)
    return metaspace or any(s["type"] == "WordPiece" or (s["type"] == "Strip" and s.get("start", 0) > 0) for s in steps)


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A decoder's steps, whether it is one or a sequence of them."""
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _spelling(steps: list[Mapping[str, Any]]) -> Callable[[str], bytes]:
    """token -> its bytes, under these decoder steps (the format of the `tokenizers` library)."""
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        to_byte = {char: byte for byte, char in byte_alphabet().items()}

        def byte_level(token: str) -> bytes:
            try:
                return bytes(to_byte[char] for char in token)
            except KeyError:  # not spelled in the byte alphabet: it stands for itself
                return token.encode()

        return byte_level

    if kinds == {"WordPiece"}:
        return _wordpiece(steps[0]["prefix"])
    unknown = kinds - {"Fuse", "Replace", "ByteFallback", "Strip", "Metaspace"}
    if unknown or not kinds:
        what = f"the decoder {', '.join(sorted(unknown))}" if unknown else "no decoder"
        raise TokenizerError(f"tokenizer.json has {what}; understood are ByteLevel, WordPiece, and SentencePiece's")
    swaps = [(s["pattern"]["String"], s["content"]) for s in steps if s["type"] == "Replace"]
    swaps += [(s["replacement"], " ") for s in steps if s["type"] == "Metaspace"]

    def sentencepiece(token: str) -> bytes:
        if "ByteFallback" in kinds and (byte := _BYTE_FALLBACK.match(token)):
            return bytes([int(byte[1], 16)])
        for old, new in swaps:
            token = token.replace(old, new)
        return token.encode()

    return sentencepiece


def _wordpiece(prefix: str) -> Callable[[str], bytes]:
    """Words with the space before them, and what goes on a word without its prefix.  (What BERT's own decoding does on
    top, taking off the space before punctuation, belongs to no token.)"""

    def spell(token: str) -> bytes:
        return (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()

    return spell


class StreamDecoder:
    """Token ids in, text out, never half a character: what is pushed, joined, equals `Tokenizer.decode` of all the ids.

    Bytes that may still become a character are held back; bytes that no longer can are given out as U+FFFD at once.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], *, drop_first_space: bool = False):
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_first_space = drop_first_space

    def push(self, index: int) -> str:
        """The text that became certain with this token: often one word, sometimes "", sometimes several characters.

        Raises TokenizerError for an id that is not in the vocabulary; what was pushed before stays as it was.
        """
        data = self._bytes_of(index)
        if data and self._drop_first_space:
            data = data.removeprefix(b" ")
            self._drop_first_space = False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left at the end: "" or, when the last character was never completed, U+FFFD."""
        return self._utf8.decode(b"", final=True)

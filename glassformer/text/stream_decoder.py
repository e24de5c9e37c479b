"""Decoding of tokens: the bytes of each token of a `tokenizer.json`, and incremental decoding to text."""

import codecs
import re
from collections.abc import Callable, Mapping
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.patterns import byte_alphabet

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def token_table(layout: Mapping[str, Any], vocab: Mapping[str, int], verbatim: Mapping[int, str]) -> list[bytes | None]:
    """Return the bytes of every token by id; None where an id has no token.

    Args:
        layout: The parsed `tokenizer.json`; its `decoder` defines how tokens are spelled.
        vocab: Token -> id, with the added tokens.
        verbatim: Id -> text of the added tokens that stand for their own text.

    Raises:
        TokenizerError: The decoder is not supported.
    """
    spell = _spelling(_steps(layout.get("decoder")))
    table: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        table[index] = verbatim[index].encode() if index in verbatim else spell(token)
    return table


def drops_first_space(layout: Mapping[str, Any]) -> bool:
    """Return whether decoding removes a text's first space: encoding has added it (SentencePiece's dummy prefix)."""
    steps = _steps(layout.get("decoder"))
    metaspace = any(s["type"] == "Metaspace" and s.get("prepend_scheme", "always") != "never" for s in steps)
    return metaspace or any(s["type"] == "WordPiece" or (s["type"] == "Strip" and s.get("start", 0) > 0) for s in steps)


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the steps of a decoder, which is one step or a sequence of steps."""
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _spelling(steps: list[Mapping[str, Any]]) -> Callable[[str], bytes]:
    """Return the function token -> bytes of these decoder steps (the format of the `tokenizers` library)."""
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        to_byte = {char: byte for byte, char in byte_alphabet().items()}

        def byte_level(token: str) -> bytes:
            try:
                return bytes(to_byte[char] for char in token)
            except KeyError:  # not spelled in the byte alphabet: verbatim
                return token.encode()

        return byte_level

    if kinds == {"WordPiece"}:
        prefix: str = steps[0]["prefix"]

        def wordpiece(token: str) -> bytes:
            """Return a word with the space before it, or a continuation without its ## prefix.

            (BERT's own decoder also removes the space before punctuation; that space belongs to no token.)
            """
            return (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()

        return wordpiece

    unknown = kinds - {"Fuse", "Replace", "ByteFallback", "Strip", "Metaspace"}
    if unknown or not kinds:
        found = f"the decoder {', '.join(sorted(unknown))}" if unknown else "no decoder"
        raise TokenizerError(f"tokenizer.json has {found}; supported are ByteLevel, WordPiece and SentencePiece's")
    replacements = [(s["pattern"]["String"], s["content"]) for s in steps if s["type"] == "Replace"]
    replacements += [(s["replacement"], " ") for s in steps if s["type"] == "Metaspace"]

    def sentencepiece(token: str) -> bytes:
        if "ByteFallback" in kinds and (byte := _BYTE_FALLBACK.match(token)):
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return sentencepiece


class StreamDecoder:
    """Incremental decoder: takes token ids, returns complete characters only. `Tokenizer.stream` makes it.

    The results, joined, equal `Tokenizer.decode` of all the ids. Bytes that may still become a character are held back;
    bytes that cannot are returned as U+FFFD at once.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], *, drop_first_space: bool = False):
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_first_space = drop_first_space

    def push(self, index: int) -> str:
        """Return the text that this token completes: "", one character or several.

        Raises:
            TokenizerError: The id is not in the vocabulary; the state of the decoder is unchanged.
        """
        data = self._bytes_of(index)
        if data and self._drop_first_space:
            data = data.removeprefix(b" ")
            self._drop_first_space = False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return the remaining text at the end: "", or U+FFFD if the last character is incomplete."""
        return self._utf8.decode(b"", final=True)

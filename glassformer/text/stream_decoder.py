"""Decoding of tokens: the bytes of each token of a `tokenizer.json`, and incremental decoding to text."""

import codecs
import re
from collections.abc import Callable, Mapping
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.patterns import byte_alphabet

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class TokenDecoder:
    """The `decoder` of a `tokenizer.json`: the bytes of each token, so that a text is the bytes of its tokens.

    drops_first_space: whether decoding removes a text's first space, which encoding has added (SentencePiece's dummy
        prefix), or which stands before every word
    drops_last_space: whether decoding removes a text's last space, which stands after every word
    """

    def __init__(self, decoder: Mapping[str, Any] | None):
        """Create the decoder. Raises TokenizerError if a step is not supported."""
        steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder] if decoder else []
        self._steps: list[Mapping[str, Any]] = steps
        self.kinds = [step["type"] for step in steps]
        self.drops_first_space = not steps or any(
            step["type"] == "WordPiece"
            or (step["type"] == "Metaspace" and step["prepend_scheme"] != "never")
            or (step["type"] == "Strip" and step["start"] > 0)
            for step in steps
        )
        self.drops_last_space = self.kinds == ["BPEDecoder"]
        self.token_bytes: Callable[[str], bytes] = self._choose()

    def _choose(self) -> Callable[[str], bytes]:
        match self.kinds:
            case []:  # the library joins the tokens with spaces
                return lambda token: f" {token}".encode()
            case ["ByteLevel", *rest] if {*rest} <= {"Fuse", "Strip"}:
                return _byte_level
            case ["WordPiece"]:
                return self._wordpiece
            case ["BPEDecoder"]:
                suffix: str = self._steps[0]["suffix"]
                return lambda token: token.replace(suffix, " ").encode()
        if unknown := {*self.kinds} - {"Fuse", "Replace", "ByteFallback", "Strip", "Metaspace"}:
            raise TokenizerError(
                f"tokenizer.json has the decoder {', '.join(sorted(unknown))}; supported are none, ByteLevel, "
                f"WordPiece, BPEDecoder and SentencePiece's"
            )
        replacements: list[tuple[str, str]] = []
        for step in self._steps:
            if step["type"] == "Replace":
                if "String" not in step["pattern"]:
                    raise TokenizerError(
                        "tokenizer.json has a decoder that replaces a regular expression: not supported"
                    )
                replacements.append((step["pattern"]["String"], step["content"]))
            elif step["type"] == "Metaspace":
                replacements.append((step["replacement"], " "))
        return lambda token: self._sentencepiece(token, replacements)

    def _wordpiece(self, token: str) -> bytes:
        """Return a word with the space before it, or a continuation without its ## prefix.

        (BERT's own decoder also removes the space before punctuation; that space belongs to no token.)
        """
        prefix: str = self._steps[0]["prefix"]
        return (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()

    def _sentencepiece(self, token: str, replacements: list[tuple[str, str]]) -> bytes:
        if "ByteFallback" in self.kinds and (byte := _BYTE_FALLBACK.match(token)):
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()


_TO_BYTE = {char: byte for byte, char in byte_alphabet().items()}


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_TO_BYTE[char] for char in token)
    except KeyError:  # not spelled in the byte alphabet: verbatim
        return token.encode()


class StreamDecoder:
    """Incremental decoder: takes token ids, returns complete characters only. `Tokenizer.stream` makes it.

    The results, joined, equal `Tokenizer.decode` of all the ids. Bytes that may still become a character are held back;
    bytes that cannot are returned as U+FFFD at once.
    """

    def __init__(
        self, bytes_of: Callable[[int], bytes], *, drop_first_space: bool = False, drop_last_space: bool = False
    ):
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_first_space, self._drop_last_space = drop_first_space, drop_last_space
        self._held_back = b""  # a space that is dropped if it is the last character

    def push(self, index: int) -> str:
        """Return the text that this token completes: "", one character or several.

        Raises:
            TokenizerError: The id is negative; the state of the decoder is unchanged.
        """
        data = self._bytes_of(index)
        if data and self._drop_first_space:
            data = data.removeprefix(b" ")
            self._drop_first_space = False
        if data and self._drop_last_space:
            data = self._held_back + data
            self._held_back = b" " if data.endswith(b" ") else b""
            data = data[: len(data) - len(self._held_back)]
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return the remaining text at the end: "", or U+FFFD if the last character is incomplete."""
        return self._utf8.decode(b"", final=True)

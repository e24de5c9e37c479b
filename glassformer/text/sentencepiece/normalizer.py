"""SentencePiece's normalization: the text that its model sees, with the origin of every character.

Rules replace the text that they match; at each position the longest match wins (`normalizer.cc` of SentencePiece). The
file holds them as a double-array trie of 32-bit units (Aoe 1989, in Darts-clone's packing): from the node at index
`at`, byte b leads to the unit at `at ^ offset ^ b` if that unit has the label b. The unit at the offset of a node that
ends a rule holds the position of the replacement.
"""

import array
import struct
import sys

import regex

from glassformer.errors import TokenizerError
from glassformer.text.sentencepiece.model_file import USER_DEFINED, SentencePieceModel

SPACE = "\u2581"  # ▁


class NormalizationRules:
    """The compiled rules of a model: UTF-8 bytes -> replacement."""

    def __init__(self, charsmap: bytes):
        """Parse the compiled rules. Raises TokenizerError if they are malformed."""
        if not charsmap:
            self.units, self.replacements = array.array("I", [0]), b""
            return
        size = struct.unpack_from("<I", charsmap)[0] if len(charsmap) >= 4 else 0
        if size < 4 or size % 4 or 4 + size >= len(charsmap):
            raise _damaged(f"the trie has {size} of {len(charsmap)} bytes")
        self.units, self.replacements = array.array("I", charsmap[4 : 4 + size]), charsmap[4 + size :]
        if sys.byteorder == "big":
            self.units.byteswap()

    def longest_match(self, data: bytes, start: int) -> tuple[int, int]:
        """Return (length, position of the replacement) of the longest rule that matches at `start`; (0, 0) if none."""
        units, size = self.units, len(self.units)
        node, match = _offset(units[0]), (0, 0)
        for end in range(start, len(data)):
            node ^= data[end]
            if node >= size:
                break
            unit = units[node]
            if unit & 0x800000FF != data[end]:
                break
            node ^= _offset(unit)
            if unit & 0x100 and node < size:
                match = (end + 1 - start, units[node] & 0x7FFFFFFF)
        return match

    def replacement(self, position: int) -> str:
        """Return the NUL-terminated replacement at a position."""
        end = self.replacements.find(b"\0", position)
        if end < 0:
            raise _damaged("a replacement has no end")
        try:
            return self.replacements[position:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged("a replacement is not UTF-8") from error


def _damaged(reason: str) -> TokenizerError:
    return TokenizerError(f"the normalization rules are damaged: {reason}")


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


class Normalizer:
    """Maps a text to the normalized text that is segmented, and each of its characters to its origin."""

    def __init__(self, model: SentencePieceModel):
        self.model, self.rules = model, NormalizationRules(model.charsmap)
        self.space = SPACE if model.escape else " "
        user_defined = sorted((p.text for p in model.pieces if p.type == USER_DEFINED), key=len, reverse=True)
        self.user_defined = regex.compile("|".join(map(regex.escape, user_defined))) if user_defined else None
        self._identity = not model.charsmap and not model.remove_extra_spaces

    def __call__(self, text: str, *, prefix: bool = True) -> tuple[str, list[int]]:
        """Normalize a text.

        Args:
            text: The text.
            prefix: Whether the dummy prefix space is added, if the model uses one. False for text that continues
                another text.

        Returns:
            The normalized text of n characters, and n + 1 positions in `text`: the origin of each character, and the
            end.
        """
        if not text:
            return "", [0]
        dummy = self.model.dummy_prefix and prefix
        before, after = dummy and not self.model.suffix, dummy and self.model.suffix
        if self._identity:
            out, origin = text.replace(" ", self.space), list(range(len(text) + 1))
            return self.space * before + out + self.space * after, [0] * before + origin + [len(text)] * after

        replacements = self._replacements(text)
        trim = self.model.remove_extra_spaces
        first = 0
        while trim and first < len(replacements) and replacements[first][1] == " ":
            first += 1
        if first == len(replacements):
            return "", [0]
        chars: list[str] = []
        origin: list[int] = []
        if before:
            chars, origin = [self.space], [replacements[first][0]]
        after_space = trim
        for at, replacement in replacements[first:]:
            new = replacement.lstrip(" ") if after_space else replacement
            if new:
                chars.extend(new.replace(" ", self.space))
                origin.extend([at] * len(new))
                after_space = trim and new.endswith(" ")
        end = len(text)
        while trim and chars and chars[-1] == self.space:
            chars.pop()
            end = origin.pop()
        return "".join(chars) + self.space * after, [*origin, *[end] * after, end]

    def _replacements(self, text: str) -> list[tuple[int, str]]:
        """Split the text where rules match; return (position, replacement) of each part."""
        parts: list[tuple[int, str]] = []
        data, at, byte = text.encode(), 0, 0
        while at < len(text):
            if self.user_defined and (match := self.user_defined.match(text, at)):
                part = new = match[0]
            else:
                length, position = self.rules.longest_match(data, byte)
                if length:
                    new = self.rules.replacement(position)
                    try:
                        part = data[byte : byte + length].decode("utf-8")
                    except UnicodeDecodeError as error:
                        raise TokenizerError(
                            "the normalization rules are damaged: a rule ends inside a character"
                        ) from error
                else:
                    part = new = text[at]
            parts.append((at, new))
            at, byte = at + len(part), byte + len(part.encode())
        return parts

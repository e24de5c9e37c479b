"""SentencePiece's normalization: a text as its model wants to see it, character by character, with where each was.

Rules replace what they match, the longest at each place (`normalizer.cc` of SentencePiece).  They lie in the file as a
double array, a trie in one row of 32-bit units (Aoe 1989, as Darts-clone packs it): from the node at `at` a byte b
leads to the unit at `at ^ offset ^ b`, if that unit is labelled b; a node that ends a rule has, at its offset, a unit
with the place of the replacement.
"""

import array
import struct
import sys

import regex

from glassformer.errors import TokenizerError
from glassformer.text.sentencepiece.model_file import USER_DEFINED, SentencePieceModel

SPACE = "\u2581"  # ▁


class NormalizationRules:
    """The compiled rules of a model: UTF-8 in, replacement out."""

    def __init__(self, charsmap: bytes):
        """Raises TokenizerError when `charsmap` is not what it claims to be."""
        if not charsmap:
            self.units, self.texts = array.array("I", [0]), b""
            return
        size = struct.unpack_from("<I", charsmap)[0] if len(charsmap) >= 4 else 0
        if size < 4 or size % 4 or 4 + size >= len(charsmap):
            raise TokenizerError(f"its normalization rules are damaged: {size} bytes of {len(charsmap)}")
        self.units, self.texts = array.array("I", charsmap[4 : 4 + size]), charsmap[4 + size :]
        if sys.byteorder == "big":
            self.units.byteswap()

    def longest(self, data: bytes, at: int) -> tuple[int, int]:
        """The longest rule that matches `data` from `at`: its length, and where its replacement lies (0, 0: none)."""
        units, size = self.units, len(self.units)
        unit = units[0]
        node, found = _offset(unit), (0, 0)
        for end in range(at, len(data)):
            node ^= data[end]
            if node >= size:
                break
            unit = units[node]
            if unit & 0x800000FF != data[end]:
                break
            node ^= _offset(unit)
            if unit & 0x100 and node < size:
                found = (end + 1 - at, units[node] & 0x7FFFFFFF)
        return found

    def replacement(self, place: int) -> str:
        """The text at a place, which ends with a NUL."""
        end = self.texts.find(b"\0", place)
        try:
            if end < 0:
                raise TokenizerError("its normalization rules are damaged: a replacement has no end")
            return self.texts[place:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError("its normalization rules are damaged: a replacement is not UTF-8") from error


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


class Normalizer:
    """text -> the text that is cut into pieces, and for each of its characters the place it came from."""

    def __init__(self, model: SentencePieceModel):
        self.model, self.rules = model, NormalizationRules(model.charsmap)
        self.space = SPACE if model.escape else " "
        defined = sorted((p.text for p in model.pieces if p.type == USER_DEFINED), key=len, reverse=True)
        self.defined = regex.compile("|".join(map(regex.escape, defined))) if defined else None
        self._plain = not model.charsmap and not model.remove_extra_spaces

    def __call__(self, text: str, *, prefix: bool = True) -> tuple[str, list[int]]:
        """The normalized text of n characters, and n + 1 places in `text`: where each of them was, and the end.

        prefix: False where the text goes on after another, so that no dummy space belongs before it.
        """
        if not text:
            return "", [0]
        dummy = self.model.dummy_prefix and prefix
        before, after = dummy and not self.model.suffix, dummy and self.model.suffix
        if self._plain:
            out, origin = text.replace(" ", self.space), list(range(len(text) + 1))
            return self.space * before + out + self.space * after, [0] * before + origin + [len(text)] * after

        steps = self._steps(text)
        trim = self.model.remove_extra_spaces
        first = 0
        while trim and first < len(steps) and steps[first][1] == " ":
            first += 1
        if first == len(steps):
            return "", [0]
        chars: list[str] = []
        origin: list[int] = []
        if before:
            chars, origin = [self.space], [steps[first][0]]
        after_space = trim
        for at, piece in steps[first:]:
            new = piece.lstrip(" ") if after_space else piece
            if new:
                chars.extend(new.replace(" ", self.space))
                origin.extend([at] * len(new))
                after_space = trim and new.endswith(" ")
        end = len(text)
        while trim and chars and chars[-1] == self.space:
            chars.pop()
            end = origin.pop()
        return "".join(chars) + self.space * after, [*origin, *[end] * after, end]

    def _steps(self, text: str) -> list[tuple[int, str]]:
        """The text cut where rules match it: (where it was, what it became) for each part."""
        steps: list[tuple[int, str]] = []
        data, at, byte = text.encode(), 0, 0
        while at < len(text):
            if self.defined and (found := self.defined.match(text, at)):
                part = new = found[0]
            else:
                length, place = self.rules.longest(data, byte)
                if length:
                    new = self.rules.replacement(place)
                    try:
                        part = data[byte : byte + length].decode("utf-8")
                    except UnicodeDecodeError as error:
                        raise TokenizerError("its normalization rules are damaged: one cuts a character") from error
                else:
                    part = new = text[at]
            steps.append((at, new))
            at, byte = at + len(part), byte + len(part.encode())
        return steps

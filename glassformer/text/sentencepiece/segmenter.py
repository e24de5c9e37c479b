"""SentencePiece's segmentation algorithms, BPE and Unigram (Kudo & Richardson 2018).

    text -> normalize: "It's" -> "▁It's" -> segment: ▁It 's -> ids; unknown characters become bytes or <unk>

BPE repeatedly merges the two neighbours that form the piece with the best score; of equal scores, the leftmost. Unigram
takes the segmentation with the largest sum of scores, which are log-probabilities (Viterbi). The ids equal those of the
`sentencepiece` library on every text, including the effect of its sums in 32-bit floats; tests compare the two.
"""

import array
import heapq
from collections.abc import Sequence
from itertools import pairwise

import regex

from glassformer.text.sentencepiece.model_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    byte_pieces,
)
from glassformer.text.sentencepiece.normalizer import SPACE, Normalizer

UNKNOWN_PENALTY = 10.0  # score of the worst piece minus the score of an unknown character, in nats
_FLOAT_MIN = 1.1754943508222875e-38  # the library's lower bound for the largest score
Segment = tuple[int, int, int]  # id, start and end in the normalized text


class Segmenter:
    """The segmentation of texts by one model. Immutable."""

    def __init__(self, model: SentencePieceModel):
        """Prepare the model. Raises TokenizerError if the library would reject it too."""
        model.check()
        self.model, self.normalize = model, Normalizer(model)
        self.ids: dict[str, int] = {}  # pieces that text may become
        self.reserved: dict[str, int] = {}  # pieces that text never becomes
        for index, piece in enumerate(model.pieces):
            (self.reserved if piece.type in (UNKNOWN, CONTROL, BYTE) else self.ids)[piece.text] = index
        self.scores = [piece.score for piece in model.pieces]
        self.types = [piece.type for piece in model.pieces]
        self.unknown = self.types.index(UNKNOWN)
        self.byte_ids = [self.reserved[name] for name in byte_pieces()] if model.byte_fallback else None
        self._segment = self._bpe if model.kind == BPE else self._unigram
        self.max_length: dict[str, int] = {}  # first character -> length of the longest piece that begins with it
        for text in self.ids:
            self.max_length[text[0]] = max(len(text), self.max_length.get(text[0], 0))
        self.words = None  # if no piece has a space after a letter, words are segmented independently
        if model.kind == BPE and not any(SPACE in text.lstrip(SPACE) for text in self.ids):
            self.words = regex.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
        normal = [piece.score for piece in model.pieces if piece.type == NORMAL]
        self.unknown_score, self.max_score = (
            _f32(min(normal, default=0.0) - UNKNOWN_PENALTY),
            max([_FLOAT_MIN, *normal]),
        )

    def encode(self, text: str, *, prefix: bool = True, cache: dict[str, list[int]] | None = None) -> list[int]:
        """Return the ids of a text.

        Args:
            text: The text.
            prefix: As in `Normalizer`.
            cache: Ids of words that were segmented before; new words are added to it.
        """
        normal, _ = self.normalize(text, prefix=prefix)
        if self.words is None:
            return [index for index, _, _ in self._segments(normal)]
        cache = {} if cache is None else cache
        ids: list[int] = []
        for word in self.words.findall(normal):
            if word not in cache:
                cache[word] = [index for index, _, _ in self._segments(word)]
            new = cache[word]
            fuse_unknown = self.byte_ids is None and ids[-1:] == new[:1] == [self.unknown]
            ids += new[1:] if fuse_unknown else new
        return ids

    def encode_offsets(self, text: str, *, prefix: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and the range of characters of each."""
        normal, origin = self.normalize(text, prefix=prefix)
        segments = self._segments(normal)
        return [index for index, _, _ in segments], [(origin[start], origin[end]) for _, start, end in segments]

    def pieces(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """Return the pieces of a text, with unknown characters verbatim, and the range of characters of each."""
        normal, origin = self.normalize(text)
        return [
            (
                normal[start:end] if index == self.unknown else self.model.pieces[index].text,
                (origin[start], origin[end]),
            )
            for index, start, end in self._segments(normal)
        ]

    def _segments(self, normal: str) -> list[Segment]:
        """Segment the text; unknown characters become bytes, or a run of them becomes one <unk>."""
        out: list[Segment] = []
        for index, start, end in self._segment(normal):
            if index != self.unknown:
                out.append((index, start, end))
            elif self.byte_ids is not None:
                out += [(self.byte_ids[byte], start, end) for byte in normal[start:end].encode()]
            elif out and out[-1][0] == self.unknown:
                out[-1] = (index, out[-1][1], end)
            else:
                out.append((index, start, end))
        return out

    # ---- BPE

    def _bpe(self, normal: str) -> list[Segment]:
        """Merge the best pair of neighbours until there is none. The symbols are a linked list."""
        starts, frozen = self._symbols(normal)
        n = len(starts)
        ends = [*starts[1:], len(normal)]
        before, after = list(range(-1, n - 1)), [*range(1, n), -1]
        ids, scores, types = self.ids, self.scores, self.types
        left_lengths: dict[str, int] = {}  # unused piece -> length of its left part
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0 or left in frozen or right in frozen:
                return
            piece = normal[starts[left] : ends[right]]
            index = ids.get(piece)
            if index is not None:
                heapq.heappush(queue, (-scores[index], left, right, len(piece)))
                if types[index] == UNUSED:
                    left_lengths[piece] = ends[left] - starts[left]

        for pair in pairwise(range(n)):
            offer(*pair)
        merged = bytearray(n)
        while queue:
            _, left, right, length = heapq.heappop(queue)
            if merged[left] or merged[right] or ends[right] - starts[right] + ends[left] - starts[left] != length:
                continue  # outdated: one of the two was merged with another symbol
            ends[left], after[left], merged[right] = ends[right], after[right], 1
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        out: list[Segment] = []
        at = 0 if n else -1
        while at >= 0:
            self._split_unused(normal, starts[at], ends[at], left_lengths, out)
            at = after[at]
        return out

    def _symbols(self, normal: str) -> tuple[list[int], set[int]]:
        """Return the starts of the initial symbols, and the indices of those that are never merged.

        Symbols are single characters, and user-defined pieces, which are not merged.
        """
        if self.normalize.user_defined is None:
            return list(range(len(normal))), set()
        starts, frozen, at = [], set(), 0
        while at < len(normal):
            match = self.normalize.user_defined.match(normal, at)
            if match:
                frozen.add(len(starts))
            starts.append(at)
            at = match.end() if match else at + 1
        return starts, frozen

    def _split_unused(
        self, normal: str, start: int, end: int, left_lengths: dict[str, int], out: list[Segment]
    ) -> None:
        """Append a symbol to `out`; split an unused piece into the parts that it was merged from."""
        todo = [(start, end)]
        while todo:
            start, end = todo.pop()
            piece = normal[start:end]
            index = self.reserved.get(piece, self.ids.get(piece, self.unknown))
            if self.types[index] == UNUSED and piece in left_lengths:
                middle = start + left_lengths[piece]
                todo += [(middle, end), (start, middle)]
            else:
                out.append((index, start, end))

    # ---- unigram

    def _unigram(self, normal: str) -> list[Segment]:
        """Return the best segmentation: for each position, find the best piece that ends there (Viterbi)."""
        n = len(normal)
        best, one = array.array("f", bytes(4 * (n + 1))), array.array("f", [0.0])  # 32-bit, as in the library
        start_of, id_of = [-1] * (n + 1), [self.unknown] * (n + 1)
        ids, scores, types, max_length = self.ids, self.scores, self.types, self.max_length
        for start, char in enumerate(normal):
            here, single = best[start], False
            for end in range(start + 1, min(start + max_length.get(char, 0), n) + 1):
                piece = normal[start:end]
                index = ids.get(piece)
                if index is None or types[index] == UNUSED:
                    continue
                if types[index] == USER_DEFINED:  # a bonus, so that it is always chosen
                    one[0] = len(piece.encode()) * self.max_score
                    candidate = one[0] - 0.1 + here
                else:
                    one[0] = scores[index] + here
                    candidate = one[0]
                if start_of[end] < 0 or candidate > best[end]:
                    best[end], start_of[end], id_of[end] = candidate, start, index
                single = single or end == start + 1
            if not single:
                one[0] = self.unknown_score + here
                if start_of[start + 1] < 0 or one[0] > best[start + 1]:
                    best[start + 1], start_of[start + 1], id_of[start + 1] = one[0], start, self.unknown
        out: list[Segment] = []
        end = n
        while end > 0:
            out.append((id_of[end], start_of[end], end))
            end = start_of[end]
        return out[::-1]


def _f32(value: float) -> float:
    return array.array("f", [value])[0]


def piece_bytes(model: SentencePieceModel) -> Sequence[bytes]:
    """Return the bytes of each piece; control pieces and <unk> stand for their own text."""

    def to_bytes(text: str, type: int) -> bytes:
        if type == BYTE:
            return bytes([int(text[3:5], 16)])
        return (text if type in (CONTROL, UNKNOWN) else text.replace(SPACE, " ")).encode()

    return [to_bytes(piece.text, piece.type) for piece in model.pieces]

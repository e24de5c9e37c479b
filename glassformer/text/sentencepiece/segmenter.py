"""SentencePiece's two ways to cut a text into pieces, and the tokenizer that they make (Kudo & Richardson 2018).

    text -> normalize: "It's" -> "▁It's" -> cut: ▁It 's -> ids; what no piece spells becomes bytes, or <unk>

BPE joins, again and again, the two neighbours that make the piece with the best score, the left one of equals.  Unigram
takes the cut whose scores, log-probabilities, add up to the most (Viterbi).  Same ids as the `sentencepiece` library on
every text, which tests tie: down to the rounding of its sums, which it keeps in 32-bit floats.
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

UNKNOWN_PENALTY = 10.0  # how much worse than the worst piece an unknown character is, in nats
_FLOAT_MIN = 1.1754943508222875e-38  # the library's "largest score" begins here, not at minus infinity
Cut = tuple[int, int, int]  # id, and where it begins and ends in the normalized text


class Segmenter:
    """A model that encodes.  Nothing in it changes after it was made."""

    def __init__(self, model: SentencePieceModel):
        """Raises TokenizerError when the model is not one that the library would take."""
        model.check()
        self.model, self.normalize = model, Normalizer(model)
        self.ids: dict[str, int] = {}  # of pieces that text may become
        self.reserved: dict[str, int] = {}
        for index, piece in enumerate(model.pieces):
            (self.reserved if piece.type in (UNKNOWN, CONTROL, BYTE) else self.ids)[piece.text] = index
        self.scores = [piece.score for piece in model.pieces]
        self.types = [piece.type for piece in model.pieces]
        self.unknown = self.types.index(UNKNOWN)
        self.bytes = [self.reserved[name] for name in byte_pieces()] if model.byte_fallback else None
        self.cut = self._bpe if model.kind == BPE else self._unigram
        self.reach: dict[str, int] = {}  # a first character -> the length of the longest piece that begins so
        for text in self.ids:
            self.reach[text[0]] = max(len(text), self.reach.get(text[0], 0))
        self.words = None  # where no piece has a space behind a letter, words are cut one by one
        if model.kind == BPE and not any(SPACE in text.lstrip(SPACE) for text in self.ids):
            self.words = regex.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
        normal = [piece.score for piece in model.pieces if piece.type == NORMAL]
        self.least, self.most = _f32(min(normal, default=0.0) - UNKNOWN_PENALTY), max([_FLOAT_MIN, *normal])

    def encode(self, text: str, *, prefix: bool = True, known: dict[str, list[int]] | None = None) -> list[int]:
        """The ids of a text.  prefix: as of `Normalizer`;  known: words that were cut before, to which it adds."""
        normal, _ = self.normalize(text, prefix=prefix)
        if self.words is None:
            return [index for index, _, _ in self._spelled(normal)]
        known = {} if known is None else known
        ids: list[int] = []
        for word in self.words.findall(normal):
            if word not in known:
                known[word] = [index for index, _, _ in self._spelled(word)]
            new = known[word]
            fused = self.bytes is None and ids[-1:] == new[:1] == [self.unknown]
            ids += new[1:] if fused else new
        return ids

    def encode_offsets(self, text: str, *, prefix: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and the characters that each covers."""
        normal, origin = self.normalize(text, prefix=prefix)
        cuts = self._spelled(normal)
        return [index for index, _, _ in cuts], [(origin[start], origin[end]) for _, start, end in cuts]

    def pieces(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """The pieces of a text as they are spelled, those that the model lacks too, and the characters of each."""
        normal, origin = self.normalize(text)
        spelled = lambda cut: normal[cut[1] : cut[2]] if cut[0] == self.unknown else self.model.pieces[cut[0]].text  # noqa: E731
        return [(spelled(cut), (origin[cut[1]], origin[cut[2]])) for cut in self._spelled(normal)]

    def _spelled(self, normal: str) -> list[Cut]:
        """The cut text, where unknown characters are spelled in bytes, or else a run of them is one <unk>."""
        out: list[Cut] = []
        for index, start, end in self.cut(normal):
            if index != self.unknown:
                out.append((index, start, end))
            elif self.bytes is not None:
                out += [(self.bytes[byte], start, end) for byte in normal[start:end].encode()]
            elif out and out[-1][0] == self.unknown:
                out[-1] = (index, out[-1][1], end)
            else:
                out.append((index, start, end))
        return out

    # ---- BPE

    def _bpe(self, normal: str) -> list[Cut]:
        """Join the best pair until there is none.  Symbols are a chain; those that were joined are skipped over."""
        starts, frozen = self._symbols(normal)
        n = len(starts)
        ends = [*starts[1:], len(normal)]
        before, after = list(range(-1, n - 1)), [*range(1, n), -1]
        ids, scores, types = self.ids, self.scores, self.types
        halves: dict[str, int] = {}  # of an unused piece, the length of its left part
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0 or left in frozen or right in frozen:
                return
            piece = normal[starts[left] : ends[right]]
            index = ids.get(piece)
            if index is not None:
                heapq.heappush(queue, (-scores[index], left, right, len(piece)))
                if types[index] == UNUSED:
                    halves[piece] = ends[left] - starts[left]

        for pair in pairwise(range(n)):
            offer(*pair)
        gone = bytearray(n)
        while queue:
            _, left, right, length = heapq.heappop(queue)
            if gone[left] or gone[right] or ends[right] - starts[right] + ends[left] - starts[left] != length:
                continue  # one of the two was joined with another since
            ends[left], after[left], gone[right] = ends[right], after[right], 1
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        out: list[Cut] = []
        at = 0 if n else -1
        while at >= 0:
            self._undo(normal, starts[at], ends[at], halves, out)
            at = after[at]
        return out

    def _symbols(self, normal: str) -> tuple[list[int], set[int]]:
        """Where the first symbols begin: single characters, and user-defined pieces, which are never joined."""
        if self.normalize.defined is None:
            return list(range(len(normal))), set()
        starts, frozen, at = [], set(), 0
        while at < len(normal):
            found = self.normalize.defined.match(normal, at)
            if found:
                frozen.add(len(starts))
            starts.append(at)
            at = found.end() if found else at + 1
        return starts, frozen

    def _undo(self, normal: str, start: int, end: int, halves: dict[str, int], out: list[Cut]) -> None:
        """Write a symbol down; a piece marked unused is taken apart again as it was joined."""
        todo = [(start, end)]
        while todo:
            start, end = todo.pop()
            piece = normal[start:end]
            index = self.reserved.get(piece, self.ids.get(piece, self.unknown))
            if self.types[index] == UNUSED and piece in halves:
                middle = start + halves[piece]
                todo += [(middle, end), (start, middle)]
            else:
                out.append((index, start, end))

    # ---- unigram

    def _unigram(self, normal: str) -> list[Cut]:
        """The best path through the text: for each place, the best piece that ends there."""
        n = len(normal)
        best, one = array.array("f", bytes(4 * (n + 1))), array.array("f", [0.0])  # 32-bit, as in the library
        start_of, id_of = [-1] * (n + 1), [self.unknown] * (n + 1)
        ids, scores, types, reach = self.ids, self.scores, self.types, self.reach
        for start, char in enumerate(normal):
            here, single = best[start], False
            for end in range(start + 1, min(start + reach.get(char, 0), n) + 1):
                piece = normal[start:end]
                index = ids.get(piece)
                if index is None or types[index] == UNUSED:
                    continue
                if types[index] == USER_DEFINED:  # a bonus, so that it wins
                    one[0] = len(piece.encode()) * self.most
                    candidate = one[0] - 0.1 + here
                else:
                    one[0] = scores[index] + here
                    candidate = one[0]
                if start_of[end] < 0 or candidate > best[end]:
                    best[end], start_of[end], id_of[end] = candidate, start, index
                single = single or end == start + 1
            if not single:
                one[0] = self.least + here
                if start_of[start + 1] < 0 or one[0] > best[start + 1]:
                    best[start + 1], start_of[start + 1], id_of[start + 1] = one[0], start, self.unknown
        out: list[Cut] = []
        end = n
        while end > 0:
            out.append((id_of[end], start_of[end], end))
            end = start_of[end]
        return out[::-1]


def _f32(value: float) -> float:
    return array.array("f", [value])[0]


def piece_bytes(model: SentencePieceModel) -> Sequence[bytes]:
    """The bytes that each piece stands for; control pieces and <unk> stand for their names."""

    def spell(text: str, type: int) -> bytes:
        if type == BYTE:
            return bytes([int(text[3:5], 16)])
        return (text if type in (CONTROL, UNKNOWN) else text.replace(SPACE, " ")).encode()

    return [spell(piece.text, piece.type) for piece in model.pieces]

"""Byte-pair encoding, the readable definition (Sennrich et al. 2016, over bytes as in GPT-2).

Training looks at every word of a text as a row of bytes, and again and again joins the pair of neighbours that occurs
most often into a new token.  Encoding joins the pairs of a new word in the order in which training learned them:

    l o w e r      rank 0: l o -> lo
    lo w e r       rank 1: lo w -> low
    low e r        rank 5: e r -> er
    low er

Same input, same merges and same ids as the `tokenizers` library, which does the daily work; a test ties the two.
Only the standard library and `regex` (for \\p{L}) are used.  The one difference: each has the Unicode tables of its
own year, so that one may cut the newest letters from their neighbours where the other does not.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import regex

from glassformer.errors import TokenizerError
from glassformer.text.patterns import GPT2, PATTERNS, byte_alphabet

Pair = tuple[int, int]


def alphabet() -> list[bytes]:
    """The 256 single bytes, in the order of the characters that stand for them: the order of their ids."""
    shown = byte_alphabet()
    return [bytes([byte]) for byte in sorted(shown, key=shown.__getitem__)]


def train(
    texts: Iterable[str], vocab_size: int, *, special: Sequence[str] = (), pattern: str = GPT2
) -> list[tuple[bytes, bytes]]:
    """Learn the merges of `texts`, best first; each is the pair of tokens that becomes one.

    vocab_size counts the special tokens, the 256 bytes and one token per merge; there are fewer where the texts run
    out of pairs.  Of pairs that occur equally often, the one with the smaller ids goes first.
    """
    counted = Counter(word for text in texts for word in regex.findall(pattern, text))
    tokens = [name.encode() for name in special] + alphabet()
    ids = {token: index for index, token in enumerate(tokens)}
    words = [[ids[bytes([byte])] for byte in word.encode()] for word in counted]
    times = list(counted.values())

    count: Counter[Pair] = Counter()  # how often a pair occurs
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # the words it occurs in
    for number, word in enumerate(words):
        for pair in pairwise(word):
            count[pair] += times[number]
            where[pair].add(number)
    queue = [(-n, pair) for pair, n in count.items()]
    heapq.heapify(queue)

    merges = []
    while queue and len(tokens) < vocab_size:
        n, pair = heapq.heappop(queue)
        if -n != count[pair]:  # counted before other merges took some of these pairs away
            if count[pair] > 0:
                heapq.heappush(queue, (-count[pair], pair))
            continue
        left, right = tokens[pair[0]], tokens[pair[1]]
        if left + right not in ids:  # a special token may be spelled so
            ids[left + right] = len(tokens)
            tokens.append(left + right)
        merges.append((left, right))
        grown = set()
        for number, changed, by in _join(words, where.pop(pair), pair, ids[left + right]):
            count[changed] += by * times[number]
            if by > 0:
                where[changed].add(number)
                grown.add(changed)
        for changed in grown:
            if count[changed] > 0:
                heapq.heappush(queue, (-count[changed], changed))
    return merges


def _join(words: list[list[int]], at_words: set[int], pair: Pair, new: int) -> Iterator[tuple[int, Pair, int]]:
    """Make `pair` `new`, left to right, in each of the words numbered `at_words`.

    Yields, for each pair of neighbours that comes or goes by it, the word's number, the pair, and +1 or -1.
    """
    first, second = pair
    for number in at_words:
        word, at = words[number], 0
        while first in (rest := word[at:]):
            at += rest.index(first)
            if word[at + 1 : at + 2] == [second]:
                word[at : at + 2] = [new]
                if at > 0:
                    yield number, (word[at - 1], first), -1
                    yield number, (word[at - 1], new), +1
                if at + 1 < len(word):
                    yield number, (second, word[at + 1]), -1
                    yield number, (new, word[at + 1]), +1
            at += 1


@dataclass(frozen=True)
class MergeStep:
    """A word on its way: its parts, and the merge that led here (None at the start).

    rank: which merge, counted from 0;  at: the index in `parts` of the token it made.
    """

    parts: tuple[bytes, ...]
    rank: int | None = None
    at: int | None = None


@dataclass(frozen=True)
class BPE:
    """A trained byte-level BPE.

    merges: pairs of tokens, best first;  vocab: token -> id;  pattern: how text is cut into words.
    Text never becomes a special token here.  A word of n bytes takes about n² steps.
    """

    merges: Sequence[tuple[bytes, bytes]]
    vocab: dict[bytes, int]
    pattern: str = GPT2

    @classmethod
    def make(cls, merges: Sequence[tuple[bytes, bytes]], *, special: Sequence[str] = (), pattern: str = GPT2) -> "BPE":
        """Number the tokens as training does: the special ones, the 256 bytes, then each merge's."""
        made = (left + right for left, right in merges)
        tokens = dict.fromkeys([*(name.encode() for name in special), *alphabet(), *made])
        return cls(merges, {token: index for index, token in enumerate(tokens)}, pattern)

    @classmethod
    def from_json(cls, tokenizer_json: str) -> "BPE":
        """Read a `tokenizer.json`.  Raises TokenizerError when it is not byte-level BPE with a pattern of PATTERNS."""
        layout = json.loads(tokenizer_json)
        model, cut = layout["model"], layout["pre_tokenizer"] or {}
        regexes = [step["pattern"].get("Regex") for step in cut.get("pretokenizers", []) if step["type"] == "Split"]
        regexes += [GPT2] if cut.get("type") == "ByteLevel" and cut["use_regex"] else []
        plain = not (layout["normalizer"] or model.get("ignore_merges") or cut.get("add_prefix_space"))
        if model["type"] != "BPE" or len(regexes) != 1 or regexes[0] not in PATTERNS.values() or not plain:
            raise TokenizerError(f"not plain byte-level BPE with the pattern of {' or '.join(PATTERNS)}")
        to_byte = {char: byte for byte, char in byte_alphabet().items()}
        added = {token["content"] for token in layout["added_tokens"]}

        def spell(token: str) -> bytes:
            return token.encode() if token in added else bytes(to_byte[char] for char in token)

        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        vocab = {spell(token): index for token, index in model["vocab"].items()}
        return cls([(spell(left), spell(right)) for left, right in pairs], vocab, regexes[0])

    @cached_property
    def ranks(self) -> dict[tuple[bytes, bytes], int]:
        """Pair -> its place among the merges, 0 the first."""
        return {pair: rank for rank, pair in enumerate(self.merges)}

    def words(self, text: str) -> list[str]:
        """Cut `text` where merges may not cross; joined again, the words are the text."""
        return regex.findall(self.pattern, text)

    def merge_steps(self, word: str | bytes) -> Iterator[MergeStep]:
        """Encode one word as one would by hand: its bytes, then after each merge the parts that are left.

        Each step joins the pair that was learned first; where it occurs twice, the left one.
        """
        data = word.encode() if isinstance(word, str) else word
        parts = [bytes([byte]) for byte in data]
        yield MergeStep(tuple(parts))
        never = len(self.merges)
        ranks = [self.ranks.get(pair, never) for pair in pairwise(parts)]  # of each gap
        while ranks and (rank := min(ranks)) < never:
            at = ranks.index(rank)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            del ranks[at]
            for gap in range(max(at - 1, 0), min(at + 1, len(ranks))):  # the new token has new neighbours
                ranks[gap] = self.ranks.get((parts[gap], parts[gap + 1]), never)
            yield MergeStep(tuple(parts), rank, at)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`.  Raises UnicodeEncodeError for a lone surrogate."""
        known: dict[str, list[int]] = {}  # a text repeats its words
        ids = []
        for word in self.words(text):
            if word not in known:
                *_, last = self.merge_steps(word)
                known[word] = [self.vocab[part] for part in last.parts]
            ids += known[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.  Raises KeyError for an unknown id."""
        return b"".join(self.tokens[index] for index in ids).decode("utf-8", "replace")

    @cached_property
    def tokens(self) -> dict[int, bytes]:
        """Id -> the bytes it stands for."""
        return {index: token for token, index in self.vocab.items()}

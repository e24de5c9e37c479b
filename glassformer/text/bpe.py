"""Byte-pair encoding: the readable definition (Sennrich et al. 2016, over bytes as in GPT-2).

Training treats every word of a text as a sequence of bytes. It repeatedly merges the most frequent pair of neighbours
into a new token. Encoding merges the pairs of a new word in the order in which training learned them:

    l o w e r      rank 0: l o -> lo
    lo w e r       rank 1: lo w -> low
    low e r        rank 5: e r -> er
    low er

The same input gives the same merges and ids as the `tokenizers` library, which production code uses; a test compares
the two. This module needs only the standard library and `regex` (for \\p{L}). The one exception are the newest letters
of Unicode: each library has its own version of the Unicode tables and may split words differently at such letters.
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


def byte_tokens() -> list[bytes]:
    """Return the 256 single bytes in the order of their ids: the order of the characters that represent them."""
    to_char = byte_alphabet()
    return [bytes([byte]) for byte in sorted(to_char, key=to_char.__getitem__)]


def train(
    texts: Iterable[str], vocab_size: int, *, special_tokens: Sequence[str] = (), pattern: str = GPT2
) -> list[tuple[bytes, bytes]]:
    """Learn the merges of `texts`.

    Args:
        texts: The training texts.
        vocab_size: Number of special tokens, plus the 256 bytes, plus one token per merge. There are fewer tokens if
            the texts run out of pairs.
        special_tokens: They take the first ids.
        pattern: The split pattern; merges never cross its word boundaries.

    Returns:
        The merges in the order in which they were learned. Of equally frequent pairs, the one with the smaller ids is
        merged first.
    """
    word_counts = Counter(word for text in texts for word in regex.findall(pattern, text))
    tokens = [name.encode() for name in special_tokens] + byte_tokens()
    ids = {token: index for index, token in enumerate(tokens)}
    words = [[ids[bytes([byte])] for byte in word.encode()] for word in word_counts]
    counts = list(word_counts.values())

    pair_counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> indices of the words that contain it
    for number, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += counts[number]
            words_with[pair].add(number)
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)

    merges = []
    while queue and len(tokens) < vocab_size:
        negative_count, pair = heapq.heappop(queue)
        if -negative_count != pair_counts[pair]:  # outdated: other merges removed some of these pairs
            if pair_counts[pair] > 0:
                heapq.heappush(queue, (-pair_counts[pair], pair))
            continue
        left, right = tokens[pair[0]], tokens[pair[1]]
        if left + right not in ids:  # a special token may have the same spelling
            ids[left + right] = len(tokens)
            tokens.append(left + right)
        merges.append((left, right))
        increased = set()
        for number, changed, by in _merge_pair(words, words_with.pop(pair), pair, ids[left + right]):
            pair_counts[changed] += by * counts[number]
            if by > 0:
                words_with[changed].add(number)
                increased.add(changed)
        for changed in increased:
            if pair_counts[changed] > 0:
                heapq.heappush(queue, (-pair_counts[changed], changed))
    return merges


def _merge_pair(words: list[list[int]], numbers: set[int], pair: Pair, new: int) -> Iterator[tuple[int, Pair, int]]:
    """Replace `pair` by the token `new`, left to right, in the words with these indices.

    Yields (word index, pair of neighbours, +1 or -1) for each pair that appears or disappears.
    """
    first, second = pair
    for number in numbers:
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
    """The state of a word after a merge.

    parts: the tokens of the word
    rank: rank of the merge, counted from 0; None for the initial state
    at: index in `parts` of the merged token; None for the initial state
    """

    parts: tuple[bytes, ...]
    rank: int | None = None
    at: int | None = None


@dataclass(frozen=True)
class BPE:
    """A trained byte-level BPE. Text never becomes a special token. Encoding a word of n bytes takes O(n²) steps.

    merges: pairs of tokens, in the order in which they were learned
    vocab: token -> id
    pattern: the split pattern
    """

    merges: Sequence[tuple[bytes, bytes]]
    vocab: dict[bytes, int]
    pattern: str = GPT2

    @classmethod
    def from_merges(
        cls, merges: Sequence[tuple[bytes, bytes]], *, special_tokens: Sequence[str] = (), pattern: str = GPT2
    ) -> "BPE":
        """Number the tokens as training does: special tokens, then the 256 bytes, then one token per merge."""
        merged = (left + right for left, right in merges)
        tokens = dict.fromkeys([*(name.encode() for name in special_tokens), *byte_tokens(), *merged])
        return cls(merges, {token: index for index, token in enumerate(tokens)}, pattern)

    @classmethod
    def from_json(cls, tokenizer_json: str) -> "BPE":
        """Parse a `tokenizer.json`.

        Raises:
            TokenizerError: It is not plain byte-level BPE with one of PATTERNS.
        """
        layout = json.loads(tokenizer_json)
        model, split = layout["model"], layout.get("pre_tokenizer") or {}
        regexes = [step["pattern"].get("Regex") for step in split.get("pretokenizers", []) if step["type"] == "Split"]
        regexes += [GPT2] if split.get("type") == "ByteLevel" and split.get("use_regex", True) else []
        plain = not (layout.get("normalizer") or model.get("ignore_merges") or split.get("add_prefix_space"))
        if model.get("type") != "BPE" or len(regexes) != 1 or regexes[0] not in PATTERNS.values() or not plain:
            raise TokenizerError(f"not plain byte-level BPE with the pattern of {' or '.join(PATTERNS)}")
        to_byte = {char: byte for byte, char in byte_alphabet().items()}
        added = {token["content"] for token in layout.get("added_tokens", [])}

        def to_bytes(token: str) -> bytes:
            return token.encode() if token in added else bytes(to_byte[char] for char in token)

        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        vocab = {to_bytes(token): index for token, index in model["vocab"].items()}
        return cls([(to_bytes(left), to_bytes(right)) for left, right in pairs], vocab, regexes[0])

    @cached_property
    def ranks(self) -> dict[tuple[bytes, bytes], int]:
        """Pair -> its rank, 0 for the merge that was learned first."""
        return {pair: rank for rank, pair in enumerate(self.merges)}

    def words(self, text: str) -> list[str]:
        """Split `text` into words, which merges do not cross; the words, joined, are the text."""
        return regex.findall(self.pattern, text)

    def merge_steps(self, word: str | bytes) -> Iterator[MergeStep]:
        """Encode one word step by step: yield its bytes, then the parts after each merge.

        Each step merges the pair with the lowest rank, and its leftmost occurrence.
        """
        data = word.encode() if isinstance(word, str) else word
        parts = [bytes([byte]) for byte in data]
        yield MergeStep(tuple(parts))
        never = len(self.merges)
        ranks = [self.ranks.get(pair, never) for pair in pairwise(parts)]  # of each pair of neighbours
        while ranks and (rank := min(ranks)) < never:
            at = ranks.index(rank)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            del ranks[at]
            for gap in range(max(at - 1, 0), min(at + 1, len(ranks))):  # the new token has new neighbours
                ranks[gap] = self.ranks.get((parts[gap], parts[gap + 1]), never)
            yield MergeStep(tuple(parts), rank, at)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises UnicodeEncodeError for a lone surrogate."""
        cache: dict[str, list[int]] = {}  # texts repeat words
        ids = []
        for word in self.words(text):
            if word not in cache:
                *_, last = self.merge_steps(word)
                cache[word] = [self.vocab[part] for part in last.parts]
            ids += cache[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; invalid UTF-8 becomes U+FFFD. Raises KeyError for an unknown id."""
        return b"".join(self.tokens[index] for index in ids).decode("utf-8", "replace")

    @cached_property
    def tokens(self) -> dict[int, bytes]:
        """Id -> the bytes of the token."""
        return {index: token for token, index in self.vocab.items()}

"""What a model wrote, beside what it should have written: exact match, by length too, tokens, BLEU and chrF."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from glassformer.errors import DataError

EDGES = (8, 16, 32, 64, 128)  # the longest source of each bucket but the last


@dataclass(frozen=True)
class LengthBucket:
    """Pairs whose sources are `least` to `most` long: how many, and the share (0 to 1) that is exactly right."""

    least: int
    most: int
    count: int
    exact: float


@dataclass(frozen=True)
class Seq2SeqScores:
    """What was written, measured.

    exact: share (0 to 1) of texts that equal their reference, character by character. token_accuracy: `token_accuracy`
    of the texts' characters, or of the tokens that were given. bleu, chrf: of the whole set, 0 to 100 (Papineni et al.
    2002; Popović 2015), and how sacrebleu computed each, for others to repeat. BLEU counts runs of up to four words: it
    is 0 where no reference has four. by_length: exact match by the sources' length, shortest first.
    """

    count: int
    exact: float
    token_accuracy: float
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    by_length: tuple[LengthBucket, ...]


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str],
    lengths: Sequence[int],
    *,
    edges: Sequence[int] = EDGES,
    hypothesis_tokens: Sequence[Sequence[Hashable]] | None = None,
    reference_tokens: Sequence[Sequence[Hashable]] | None = None,
) -> Seq2SeqScores:
    """What a model wrote for each source, against the one right answer.

    lengths: of the sources, in whatever unit is to be shown (characters or tokens). edges: see `exact_by_length`.
    written_tokens, reference_tokens: both as tokens; characters count where they are not given.
    Raises DataError when there is nothing to score, or when the lists are not equally long.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    accuracy = token_accuracy(hypothesis_tokens or hypotheses, reference_tokens or references)
    exact = [a == b for a, b in zip(hypotheses, references, strict=True)]
    by_length = exact_by_length(exact, lengths, edges)
    bleu, chrf = BLEU(), CHRF()
    return Seq2SeqScores(
        count=len(exact),
        exact=sum(exact) / len(exact),
        token_accuracy=accuracy,
        bleu=bleu.corpus_score(list(hypotheses), [list(references)]).score,
        chrf=chrf.corpus_score(list(hypotheses), [list(references)]).score,
        bleu_signature=bleu.get_signature().format(),
        chrf_signature=chrf.get_signature().format(),
        by_length=by_length,
    )


def token_accuracy(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> float:
    """The share (0 to 1) of places that hold the reference's token: what is missing or too much counts as wrong.

    Raises DataError when there is nothing to score, or when the lists are not equally long.
    """
    _check(len(references), written=len(hypotheses))
    right = sum(a == b for w, r in zip(hypotheses, references, strict=True) for a, b in zip(w, r, strict=False))
    return right / max(1, sum(max(len(w), len(r)) for w, r in zip(hypotheses, references, strict=True)))


def exact_by_length(
    exact: Sequence[bool], lengths: Sequence[int], edges: Sequence[int] = EDGES
) -> tuple[LengthBucket, ...]:
    """The share that is exactly right, by the length of the source.

    edges: rising; a bucket reaches from just above one edge to the next, the last one to the longest source. Buckets
    without a source are left out. Raises DataError as `token_accuracy` does, and for edges that do not rise from 1 or
    more.
    """
    _check(len(exact), lengths=len(lengths))
    if list(edges) != sorted(set(edges)) or (edges and edges[0] < 1):
        raise DataError(f"edges must rise, from 1 or more, got {list(edges)}")
    bounds = [0, *(edge for edge in edges if edge < max(lengths)), max(lengths)]
    buckets = []
    for below, most in pairwise(bounds):
        here = [right for right, length in zip(exact, lengths, strict=True) if below < length <= most]
        if here:
            buckets.append(LengthBucket(below + 1, most, len(here), sum(here) / len(here)))
    return tuple(buckets)


def _check(count: int, **others: int) -> None:
    for name, n in others.items():
        if n != count:
            raise DataError(f"there are {n:,} {name} for {count:,} references")
    if not count:
        raise DataError("there is nothing to score: no pair was given")

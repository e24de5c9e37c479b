"""Score generated targets: exact match (also by source length), token accuracy, BLEU and chrF."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glassformer.errors import ConfigError, DataError

EDGES = (8, 16, 32, 64, 128)  # longest source of each bucket except the last


@dataclass(frozen=True)
class LengthBucket:
    """The number of sources of length `least` to `most`, and the fraction with an exact match."""

    least: int
    most: int
    count: int
    exact: float


@dataclass(frozen=True)
class Seq2SeqScores:
    """The scores of generated targets.

    exact: fraction of texts equal to their reference. token_accuracy: of characters, or of the given tokens.
    bleu, chrf: corpus scores from 0 to 100 (Papineni et al. 2002; Popović 2015) with their sacrebleu signatures; None
    where they are not computed. BLEU is 0 where no reference has four words.
    by_length: exact match by source length, shortest first.
    """

    count: int
    exact: float
    token_accuracy: float
    by_length: tuple[LengthBucket, ...]
    bleu: float | None = None
    chrf: float | None = None
    bleu_signature: str | None = None
    chrf_signature: str | None = None


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str],
    lengths: Sequence[int],
    *,
    edges: Sequence[int] = EDGES,
    hypothesis_tokens: Sequence[Sequence[Hashable]] | None = None,
    reference_tokens: Sequence[Sequence[Hashable]] | None = None,
    bleu: bool = True,
) -> Seq2SeqScores:
    """Score the generated text of each source against its reference.

    Args:
        lengths: of the sources, in any unit.
        edges: see `exact_by_length`.
        hypothesis_tokens, reference_tokens: both as tokens for the token accuracy; by default characters.
        bleu: compute BLEU and chrF, which needs sacrebleu.

    Raises:
        DataError: there is nothing to score, or the lists differ in length.
        ConfigError: sacrebleu is not installed.
    """

    accuracy = token_accuracy(hypothesis_tokens or hypotheses, reference_tokens or references)
    exact = [a == b for a, b in zip(hypotheses, references, strict=True)]
    by_length = exact_by_length(exact, lengths, edges)
    return Seq2SeqScores(
        count=len(exact),
        exact=sum(exact) / len(exact),
        token_accuracy=accuracy,
        by_length=by_length,
        **(_corpus_scores(hypotheses, references) if bleu else {}),
    )


def _corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise ConfigError("BLEU and chrF need sacrebleu: pip install 'glassformer[bleu]'") from None
    found: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        found[name] = metric.corpus_score(list(hypotheses), [list(references)]).score
        found[f"{name}_signature"] = metric.get_signature().format()
    return found


def token_accuracy(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> float:
    """Return the fraction of positions with the reference's token; missing and extra tokens count as wrong.

    Raises DataError when there is nothing to score, or when the lists differ in length.
    """
    _check(len(references), hypotheses=len(hypotheses))
    right = sum(a == b for w, r in zip(hypotheses, references, strict=True) for a, b in zip(w, r, strict=False))
    return right / max(1, sum(max(len(w), len(r)) for w, r in zip(hypotheses, references, strict=True)))


def exact_by_length(
    exact: Sequence[bool], lengths: Sequence[int], edges: Sequence[int] = EDGES
) -> tuple[LengthBucket, ...]:
    """Return the fraction of exact matches by source length, without empty buckets.

    edges: increasing; a bucket ends at each edge, and the last one at the longest source.
    Raises DataError as `token_accuracy` does, and for edges that do not increase or start below 1.
    """
    _check(len(exact), lengths=len(lengths))
    if list(edges) != sorted(set(edges)) or (edges and edges[0] < 1):
        raise DataError(f"edges must increase and start at 1 or more, got {list(edges)}")
    bounds = [0, *(edge for edge in edges if edge < max(lengths)), max(lengths)]
    buckets = []
    for below, most in pairwise(bounds):
        bucket = [match for match, length in zip(exact, lengths, strict=True) if below < length <= most]
        if bucket:
            buckets.append(LengthBucket(below + 1, most, len(bucket), sum(bucket) / len(bucket)))
    return tuple(buckets)


def _check(count: int, **others: int) -> None:
    for name, n in others.items():
        if n != count:
            raise DataError(f"there are {n:,} {name} for {count:,} references")
    if not count:
        raise DataError("there is nothing to score: give at least one example")

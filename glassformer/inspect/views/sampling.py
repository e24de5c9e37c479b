"""From logits to the next token, stage by stage: temperature, top-k, top-p, min-p. View 11."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import torch

from glassformer.generate.sampling import Sampling, check_number, choose, stages
from glassformer.inspect.trace.recompute import larger
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import resolve_position
from glassformer.inspect.views.result import Named, named


@dataclass(frozen=True)
class Stage:
    """The distribution after one stage: the number of tokens left, and the probabilities of the displayed tokens."""

    name: str
    remaining: int
    probs: tuple[float, ...]


@dataclass(frozen=True)
class SamplingView:
    """The result of `sampling`.

    tokens: the most likely next tokens, with their logits; each stage has their probabilities. draws: the number of
    times that each was drawn in `n_draws` draws; other_draws: the number of draws of all other tokens.
    """

    position: int
    tokens: tuple[Named, ...]
    stages: tuple[Stage, ...]
    n_draws: int
    draws: tuple[int, ...]
    other_draws: int
    receipt: Receipt


@torch.no_grad()
def sampling(
    t: Trace,
    *,
    position: int = -1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    top: int = 20,
    draws: int = 0,
    seed: int = 0,
) -> SamplingView:
    """The distribution of the token after `position`, stage by stage, and `draws` draws from the last stage.

    Raises:
        RequestError: A setting is out of range, or has no effect with another.
    """
    position = resolve_position(t, "position", position)
    check_number("top", top, 1, 1000)
    check_number("draws", draws, 0, 100_000)
    settings = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    value = t.at("final.logits", [position])
    logits = value.tensor.float()
    if t.lm.tokenizer is not None:
        logits = logits[:, : t.lm.tokenizer.vocab_size]  # drop the padding of the vocabulary
    best = logits[0].topk(min(top, logits.shape[-1]))
    ids = best.indices.tolist()
    after = {"model": logits}
    after |= {"temperature": _likeliest(logits)} if settings.greedy else stages(logits, settings)
    stage_list = tuple(
        Stage(name, int((value > -torch.inf).sum()), tuple(value.softmax(-1)[0, best.indices].tolist()))
        for name, value in after.items()
    )
    *_, final = after.values()
    generator = random.Random(seed)
    drawn: Counter[int] = Counter()
    for begin in range(0, draws, 1000):
        n = min(1000, draws - begin)
        drawn.update(choose(logits.expand(n, -1), settings, [generator] * n).tolist())
    counts = tuple(drawn[id] for id in ids)
    receipt = Receipt(
        f"t.sampling(position={position}, temperature={temperature}, top_k={top_k}, top_p={top_p}, min_p={min_p}, "
        f"top={top}, draws={draws}, seed={seed})",
        f"{value.identity}; |sum of the last stage's probabilities - 1|; the stages are those of generation",
        None if value.error is None else larger(value.error, abs(1 - final.double().softmax(-1).sum().item())),
    )
    return SamplingView(
        position, named(t.lm, best.indices, best.values), stage_list, draws, counts, draws - sum(counts), receipt
    )


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Set all but the largest logit to -inf (temperature 0)."""
    return torch.full_like(logits, -torch.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)

"""Choose the next token from logits, in stages.

logits -> bias -> penalties -> temperature -> top-k -> top-p -> min-p -> softmax -> draw
                               (0: the largest logit, no sampling)
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.plain_numbers import make_fields_plain, plain_number

SMALL_TEMPERATURE = 1e-5  # with a lower one, logits / temperature could overflow: divide the distance to the largest
MIN_TEMPERATURE = 1e-30  # below the smallest distance of two logits: a lower one chooses the same tokens


def check_number(
    name: str, value: Any, low: int | float, high: int | float, *, above: bool = False, optional: bool = False
) -> None:
    """Raise RequestError unless low <= value <= high (low < value if `above`), or value is None and `optional`.

    Numbers of NumPy and torch are allowed.
    """
    value = plain_number(value)
    if value is None and optional:
        return
    integer = isinstance(low, int) and isinstance(high, int)
    types = int if integer else int | float
    if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high or (above and value == low):
        kind, start = ("a whole number", "from") if integer else ("a number", "above" if above else "from")
        end = "" if high in (math.inf, 1 << 31) else f" to {high if integer else format(high, 'g')}"
        raise RequestError(f"{name} must be {kind} {start} {low:g}{end}, got {value!r}", param=name.partition("[")[0])


@dataclass(frozen=True)
class Sampling:
    """The options of sampling: how the next token is chosen from the logits.

    temperature: divides the logits; 0 always takes the most likely token. top_k: sample from the k most likely tokens.
    top_p: sample from the smallest set, of at least one token, whose probabilities sum to p or more (Holtzman et al.
    2020). min_p: sample from tokens at least p times as likely as the most likely one. repetition_penalty: divides the
    positive logits of tokens in the prompt or output, and multiplies negative ones (Keskar et al. 2019).
    presence_penalty, frequency_penalty: subtracted from the logits of tokens in the output, once, or per occurrence.
    logit_bias: added, by token id. seed: of the random numbers; None draws a random seed, which is reported.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None

    def __post_init__(self):
        make_fields_plain(self)
        check_number("temperature", self.temperature, 0.0, 100.0)
        check_number("top_k", self.top_k, 1, 1 << 31, optional=True)
        check_number("top_p", self.top_p, 0.0, 1.0, optional=True)
        check_number("min_p", self.min_p, 0.0, 1.0, optional=True)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        check_number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        check_number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        check_number("seed", self.seed, 0, (1 << 63) - 1, optional=True)
        bias = {} if self.logit_bias is None else self.logit_bias
        if not isinstance(bias, Mapping) or any(type(token) is not int for token in bias):
            raise RequestError(f"logit_bias must map token ids to numbers, got {bias!r}", param="logit_bias")
        for token, value in bias.items():
            check_number(f"logit_bias[{token}]", value, -1000.0, 1000.0)
        if self.greedy:
            for name, off in (("top_k", None), ("top_p", 1), ("min_p", 0), ("seed", None)):
                if getattr(self, name) not in (None, off):
                    raise RequestError(
                        f"{name} has no effect at temperature 0, which takes the most likely token", param=name
                    )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def seeded(self) -> Sampling:
        """Return the options with a seed, which is drawn if it is None; temperature 0 needs none."""
        return self if self.greedy or self.seed is not None else replace(self, seed=secrets.randbits(32))

    @property
    def counts_tokens(self) -> bool:
        """Whether the choice of a token depends on the counts of earlier tokens."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def adjust(
    logits: Float[Tensor, "R V"],
    sampling: Sampling,
    in_prompt: Int[Tensor, "R V"] | None = None,
    in_output: Int[Tensor, "R V"] | None = None,
) -> Float[Tensor, "R V"]:
    """Return the logits after bias and penalties; the counts are of each token in the prompt and the output."""
    if sampling.logit_bias:
        tokens = torch.tensor(list(sampling.logit_bias), device=logits.device)
        bias = torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        logits = logits.index_add(-1, tokens, bias.expand(len(logits), -1))
    if in_prompt is not None and in_output is not None:
        penalty = sampling.repetition_penalty
        seen = (in_prompt + in_output) > 0
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        logits = logits - sampling.presence_penalty * (in_output > 0) - sampling.frequency_penalty * in_output
    return logits


def stages(logits: Float[Tensor, "R V"], sampling: Sampling) -> dict[str, Float[Tensor, "R V"]]:
    """Return the adjusted logits after each stage, by name; excluded tokens are at -inf. Not for temperature 0."""
    if sampling.temperature < SMALL_TEMPERATURE:
        logits = logits - logits.amax(-1, keepdim=True)
    results = {"temperature": logits / max(sampling.temperature, MIN_TEMPERATURE)}
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits = _last(results)
        least = logits.topk(sampling.top_k, -1).values[..., -1:]
        results["top_k"] = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = _last(results).sort(-1, descending=True)
        probs = ordered.softmax(-1)
        reached = probs.cumsum(-1) - probs >= sampling.top_p  # the more likely tokens alone reach top_p
        reached[..., 0] = False
        results["top_p"] = ordered.masked_fill(reached, -math.inf).gather(-1, order.argsort(-1))
    if sampling.min_p:
        logits = _last(results)
        least = logits.max(-1, keepdim=True).values + math.log(sampling.min_p)
        results["min_p"] = logits.masked_fill(logits < least, -math.inf)
    return results


def _last(results: dict[str, Tensor]) -> Tensor:
    return next(reversed(results.values()))


def choose(logits: Float[Tensor, "R V"], sampling: Sampling, generators: Sequence[random.Random]) -> Int[Tensor, "R"]:
    """Choose one token per sequence from adjusted logits.

    Each sequence draws one number per token from its own generator, so its tokens do not depend on the batch.
    """
    if sampling.greedy:
        return logits.argmax(-1)
    probs = _last(stages(logits.float(), sampling)).softmax(-1)
    reached = probs.double().cumsum(-1)  # [R, V]
    draws = torch.tensor([g.random() for g in generators], dtype=torch.float64, device=probs.device)
    threshold = draws[:, None] * reached[:, -1:]
    index = torch.searchsorted(reached, threshold, right=True).clamp(max=probs.shape[-1] - 1)  # [R, 1]
    likeliest = probs.argmax(-1, keepdim=True)
    return torch.where(probs.gather(-1, index) > 0, index, likeliest).squeeze(
        -1
    )  # parallel sums may round past the end

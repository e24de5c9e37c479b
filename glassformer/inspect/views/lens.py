"""The logit lens: the residual stream before each block, and after the last, through the final norm and the head.

"interpreting GPT: the logit lens" (nostalgebraist 2020). The last row is the model's own prediction.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from glassformer.errors import RequestError
from glassformer.inspect.trace.recompute import LOGIT_CHUNK, SAME_LOGITS, check_last_logits, final_norm, head
from glassformer.inspect.trace.trace import Receipt, Trace, token_text
from glassformer.inspect.views.result import last


@dataclass(frozen=True)
class LikelyToken:
    """A candidate next token."""

    id: int
    token: str
    logprob: float


@dataclass(frozen=True)
class LensRow:
    """The most likely next tokens at each position, from the point `name`."""

    name: str
    top: tuple[tuple[LikelyToken, ...], ...]


@dataclass(frozen=True)
class Lens:
    """The result of `lens`: one row per depth, from the input of block 0 to the output of the last block."""

    rows: tuple[LensRow, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    receipt: Receipt


def lens(t: Trace, *, top: int = 5, position: int | tuple[int, ...] | None = None) -> Lens:
    """The `top` most likely next tokens, from the residual stream before each block and after the last.

    Args:
        position: One position or several; None: all.

    Returns:
        L + 1 rows of T positions. The last row is the model's own prediction.
    """
    return last(lens_rows(t, top=top, position=position))


def lens_rows(
    t: Trace, *, top: int = 5, position: int | tuple[int, ...] | None = None
) -> Generator[LensRow, None, Lens]:
    """Yield the rows of `lens` as they are computed; return the complete `Lens`."""
    size = min(t.config.vocab_size, 1024)
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= size:
        raise RequestError(f"top must be a whole number from 1 to {size}, got {top!r}", param="top")
    at = t.indices("position", position)
    if at is not None and not len(at):
        raise RequestError("position must name at least one token, got none", param="position")
    names = [f"blocks.{i}.resid_pre" for i in range(t.config.n_layers)] + [f"blocks.{t.config.n_layers - 1}.resid_post"]
    rows: list[LensRow] = []
    for name in names:
        rows.append(_row(t, name, at, top))
        yield rows[-1]
    positions = list(range(len(t))) if at is None else at.tolist()
    code = f"t.lens(top={top}{'' if position is None else f', position={position}'})"
    end = t.captured.positions[-1:]
    normed = final_norm(t.captured, t.captured.require(names[-1], end), end)
    error = check_last_logits(t.captured, head(t.captured, normed, end)[0])
    return Lens(tuple(rows), tuple(positions), tuple(t.tokens[i] for i in positions), Receipt(code, SAME_LOGITS, error))


@torch.no_grad()
def _row(t: Trace, name: str, at: torch.Tensor | None, top: int) -> LensRow:
    where, found = t.captured.positions if at is None else at, []
    resid = t.captured.require(name, at)
    for some, at_these in zip(resid.split(LOGIT_CHUNK), where.split(LOGIT_CHUNK), strict=True):
        logprobs = head(t.captured, final_norm(t.captured, some, at_these), at_these).float().log_softmax(-1)
        best = logprobs.topk(top, -1)
        found += zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return LensRow(name, tuple(tuple(_likely(t, *pair) for pair in zip(*pairs, strict=True)) for pairs in found))


def _likely(t: Trace, token: int, logprob: float) -> LikelyToken:
    return LikelyToken(token, token_text(t.lm.tokenizer, token), logprob)

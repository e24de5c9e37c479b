"""Process a known text in chunks through a cache: memory grows with its length, not with its square.

ids [1, T] -> [0 .. 511] -> [512 .. 1023] -> ...    each chunk attends to the cached keys and values before it
              hidden        hidden                  [1, chunk, D], as in one forward pass over all tokens
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.config import AttentionConfig, EncoderConfig, ModelConfig
from glassformer.kernels.native.attention import attend_native
from glassformer.nn.attend import has_fused_product
from glassformer.nn.protocols import EncodedSource, Tap
from glassformer.nn.step import Step

PREFILL_CHUNK = 512  # tokens per forward pass: bounds memory, and the time until an interrupt
MAX_SCORES = 1 << 24  # scores of one layer and forward pass, where the implementation stores them: 64 MB in float32


def chunk_size(
    config: ModelConfig | EncoderConfig, n_keys: int, n_sequences: int = 1, edits_scores: bool = False
) -> int:
    """Return how many tokens of each sequence one forward pass processes at most, given the length of the text.

    Layers with a softcap, sinks or a relative bias, and edits of scores, store the scores of all heads.
    """
    storing = (a for a in _attentions(config) if edits_scores or _stores_scores(config, a))
    n_heads = max((a.n_heads for a in storing), default=0)
    most = MAX_SCORES // (n_sequences * n_heads * max(n_keys, 1)) if n_heads else PREFILL_CHUNK
    return max(min(PREFILL_CHUNK, most), 1)


def has_large_masks(config: ModelConfig | EncoderConfig, n: int) -> bool:
    """Return whether one forward pass over a text of `n` tokens stores n x n numbers: a mask, or scores."""
    return any((a.window or n) < n or _stores_scores(config, a) for a in _attentions(config))


def _attentions(config: ModelConfig | EncoderConfig) -> list[AttentionConfig]:
    return [one for layer in config.layers for one in (layer.attention, layer.cross) if one is not None]


def _stores_scores(config: ModelConfig | EncoderConfig, attention: AttentionConfig) -> bool:
    return config.relative is not None or not has_fused_product(attention.softcap, attention.sinks or None)


def run_chunks(
    model: Any,
    ids: Int[Tensor, "B T"],
    *,
    source: EncodedSource | None = None,
    tap: Callable[[Step], Tap | None] | None = None,
    before_forward: Callable[[], None] | None = None,
    size: int | None = None,
) -> Iterator[tuple[Step, Float[Tensor, "B N D"]]]:
    """Run a decoder over complete texts of one length; yield the step of each chunk and its normalized last states.

    Args:
        tap: makes the tap of each chunk's forward pass.
        before_forward: called before each forward pass; an exception from it ends the iteration.
        size: tokens per chunk; None chooses.
    """
    n_sequences, n = ids.shape
    size = chunk_size(model.config, n, n_sequences) if size is None else size
    cache = DenseCache.of(model.config, n_sequences, n, ids.device, source, [n] * n_sequences) if size < n else None
    for part in ids.split(size, 1):
        if before_forward is not None:
            before_forward()
        if cache is None:
            step = Step.of(part, source=source, attend=attend_native)
        else:
            step = Step(cache.extend([part.shape[1]] * n_sequences), cache=cache, attend=attend_native)
        step.tap = None if tap is None else tap(step)
        yield step, model.hidden(part, step)

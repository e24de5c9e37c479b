"""How much memory a cache takes, from the configuration alone."""

from __future__ import annotations

from glassformer.config import ModelConfig


def kept_numbers(config: ModelConfig, n_tokens: int) -> int:
    """How many numbers a row's cache holds when it has room for `n_tokens`: a layer with a window, that many at most.

    An encoder-decoder keeps its source's keys and values beside them.
    """
    attentions = [layer.attention for layer in config.layers]
    kept = [min(n_tokens, a.window or n_tokens) * a.kept for a in attentions]
    return sum(kept)

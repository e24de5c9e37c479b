"""The size of a cache, from the configuration alone."""

from __future__ import annotations

from glassformer.config import ModelConfig


def cached_numbers(config: ModelConfig, n_tokens: int) -> int:
    """Return the number of values that a cache stores for one sequence of `n_tokens`.

    A layer with a window stores that many tokens at most. A source's keys and values are not counted.
    """
    attentions = [layer.attention for layer in config.layers]
    return sum(min(n_tokens, a.window or n_tokens) * a.cached_per_token for a in attentions)

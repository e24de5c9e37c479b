"""The size of a cache, from the configuration alone."""

from __future__ import annotations

from bisect import bisect_right

from glassformer.config import ModelConfig


def cached_numbers(config: ModelConfig, n_tokens: int) -> int:
    """Return the number of values that a cache stores for one sequence of `n_tokens`.

    A layer with a window stores that many tokens at most. A source's keys and values are not counted.
    """
    attentions = [layer.attention for layer in config.layers]
    return sum(min(n_tokens, a.window or n_tokens) * a.cached_per_token for a in attentions)


def tokens_that_fit(config: ModelConfig, n_numbers: int) -> int:
    """Return the number of tokens of one sequence, up to the context, whose cache stores at most `n_numbers`."""
    lengths = range(1, config.context_length + 1)
    return bisect_right(lengths, n_numbers, key=lambda length: cached_numbers(config, length))

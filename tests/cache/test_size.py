"""`cached_numbers` equals the size of an allocated cache."""

import pytest
import torch
from tiny import FAMILIES, random_ids, run_cached, tiny

from glassformer.cache.dense import DenseCache
from glassformer.cache.size import cached_numbers, tokens_that_fit


@pytest.mark.parametrize("family", [*FAMILIES, "deepseek_v2"])
@pytest.mark.parametrize("n_tokens", [1, 4, 5, 6, 40])
def test_cached_numbers(family, n_tokens):
    model = tiny(family)
    cache = DenseCache.of(model.config, 1, n_tokens)
    run_cached(model, random_ids(model.config, 1, n_tokens), [n_tokens], cache)
    assert cache.bytes == cached_numbers(model.config, n_tokens) * torch.float32.itemsize


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "deepseek_v2"])
def test_tokens_that_fit(family):
    config = tiny(family).config
    for n_tokens in (1, 4, 5, 6, config.context_length):
        n_numbers = cached_numbers(config, n_tokens)
        assert tokens_that_fit(config, n_numbers) == n_tokens
        assert tokens_that_fit(config, n_numbers - 1) == n_tokens - 1
    assert tokens_that_fit(config, 1 << 60) == config.context_length

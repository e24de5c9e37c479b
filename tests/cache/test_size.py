"""`cached_numbers` equals the size of an allocated cache."""

import pytest
import torch
from tiny import FAMILIES, random_ids, run_cached, tiny

from glassformer.cache.dense import DenseCache
from glassformer.cache.size import cached_numbers


@pytest.mark.parametrize("family", [*FAMILIES, "deepseek_v2"])
@pytest.mark.parametrize("n_tokens", [1, 4, 5, 6, 40])
def test_cached_numbers(family, n_tokens):
    model = tiny(family)
    cache = DenseCache.of(model.config, 1, n_tokens)
    run_cached(model, random_ids(model.config, 1, n_tokens), [n_tokens], cache)
    assert cache.bytes == cached_numbers(model.config, n_tokens) * torch.float32.itemsize

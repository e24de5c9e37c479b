"""LongRoPE: sequences longer than the original context use other rotation angles at all positions."""

import json

import pytest
import torch
from tiny import assert_near, random_ids, run, run_cached, tiny, tiny_config

from glassformer.cache.dense import DenseCache
from glassformer.errors import CapacityError
from glassformer.families import read_config, write_config
from glassformer.generate import prefill
from glassformer.generate.decode import decode
from glassformer.generate.request import GenerationRequest
from glassformer.generate.sampling import Sampling
from glassformer.nn.step import Step

LIMIT = 25  # tokens from which the tiny model uses the long factors


def test_long_text_threshold():
    assert tiny_config("phi3").long_text == LIMIT
    assert tiny_config("llama").long_text is None


def test_long_sequence_changes_earlier_logits():
    """Therefore a cache filled with the short factors cannot be extended."""
    model = tiny("phi3")
    ids = random_ids(model.config, 1, LIMIT)
    short, long = run(model, ids[:, : LIMIT - 1]), run(model, ids)
    assert (short - long[:, : LIMIT - 1]).abs().max() > 1e-2 * short.abs().max()


def test_sequence_cannot_grow_from_short_to_long():
    model = tiny("phi3")
    ids = random_ids(model.config, 2, LIMIT)
    cache = DenseCache.of(model.config, 2, 40)
    run_cached(model, ids[:, : LIMIT - 1], [10, LIMIT - 11], cache)
    with pytest.raises(CapacityError, match="sequence 0 would grow to 25 tokens: from 25 on"):
        cache.extend([1, 1])
    cache.extend([0, 0])  # the failed call changed nothing
    assert cache.lengths == [LIMIT - 1] * 2
    long_cache = DenseCache.of(model.config, 2, 40)
    assert_near(run_cached(model, ids, [LIMIT], long_cache), run(model, ids))
    long_cache.extend([1, 1])  # a long sequence can grow


def test_reach_selects_the_long_factors_from_the_start():
    """`select` reorders `reach` with the sequences."""
    model = tiny("phi3")
    ids = random_ids(model.config, 2, 30)
    cache = DenseCache.of(model.config, 2, 30, reach=[30, 12])
    with torch.no_grad():
        model(ids[:, :9], Step(cache.extend([9, 9]), cache=cache))
        cache.select([1, 0])
        last = model(ids[[1, 0], 9:], Step(cache.extend([3, 21]), cache=cache))
    assert_near(last[1], run(model, ids[:1])[0, 9:])
    assert_near(last[0, :3], run(model, ids[1:, :12])[0, 9:])


def test_packed_documents_are_long_or_short_independently():
    model, lengths = tiny("phi3"), (30, 10, 20)
    ids = random_ids(model.config, 1, 60)
    positions, documents = (
        torch.tensor([[of(i, p) for i, n in enumerate(lengths) for p in range(n)]])
        for of in (lambda _, p: p, lambda i, _: i)
    )
    with torch.no_grad():
        packed = model(ids, Step(positions, documents=documents))
    for part, alone in zip(packed.split(lengths, 1), ids.split(lengths, 1), strict=True):
        assert_near(part, run(model, alone))


@pytest.mark.parametrize("chunk", [7, 512])
def test_sequences_that_become_long_at_different_steps(chunk, monkeypatch):
    """Batched greedy decoding with chunked prefill: each token has the highest uncached logit."""
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", chunk)
    model = tiny("phi3")
    prompts = [random_ids(model.config, 1, n, seed=n)[0].tolist() for n in (3, 22, LIMIT - 1, LIMIT, 30)]
    texts = [list(prompt) for prompt in prompts]
    for event in decode(model, GenerationRequest(prompts, max_tokens=26, sampling=Sampling(temperature=0.0))):
        texts[event.sequence].append(event.id)
    for prompt, text in zip(prompts, texts, strict=True):
        assert len(text) == len(prompt) + 26
        for n in range(len(prompt), len(text)):
            assert run(model, torch.tensor([text[:n]]))[0, -1].argmax() == text[n]


def test_legacy_names_of_longrope():
    raw = write_config(tiny_config("phi3"))
    for name in ("su", "yarn"):
        scaling = {key: value for key, value in raw["rope_scaling"].items() if key != "rope_type"} | {"type": name}
        assert read_config(json.loads(json.dumps(raw | {"rope_scaling": scaling})), "config.json") == tiny_config(
            "phi3"
        )

"""Greedy generation of each family against `transformers`, and cached against uncached logits."""

import pytest
import torch
import transformers
from tiny import assert_near, random_ids, run, run_cached, tiny
from tiny_families import DECODERS

from glassformer.cache.dense import DenseCache
from glassformer.formats import save_model
from glassformer.generate.decode import decode
from glassformer.generate.request import GenerationRequest
from glassformer.generate.sampling import Sampling
from glassformer.nn.step import Step

LENGTH = 40  # longer than every window and every original context
GREEDY = Sampling(temperature=0.0)


def open_with_transformers(model, folder):
    save_model(model, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def greedy(model, prompts):
    sequences = [[] for _ in prompts]
    for event in decode(model, GenerationRequest(prompts, 48, GREEDY)):
        sequences[event.sequence].append(event.id)
    return sequences


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_tokens_equal_transformers(family, tmp_path):
    """48 tokens of two prompts: batched here, one at a time in transformers."""
    model = tiny(family, tied_head=False)  # a tied random head repeats one token
    hf = open_with_transformers(model, tmp_path)
    prompts = [random_ids(model.config, 1, n, seed=n)[0].tolist() for n in (9, 5)]
    generated = greedy(model, prompts)
    assert len({*generated[0], *generated[1]}) > 3, "degenerate text"
    for prompt, ours in zip(prompts, generated, strict=True):
        out = hf.generate(
            torch.tensor([prompt]), max_new_tokens=48, do_sample=False, eos_token_id=None, pad_token_id=0,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )  # fmt: skip
        assert out[0, len(prompt) :].tolist() == ours


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("chunks", [[LENGTH], [1] * LENGTH, [7, 1, 20, 1, 11]], ids=str)
def test_cached_equals_uncached(family, chunks):
    model = tiny(family)
    ids = random_ids(model.config, 2, LENGTH)
    cache = DenseCache.of(model.config, 2, LENGTH, reach=[LENGTH] * 2)
    assert_near(run_cached(model, ids, chunks, cache), run(model, ids))


@pytest.mark.parametrize("family", DECODERS)
def test_uneven_batch_equals_single_sequences(family):
    """Without a cache, and with one in steps of different numbers of tokens per sequence."""
    model, lengths = tiny(family), (LENGTH, 17, 1)
    ids = random_ids(model.config, 3, LENGTH)
    alone = [run(model, ids[b : b + 1, :n])[0] for b, n in enumerate(lengths)]
    with torch.no_grad():
        together = model(ids, Step.of(ids, lengths))
    for b, n in enumerate(lengths):
        assert_near(together[b, :n], alone[b])
    cache, parts, at = DenseCache.of(model.config, 3, LENGTH, reach=lengths), ([], [], []), [0, 0, 0]
    for counts in ([9, 12, 1], [1, 1, 0], [0, 4, 0], [30, 0, 0]):
        new = torch.zeros(3, max(counts), dtype=torch.long)
        for b, c in enumerate(counts):
            new[b, :c] = ids[b, at[b] : at[b] + c]
        with torch.no_grad():
            out = model(new, Step(cache.extend(counts), cache=cache))
        for b, c in enumerate(counts):
            parts[b].append(out[b, :c])
            at[b] += c
    assert tuple(at) == lengths
    for b in range(3):
        assert_near(torch.cat(parts[b]), alone[b])

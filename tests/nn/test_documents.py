"""Packed documents equal single documents and are independent of each other."""

import pytest
import torch
from tiny import FAMILIES, assert_near, by_definition, random_ids, run, tiny

from glassformer.cache.dense import DenseCache
from glassformer.kernels.attention import attend_fused, attend_products
from glassformer.kernels.cross_entropy import next_token_loss
from glassformer.nn.step import Step

LENGTHS = ((5, 9, 1, 6), (12, 9))  # two packed sequences of 21 tokens


def pack(lengths=LENGTHS):
    """Return positions [B, T] that restart at each document, and documents [B, T]."""
    positions = torch.tensor([[p for n in row for p in range(n)] for row in lengths])
    documents = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths])
    return positions, documents


@pytest.mark.parametrize("attend", [by_definition, attend_fused, attend_products])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_single_documents(family, attend):
    model = tiny(family)
    positions, documents = pack()
    ids = random_ids(model.config, 2, 21)
    with torch.no_grad():
        packed = model(ids, Step(positions, documents=documents, attend=attend))
    for b, row in enumerate(LENGTHS):
        begin = 0
        for n in row:
            assert_near(packed[b, begin : begin + n], run(model, ids[b : b + 1, begin : begin + n])[0])
            begin += n


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_are_independent(family):
    model = tiny(family)
    positions, documents = pack()
    ids = random_ids(model.config, 2, 21)
    other = ids.clone()
    other[0, 5:14] = random_ids(model.config, 1, 9, seed=99)  # the second document of sequence 0
    with torch.no_grad():
        a, b = (model(x, Step(positions, documents=documents)) for x in (ids, other))
    same = torch.ones_like(ids, dtype=torch.bool)
    same[0, 5:14] = False
    assert torch.equal(a[same], b[same])
    assert (a[~same] != b[~same]).any()


def test_no_gradient_between_documents():
    """The loss of one document has gradient 0 for the embeddings of the other documents' tokens."""
    model = tiny("qwen3", tied_head=False)
    positions, documents = pack(((5, 9, 1, 6),))
    ids = torch.arange(21)[None]  # every token occurs once
    targets = torch.full((1, 21), -100)
    targets[0, 5:14] = 3
    next_token_loss(model, ids, targets, Step(positions, documents=documents)).backward()
    size = model.embed.weight.grad.abs().sum(-1)
    assert (size[5:14] > 0).all()
    assert (size[:5] == 0).all()
    assert (size[14:] == 0).all()


def test_packed_loss_equals_sum_of_documents():
    model = tiny("qwen3")
    positions, documents = pack(((5, 9, 1, 6),))
    ids, targets = random_ids(model.config, 1, 21), random_ids(model.config, 1, 21, seed=2)
    packed = next_token_loss(model, ids, targets, Step(positions, documents=documents))
    packed.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = []
    for x, y in zip(ids.split([5, 9, 1, 6], 1), targets.split([5, 9, 1, 6], 1), strict=True):
        alone.append(next_token_loss(model, x, y, Step.of(x)))
        alone[-1].backward()
    assert_near(packed.detach(), sum(alone).detach(), 1e-6)
    for name, p in model.named_parameters():
        assert_near(together[name], p.grad)


def test_cache_with_documents_raises():
    model = tiny("llama")
    cache = DenseCache.of(model.config, 1, 9)
    with pytest.raises(AssertionError, match="packed documents"):
        Step(cache.extend([4]), cache=cache, documents=torch.zeros(1, 4, dtype=torch.long))

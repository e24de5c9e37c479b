"""The protocol of a forward pass (`keep`, `attend`, `view`) supports an attention variant outside of the package.

ALiBi ("Train Short, Test Long", Press et al. 2022): a bias of the scores that decreases with distance.
"""

import pytest
import torch
from test_attend import naive, visible_by_loops
from tiny import assert_near, by_definition, randomise
from torch import nn

from glassformer.cache.dense import DenseCache
from glassformer.kernels.attention import attend_fused, attend_products
from glassformer.nn.attend import AttendSpec
from glassformer.nn.step import Step

VOCAB, LENGTH = 61, 13
CHUNKS = ([13], [1] * 13, [5, 1, 7], [8, 5])
IDS = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def assert_equals_reference(model, window, attend):
    """`model(ids, step)` equals `model.reference(ids)`: uncached, in chunks, and in a batch of uneven lengths."""
    with torch.no_grad():
        want = model.reference(IDS)
        assert want.abs().max() > 0.1
        assert_near(model(IDS, Step.of(IDS, attend=attend)), want)
        for chunks in CHUNKS:
            cache, parts = DenseCache([window], 2, LENGTH), []
            for part in IDS.split(chunks, 1):
                parts.append(model(part, Step(cache.extend([part.shape[1]] * 2), cache=cache, attend=attend)))
            assert_near(torch.cat(parts, 1), want)
        cache, parts, at = DenseCache([window], 2, LENGTH), ([], []), [0, 0]
        for counts in ([7, 2], [1, 1], [0, 3], [1, 0], [4, 0]):  # sequence 1 ends after 6 tokens
            ids = torch.zeros(2, max(counts), dtype=torch.long)
            for b, c in enumerate(counts):
                ids[b, :c] = IDS[b, at[b] : at[b] + c]
            out = model(ids, Step(cache.extend(counts), cache=cache, attend=attend))
            for b, c in enumerate(counts):
                parts[b].append(out[b, :c])
                at[b] += c
        assert at == [LENGTH, 6]
        assert_near(torch.cat(parts[0]), want[0])
        assert_near(torch.cat(parts[1]), model.reference(IDS[1:, :6])[0])


class Alibi(nn.Module):
    """One attention layer with a bias computed from the positions of the cached keys, in ring order too."""

    def __init__(self, window):
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Embedding(VOCAB, 24), *(nn.Linear(24, n) for n in (24, 12, 12))
        self.spec, self.slopes = AttendSpec(6**-0.5, window=window), 2.0 ** -torch.arange(4)

    def project(self, ids):
        x = self.embed(ids)
        return [p(x).unflatten(-1, (-1, 6)) for p in (self.q, self.k, self.v)]

    def forward(self, ids, step):
        q, k, v = self.project(ids)
        view, s = step.view(self.spec), step.layer(0)
        distance = view.queries[:, None, :, None] - view.keys[:, None, None, :]
        return s.attend(self.spec, q, s.keep(k, v), bias=-self.slopes[:, None, None] * distance).flatten(-2)

    def reference(self, ids):
        q, k, v = self.project(ids)
        at = torch.arange(ids.shape[1])
        bias = (-self.slopes[:, None, None] * (at[:, None] - at)).expand(len(ids), -1, -1, -1)
        every = at.expand(len(ids), -1)
        seen = visible_by_loops(every, every, True, self.spec.window, None)
        return torch.tensor(naive(q, k, v, self.spec.scale, seen, bias=bias)[0]).flatten(-2)


@pytest.mark.parametrize("attend", [by_definition, attend_fused, attend_products])
@pytest.mark.parametrize("window", [None, 4])
def test_alibi_as_a_bias_of_the_scores(window, attend):
    assert_equals_reference(randomise(Alibi(window)), window, attend)

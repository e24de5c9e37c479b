"""Experts: the fast implementation against the definition, the router against the formulas, and edits of the router."""

import pytest
import torch
from tiny import assert_near, random_ids, randomise, run, tiny, tiny_config

from glassformer.config import MLPConfig, MoEConfig
from glassformer.errors import ConfigError
from glassformer.nn.model import Decoder
from glassformer.nn.moe import MoE, experts_reference, experts_sorted, route
from glassformer.nn.step import Step
from glassformer.training.init import init_weights


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moe(**settings):
    return randomise(MoE(MoEConfig(**{"n_experts": 6, "top_k": 2} | settings), MLPConfig(20), 12))


@pytest.mark.parametrize("n_tokens", [1, 2, 33])
@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_sorted_experts_equal_reference(n_tokens, top_k):
    """Forward and backward, in float64, with unused experts and with all experts used."""
    layer, x = moe(top_k=top_k).double(), randn(n_tokens, 12).double()
    weights, chosen = route(layer.config, layer.router(x))
    weights, found = weights.double(), []
    for path in (experts_reference, experts_sorted):
        layer.zero_grad()
        leaf, scale = (t.detach().clone().requires_grad_() for t in (x, weights))
        out = path(layer.experts, leaf, scale, chosen)
        out.square().sum().backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in layer.experts.parameters()]
        found.append([out.detach(), leaf.grad, scale.grad, *gradients])
    for slow, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_routing_is_independent_of_other_tokens():
    layer, x = moe(), randn(3, 7, 12)
    step = Step(torch.arange(7)[None]).layer(0)
    full = layer(x, step)
    for b in range(3):
        for t in range(7):
            assert_near(layer(x[b, t : t + 1], step), full[b, t : t + 1], 1e-6)


def route_by_loops(c, logits, correction):
    """Compute one token's weights from the papers' formulas in plain Python: {expert: weight}."""
    values = [float(v) for v in logits.double()]
    if c.scores == "softmax":
        total = sum(torch.tensor(v).double().exp().item() for v in values)
        scores = [torch.tensor(v).double().exp().item() / total for v in values]
    else:
        scores = [1 / (1 + torch.tensor(-v).double().exp().item()) for v in values]
    ranks = [s + (0 if correction is None else correction[e].item()) for e, s in enumerate(scores)]
    size = c.n_experts // c.n_groups
    groups = [range(g * size, (g + 1) * size) for g in range(c.n_groups)]
    groups.sort(key=lambda group: -sum(sorted((ranks[e] for e in group), reverse=True)[: c.group_best]))
    allowed = [e for group in groups[: c.top_groups] for e in group]
    chosen = sorted(allowed, key=lambda e: -ranks[e])[: c.top_k]
    full = sum(scores[e] for e in chosen) if c.normed else 1
    return {e: scores[e] / full * c.scale for e in chosen}


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize(("n_groups", "top_groups", "group_best"), [(1, 1, 1), (4, 2, 1), (4, 2, 2), (2, 1, 3)])
def test_route_equals_loops(scores, normed, correction, n_groups, top_groups, group_best):
    config = MoEConfig(
        8, 3, scores, normed, 1.7, score_correction=correction, n_groups=n_groups, top_groups=top_groups,
        group_best=group_best,
    )  # fmt: skip
    logits, added = randn(40, 8), randn(8, seed=1) if correction else None
    weights, chosen = route(config, logits, added)
    for row, (w, e) in enumerate(zip(weights, chosen, strict=True)):
        want = route_by_loops(config, logits[row], added)
        got = dict(zip(e.tolist(), w.tolist(), strict=True))
        assert got.keys() == want.keys()
        assert all(abs(got[expert] - want[expert]) < 1e-5 for expert in want)


def test_shared_expert_processes_every_token():
    layer, x = moe(shared_d_ff=16), randn(5, 12)
    step = Step(torch.arange(5)[None]).layer(0)
    shared = layer.shared
    layer.shared = None
    assert_near(moe(shared_d_ff=16)(x, step), layer(x, step) + shared(x), 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 7}, "top_k must be at most 6"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"n_groups": 4, "top_groups": 2}, "multiple of n_groups, got 6 and 4"),
        ({"n_groups": 0}, "n_groups must be at least 1"),
        ({"n_groups": 3, "top_groups": 4}, "top_groups must be at most 3"),
        ({"n_groups": 3, "top_k": 3}, "top_k must be at most 2"),
        ({"n_groups": 3, "group_best": 3}, "group_best must be at most 2"),
        ({"group_best": 2}, "requires n_groups above 1, got 2"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"shared_d_ff": 0}, "shared_d_ff must be at least 1"),
    ],
    ids=str,
)
def test_invalid_config_raises_config_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        MoEConfig(**{"n_experts": 6, "top_k": 2} | changes)


class RouterTap:
    """A tap that records the router's logits of one layer, and makes one expert the best for all tokens."""

    def __init__(self, expert=None):
        self.expert, self.seen = expert, {}

    def wants(self, name):
        return name == "blocks.1.mlp.router"

    def __call__(self, name, value):
        self.seen[name] = value
        if self.expert is None:
            return value
        value = value.clone()
        value[..., self.expert] += 100
        return value


def test_tap_changes_routing():
    model = tiny("mixtral", **{"layers.1.experts.top_k": 1})
    ids = random_ids(model.config, 2, 9)
    plain, observer, edit = run(model, ids), RouterTap(), RouterTap(4)
    assert torch.equal(run(model, ids, tap=observer), plain)
    logits = observer.seen["blocks.1.mlp.router"]
    assert logits.shape == (2, 9, 6)
    assert len(logits.argmax(-1).unique()) > 2, "the router's choice does not depend on the token"
    edited = run(model, ids, tap=edit)
    assert (edited - plain).abs().max() > 1e-3 * plain.abs().max()
    with torch.no_grad():  # equals a layer whose experts are all expert 4
        for e in range(6):
            model.blocks[1].mlp.experts[e].load_state_dict(model.blocks[1].mlp.experts[4].state_dict())
    assert_near(run(model, ids), edited)


def test_init_weights_of_experts():
    config = tiny_config("mixtral", **{"layers.1.experts.shared_d_ff": 24})
    model = init_weights(Decoder(config), 0)
    every = torch.cat([e.down.weight.flatten() for block in model.blocks for e in block.mlp.experts])
    assert abs(every.std() / (0.02 / 6**0.5) - 1) < 0.05
    assert abs(model.blocks[1].mlp.shared.down.weight.std() / (0.02 / 6**0.5) - 1) < 0.1
    assert abs(model.blocks[0].mlp.experts[3].up.weight.std() / 0.02 - 1) < 0.1

"""The chunked loss equals F.cross_entropy: values, gradients, chunk borders, ignored targets."""

import pytest
import torch
import torch.nn.functional as F
from tiny import assert_near, random_ids, tiny

from glassformer.kernels import cross_entropy as module
from glassformer.kernels.cross_entropy import linear_cross_entropy, next_token_loss
from glassformer.nn.step import Step

N, D, V = 37, 12, 50


def draw(ignored=()):
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(N, D, generator=g, requires_grad=True), torch.randn(V, D, generator=g, requires_grad=True)
    targets = torch.randint(V, (N,), generator=g)
    targets[list(ignored)] = -100
    return x, w, targets


def both(x, w, targets, factor=1.0, smoothing=0.0):
    """Return (value, dx, dw) of our loss, and of torch's in float64."""
    ours = linear_cross_entropy(x, w, targets, smoothing=smoothing) * factor
    ours.backward()
    x64, w64 = (t.detach().double().requires_grad_() for t in (x, w))
    smooth = {"label_smoothing": smoothing}
    theirs = F.cross_entropy(x64 @ w64.T, targets, reduction="sum", ignore_index=-100, **smooth) * factor
    theirs.backward()
    return (ours.detach(), x.grad, w.grad), (theirs.detach(), x64.grad, w64.grad)


@pytest.mark.parametrize("rows", [1, 5, 36, 37, 38, 1000])
@pytest.mark.parametrize("ignored", [(), (0, 5, 36), range(4, 11)], ids=str)
def test_value_and_gradients(rows, ignored, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 1)
    monkeypatch.setattr(module, "CHUNK_VALUES", rows * V)
    for ours, theirs in zip(*both(*draw(ignored), factor=0.37), strict=True):
        assert_near(ours, theirs, 1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("ignored", [(), (0, 5, 36)], ids=str)
def test_smoothed_targets(smoothing, ignored, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 1)
    monkeypatch.setattr(module, "CHUNK_VALUES", 5 * V)
    for ours, theirs in zip(*both(*draw(ignored), factor=0.37, smoothing=smoothing), strict=True):
        assert_near(ours, theirs, 1e-6)
    x, w, targets = draw(ignored)
    plain, smooth = (linear_cross_entropy(x, w, targets, smoothing=s).item() for s in (0.0, smoothing))
    assert abs(plain - smooth) > 1e-3 * plain


def test_zero_smoothing_equals_no_smoothing():
    model = tiny("qwen3")
    ids, targets = random_ids(model.config, 3, 17), random_ids(model.config, 3, 17, seed=2)
    losses = [next_token_loss(model, ids, targets, Step.of(ids), **s) for s in ({}, {"smoothing": 0.0})]
    assert torch.equal(*losses)
    smooth = next_token_loss(model, ids, targets, Step.of(ids), smoothing=0.1)
    logits = model(ids, Step.of(ids)).flatten(0, 1)
    assert_near(smooth, F.cross_entropy(logits, targets.flatten(), reduction="sum", label_smoothing=0.1), 1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_smoothing_out_of_range_raises_value_error(smoothing):
    with pytest.raises(ValueError, match="from 0 to 1"):
        linear_cross_entropy(*draw(), smoothing=smoothing)


def test_chunk_has_at_least_one_row(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 1)
    monkeypatch.setattr(module, "CHUNK_VALUES", 3)
    for ours, theirs in zip(*both(*draw()), strict=True):
        assert_near(ours, theirs, 1e-6)


def test_ignored_targets_have_no_gradient():
    x, w, targets = draw(range(N))
    linear_cross_entropy(x, w, targets).backward()
    assert not x.grad.any()
    assert not w.grad.any()


def test_large_logits_do_not_overflow():
    x, w, targets = draw()
    value = linear_cross_entropy(x * 1e3, w, targets)
    assert_near(value.detach(), F.cross_entropy((x * 1e3 @ w.T).double(), targets, reduction="sum").detach(), 1e-6)


def test_gradients_only_where_required():
    x, w, targets = draw()
    linear_cross_entropy(x, w.detach(), targets).backward()
    assert x.grad is not None
    x, w, targets = draw()
    linear_cross_entropy(x.detach(), w, targets).backward()
    assert w.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(x, w, targets).requires_grad


def test_bfloat16_products_are_near_float32():
    (x, w, targets), (a, b, _) = draw(), draw()
    linear_cross_entropy(x, w, targets).backward()
    linear_cross_entropy(a, b, targets, torch.bfloat16).backward()
    assert a.grad.dtype == b.grad.dtype == torch.float32
    assert_near(a.grad, x.grad, 3e-2)
    assert_near(b.grad, w.grad, 3e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_next_token_loss_and_all_gradients(tied):
    model = tiny("qwen3", tied_head=tied)
    ids, targets = random_ids(model.config, 3, 17), random_ids(model.config, 3, 17, seed=2)
    targets[:, ::4] = -100
    ours = next_token_loss(model, ids, targets, Step.of(ids))
    ours.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    theirs = F.cross_entropy(model(ids, Step.of(ids)).flatten(0, 1), targets.flatten(), reduction="sum")
    theirs.backward()
    assert_near(ours.detach(), theirs.detach(), 1e-6)
    for name, p in model.named_parameters():
        assert_near(grads[name], p.grad, 2e-6)
        assert p.grad.any(), f"{name} gets no gradient"


def test_micro_batches_equal_one_batch():
    """Each loss is divided by the number of targets of the step; micro-batches have different numbers of targets."""
    model = tiny("llama")
    ids, targets = random_ids(model.config, 6, 17), random_ids(model.config, 6, 17, seed=2)
    targets[0, 3:], targets[3, ::2] = -100, -100
    counted = (targets != -100).sum()
    (next_token_loss(model, ids, targets, Step.of(ids)) / counted).backward()
    full = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for x, y in zip(ids.split([1, 2, 3]), targets.split([1, 2, 3]), strict=True):
        (next_token_loss(model, x, y, Step.of(x)) / counted).backward()
    for name, p in model.named_parameters():
        assert_near(p.grad, full[name], 2e-6)


def test_second_gradient_raises_runtime_error():
    x, w = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    loss = linear_cross_entropy(x, w, torch.arange(4)).square()
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("family", ["phi", "gemma2"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_includes_head_bias_and_softcap(family, smoothing):
    model = tiny(family)
    ids, targets = random_ids(model.config, 3, 17), random_ids(model.config, 3, 17, seed=2)
    targets[0, :5] = -100
    logits = model(ids, Step.of(ids)).flatten(0, 1)
    want = F.cross_entropy(logits, targets.flatten(), reduction="sum", label_smoothing=smoothing)
    found = next_token_loss(model, ids, targets, Step.of(ids), smoothing=smoothing)
    assert_near(found, want, 1e-6)
    product = linear_cross_entropy(model.hidden(ids, Step.of(ids)).flatten(0, 1), model.head.weight, targets.flatten())
    assert abs(product - found) > 1e-3 * found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 5, 37, 1000])
def test_loss_per_token(rows, smoothing, monkeypatch):
    """Values, and gradients of a weighted sum of the losses."""
    monkeypatch.setattr(module, "CHUNK_ROWS", 1)
    monkeypatch.setattr(module, "CHUNK_VALUES", rows * V)
    x, w, targets = draw((0, 5, 36))
    weights = torch.linspace(-1, 2, N)
    ours = linear_cross_entropy(x, w, targets, smoothing=smoothing, reduction="none")
    (ours * weights).sum().backward()
    x64, w64 = (t.detach().double().requires_grad_() for t in (x, w))
    theirs = F.cross_entropy(x64 @ w64.T, targets, reduction="none", label_smoothing=smoothing)
    (theirs * weights).sum().backward()
    assert ours.shape == (N,)
    assert not ours[[0, 5, 36]].any()
    for found, wanted in ((ours.detach(), theirs.detach()), (x.grad, x64.grad), (w.grad, w64.grad)):
        assert_near(found, wanted, 1e-6)
    assert_near(ours.sum(), linear_cross_entropy(x, w, targets, smoothing=smoothing), 1e-6)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_next_token_loss_per_token(family):
    model = tiny(family)
    ids, targets = random_ids(model.config, 3, 17), random_ids(model.config, 3, 17, seed=2)
    found = next_token_loss(model, ids, targets, Step.of(ids), reduction="none")
    assert found.shape == targets.shape
    assert_near(found.sum(), next_token_loss(model, ids, targets, Step.of(ids)), 1e-6)

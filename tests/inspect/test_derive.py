"""Derived points equal attend_reference, NumPy and the model's output, and report their error."""

import numpy as np
import pytest
import torch
from test_points import MODELS, Everything
from tiny import assert_near, random_ids, run, tiny

from glassformer.cache.dense import DenseCache
from glassformer.inspect.capture import points
from glassformer.inspect.capture.derive import attended, derive
from glassformer.nn.attend import KV, AttendSpec, Visibility, attend_reference, visible
from glassformer.nn.step import Step


def capture(model, ids, **step):
    """Return the live points of a forward pass, its Step, and each layer's scores and probabilities."""
    tap, inside = Everything(), []

    def attend(*args):
        z, scores, probs = attend_reference(*args)
        inside.append((scores, probs))
        return z

    step = Step.of(ids, tap=tap, attend=attend, **step)
    with torch.no_grad():
        model(ids, step)
    return tap.seen, step, inside


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_probabilities_equal_the_reference(name):
    model = MODELS[name]
    ids = random_ids(model.config, 2, 11)
    seen, step, inside = capture(model, ids)
    for i, (scores, probs) in enumerate(inside):
        view = step.view(model.blocks[i].attn.spec)
        for end, want in (("scores", scores), ("probs", probs)):
            got = derive(model, f"blocks.{i}.attn.{end}", seen, view)
            assert torch.equal(got.value, want)
            assert got.error == 0


@pytest.mark.parametrize("name", MODELS)
def test_error_after_sdpa_is_that_of_the_identity(name):
    """With values captured from SDPA, P·V equals z up to rounding, and the error is max |P·V - z|."""
    model = MODELS[name]
    ids, tap = random_ids(model.config, 2, 11), Everything()
    step = Step.of(ids, tap=tap)
    with torch.no_grad():
        model(ids, step)
        for i, block in enumerate(model.blocks):
            got = derive(model, f"blocks.{i}.attn.probs", tap.seen, step.view(block.attn.spec))
            v, z = (tap.seen[f"blocks.{i}.attn.{p}"].double().numpy() for p in ("v", "z"))
            v = np.repeat(v, z.shape[2] // v.shape[2], axis=2)
            pv = np.einsum("bhts,bshd->bthd", got.value.double().numpy(), v)
            assert abs(got.error - np.abs(pv - z).max()) < 1e-6
            assert got.error < 1e-5
            if block.attn.sinks is None:
                assert_near(got.value.sum(-1), torch.ones(got.value.shape[:-1]), 1e-6)
            else:
                assert got.value.sum(-1).max() < 1, "sinks have no effect"


@pytest.mark.parametrize("name", MODELS)
def test_heads_sum_to_the_attention_output(name):
    model = MODELS[name]
    seen, step, _ = capture(model, random_ids(model.config, 2, 11))
    for i, block in enumerate(model.blocks):
        got = derive(model, f"blocks.{i}.attn.heads", seen, step.view(block.attn.spec))
        z, w = seen[f"blocks.{i}.attn.z"].double().numpy(), block.attn.o.weight.detach().double().numpy()
        dh = z.shape[-1]
        for h in range(z.shape[2]):
            assert_near(got.value[:, :, h], torch.tensor(z[:, :, h] @ w[:, h * dh : (h + 1) * dh].T), 1e-6)
        bias = 0 if block.attn.o.bias is None else block.attn.o.bias.detach()
        assert_near(got.value.sum(2) + bias, seen[f"blocks.{i}.attn.out"])
        assert 0 <= got.error < 1e-5


def test_error_is_large_for_wrong_inputs():
    model = MODELS["qwen3"]
    seen, step, _ = capture(model, random_ids(model.config, 2, 11))
    view = step.view(model.blocks[0].attn.spec)
    for part, point in (("z", "probs"), ("v", "probs"), ("z", "heads"), ("out", "heads")):
        wrong = dict(seen)
        wrong[f"blocks.0.attn.{part}"] = seen[f"blocks.0.attn.{part}"] + 0.1
        assert derive(model, f"blocks.0.attn.{point}", wrong, view).error > 0.02


def test_needs_are_sufficient():
    model = MODELS["gpt2"]
    seen, step, _ = capture(model, random_ids(model.config, 2, 11))
    for name in points.derived(model.config):
        few = {need: seen[need] for need in points.needs(model.config, name)}
        spec = model.blocks[int(name.split(".")[1])].attn.spec
        assert derive(model, name, few, step.view(spec)).error < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "latents"])
def test_queries_of_a_cached_forward_pass_over_all_keys(name):
    """The concatenated keys and values of two forward passes explain z of the second.

    A model with latents absorbs projections in the second forward pass; its captured keys and values still explain z.
    """
    model = MODELS[name]
    ids, cache, taps = random_ids(model.config, 1, 11), DenseCache.of(model.config, 1, 11), []
    for part in ids.split([7, 4], 1):
        taps.append(Everything())
        with torch.no_grad():
            model(part, Step(cache.extend([part.shape[1]]), cache=cache, tap=taps[-1]))
    full = Everything()
    step = Step.of(ids, tap=full)
    run(model, ids, tap=full)
    for i, block in enumerate(model.blocks):
        k, v = (torch.cat([tap.seen[f"blocks.{i}.attn.{p}"] for tap in taps], 1) for p in ("k_rot", "v"))
        q, z = (taps[-1].seen[f"blocks.{i}.attn.{p}"] for p in ("q_rot", "z"))
        at, spec = torch.arange(11)[None], block.attn.spec
        got = attended(spec, q, k, v, z, Visibility(at[:, 7:], at, visible(spec, at[:, 7:], at)))
        want = derive(model, f"blocks.{i}.attn.probs", full.seen, step.view(spec))
        assert_near(got.probs, want.value[:, :, 7:])
        assert got.error < 1e-5


def test_softcap_is_part_of_the_scores():
    """Clipping and norms over all heads are part of the queries and keys."""
    for family, cap in (("gemma2", 10.0), ("olmo", None), ("olmo2", None), ("stablelm", None)):
        model = tiny(family)
        seen, step, inside = capture(model, random_ids(model.config, 2, 11))
        for i, block in enumerate(model.blocks):
            got = derive(model, f"blocks.{i}.attn.scores", seen, step.view(block.attn.spec))
            assert torch.equal(got.value, inside[i][0])
            assert got.error == 0
            if cap is not None:
                finite = got.value[got.value.isfinite()].abs()
                assert 0.9 * cap < finite.max() <= cap, "no score is near the cap"
            if block.attn.config.clip is not None:
                assert seen[f"blocks.{i}.attn.v"].abs().max() == block.attn.config.clip


def test_biases_sinks_and_softcap_are_recomputed():
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 5, 4, 8, generator=g),
        torch.randn(1, 5, 2, 8, generator=g),
        torch.randn(1, 5, 2, 8, generator=g),
    )
    bias, sinks = torch.randn(1, 4, 5, 5, generator=g), torch.randn(4, generator=g)
    at, spec = torch.arange(5)[None], AttendSpec(0.5, softcap=2.0)
    view = Visibility(at, at, None, causal=True)
    z, scores, probs = attend_reference(spec, q, KV(k, v), view, bias, sinks)
    got = attended(spec, q, k, v, z, view, bias, sinks)
    assert torch.equal(got.scores, scores)
    assert torch.equal(got.probs, probs)
    assert got.error == 0
    assert attended(spec, q, k, v, z, view).error > 1e-2

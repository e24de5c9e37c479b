"""Sampling, compared with the processors of transformers, OpenAI's formula, and a chi-squared test."""

import math
import random
import runpy

import pytest
import torch
import transformers

from glassformer.errors import RequestError
from glassformer.generate import sampling
from glassformer.generate.sampling import Sampling, adjust, choose, stages

V = 61


def random_logits(n=4, seed=0, scale=3.0):
    return scale * torch.randn(n, V, generator=torch.Generator().manual_seed(seed))


def final_logits(stage_logits):
    return list(stage_logits.values())[-1]


def assert_same_logits(ours, theirs):
    """Compare the excluded tokens, and the logits of the others."""
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


# transformers sums top-p from the least likely token (cumulative <= 1 - p is removed), we sum from the most likely one.
# Both keep the same set, except for tokens of equal probability at the border, whose order neither defines.
@pytest.mark.parametrize(
    ("options", "warper"),
    [
        ({"temperature": 0.3}, ("TemperatureLogitsWarper", 0.3)),
        ({"temperature": 1.7}, ("TemperatureLogitsWarper", 1.7)),
        ({"top_k": 1}, ("TopKLogitsWarper", 1)),
        ({"top_k": 7}, ("TopKLogitsWarper", 7)),
        ({"top_k": 1000}, ("TopKLogitsWarper", 1000)),
        *(({"top_p": p}, ("TopPLogitsWarper", p)) for p in (0.0, 1e-6, 0.1, 0.5, 0.9, 0.999)),
        *(({"min_p": p}, ("MinPLogitsWarper", p)) for p in (0.001, 0.1, 0.5, 1.0)),
    ],
)
def test_each_stage_equals_transformers(options, warper):
    name, value = warper
    logits = random_logits()
    theirs = getattr(transformers, name)(value)(None, logits)
    stage_logits = stages(logits, Sampling(**options))
    assert list(stage_logits) == [
        "temperature",
        *(name for name in options if name != "temperature" and options[name] != 1000),
    ]
    assert_same_logits(final_logits(stage_logits), theirs)


def test_all_stages_equal_transformers():
    logits = theirs = random_logits(n=32)
    for name, value in (("Temperature", 1.3), ("TopK", 20), ("TopP", 0.8), ("MinP", 0.15)):
        before, theirs = theirs, getattr(transformers, f"{name}LogitsWarper")(value)(None, theirs)
        assert not torch.equal(before, theirs), f"{name} has no effect here, so nothing is tested"
    stage_logits = stages(logits, Sampling(temperature=1.3, top_k=20, top_p=0.8, min_p=0.15))
    assert list(stage_logits) == ["temperature", "top_k", "top_p", "min_p"]
    assert_same_logits(final_logits(stage_logits), theirs)


@pytest.mark.parametrize("temperature", [1e-6, 1e-9, 1e-40, 5e-324])
def test_small_temperatures_share_the_probability_among_the_largest_logits(temperature):
    """No quotient overflows to NaN; the final_logits row has two largest logits."""
    logits = torch.cat([1000 * random_logits(), torch.tensor([[80.0, -50.0] * (V // 2) + [0.0] * (V % 2)])])
    logits[-1, 2:] = -80.0
    logits[-1, 2] = 80.0
    probs = final_logits(stages(logits, Sampling(temperature=temperature))).softmax(-1)
    largest = logits == logits.amax(-1, keepdim=True)
    torch.testing.assert_close(probs, largest / largest.sum(-1, keepdim=True))
    chosen = choose(logits, Sampling(temperature=temperature), [random.Random(i) for i in range(len(logits))])
    assert largest.gather(-1, chosen[:, None]).all()


def test_top_k_keeps_ties_as_transformers_does():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert_same_logits(final_logits(stages(logits, Sampling(top_k=2))), transformers.TopKLogitsWarper(2)(None, logits))


def token_counts(sequences):
    return torch.stack([torch.bincount(torch.tensor(sequence), minlength=V) for sequence in sequences])


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_equals_transformers(penalty):
    logits = random_logits(n=2)
    prompt, output = [[1, 2, 3, 3], [7, 7, 7, 7]], [[3, 9, 9], [1, 2, 3]]
    ids = torch.tensor([p + o for p, o in zip(prompt, output, strict=True)])
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    ours = adjust(logits, Sampling(repetition_penalty=penalty), token_counts(prompt), token_counts(output))
    assert not torch.equal(theirs, logits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_presence_and_frequency_follow_openais_formula():
    """mu[j] -> mu[j] - c[j] * frequency - float(c[j] > 0) * presence, where c counts generated tokens, not the prompt
    (platform.openai.com, "Frequency and presence penalties")."""
    logits = random_logits(n=2)
    prompt, output = [[1, 2, 2], [5]], [[4, 4, 4, 9], [5, 6, 6]]
    ours = adjust(
        logits, Sampling(presence_penalty=0.7, frequency_penalty=-0.4), token_counts(prompt), token_counts(output)
    )
    for i, ids in enumerate(output):
        for j in range(V):
            c = ids.count(j)
            assert ours[i, j].item() == pytest.approx(logits[i, j].item() - c * -0.4 - float(c > 0) * 0.7, abs=1e-6)


def test_logit_bias_is_added():
    logits = random_logits()
    ours = adjust(logits, Sampling(logit_bias={3: 2.5, 60: -100.0}))
    expected = logits.clone()
    expected[:, 3] += 2.5
    expected[:, 60] -= 100
    torch.testing.assert_close(ours, expected)
    assert torch.equal(logits, random_logits()), "the model's own logits were changed"


# ---- draws


def chi_squared_p_value(draws, probs):
    """Return the p-value of Pearson's chi-squared test; cells with fewer than 5 expected draws are merged."""
    counts, expected = torch.bincount(draws, minlength=len(probs)).double(), probs.double() * len(draws)
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    x = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), x / 2).item()


SETTINGS = [{}, {"temperature": 2.0}, {"temperature": 0.5, "top_k": 9}, {"top_p": 0.8, "min_p": 0.02}]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("seeds", ["one generator", "a seed each"])
def test_draws_match_the_probabilities(options, seeds):
    """10,000 draws of one generator, and the first draw of each of 10,000 consecutive seeds, as with `n`."""
    n, logits = 10_000, random_logits(n=1, scale=1.5)
    generators = [random.Random(5)] * n if seeds == "one generator" else [random.Random(5 + i) for i in range(n)]
    sampling_options = Sampling(**options)
    draws = choose(logits.expand(n, -1), sampling_options, generators)
    # the probabilities, computed independently with lists
    weights = {i: math.exp(x / sampling_options.temperature) for i, x in enumerate(logits[0].tolist())}
    ranked = sorted(weights, key=lambda i: -weights[i])[: sampling_options.top_k]
    if sampling_options.top_p:
        total, cumulative, kept = sum(weights[i] for i in ranked), 0.0, []
        for i in ranked:
            if cumulative < sampling_options.top_p * total:
                kept.append(i)
            cumulative += weights[i]
        ranked = kept
    if sampling_options.min_p:
        ranked = [i for i in ranked if weights[i] >= sampling_options.min_p * weights[ranked[0]]]
    probs = torch.tensor([weights[i] if i in ranked else 0.0 for i in range(V)])
    probs /= probs.sum()
    assert (probs[draws] > 0).all(), "an excluded token was drawn"
    assert chi_squared_p_value(draws, probs) > 1e-3
    assert chi_squared_p_value(draws, probs**1.25 / (probs**1.25).sum()) < 1e-6, (
        "this test cannot tell a wrong temperature"
    )


class FixedRandom(random.Random):
    """A generator that always returns the same number."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def random(self):
        return self.value


LOW, HIGH = 0.0, 1 - 2**-53  # the smallest and largest results of random()


@pytest.mark.parametrize("draw", [LOW, 0.25, 0.5, 0.75, HIGH, 1.0])  # 1.0: as when sums are rounded differently
@pytest.mark.parametrize("n", [1, 3])
def test_excluded_tokens_are_never_drawn(draw, n):
    excluded = -math.inf
    logits = torch.tensor([[excluded, excluded, 0.0, excluded, 0.0, 0.0, excluded, excluded]]).expand(n, -1)
    drawn = choose(logits, Sampling(), [FixedRandom(draw)] * n)
    assert set(drawn.tolist()) <= {2, 4, 5}
    drawn = choose(random_logits(n), Sampling(top_k=2), [FixedRandom(draw)] * n)
    assert all(token in logits_row.topk(2).indices for token, logits_row in zip(drawn, random_logits(n), strict=True))


@pytest.mark.parametrize("draw", [LOW, 0.5, HIGH])
def test_probabilities_that_underflow(draw):
    """exp(-200) is 0 in float32 and never drawn, even at the ends; small sums do not shift other tokens."""
    logits = torch.full((1, 1000), -200.0)
    logits[0, 500] = 0.0
    assert choose(logits, Sampling(), [FixedRandom(draw)]).item() == 500
    assert choose(logits * 1e-3, Sampling(temperature=1e-5), [FixedRandom(draw)]).item() == 500
    logits[0, 0] = logits[0, 999] = -80.0  # 1.8e-35: possible, but drawn only at the ends
    assert choose(logits, Sampling(), [FixedRandom(draw)]).item() == {LOW: 0, 0.5: 500, HIGH: 500}[draw]


@pytest.mark.parametrize("draw", [LOW, 0.5, HIGH])
def test_lowest_temperature_takes_the_most_likely(draw):
    logits = 1000 * random_logits()
    drawn = choose(logits, Sampling(temperature=1e-5), [FixedRandom(draw)] * 4)
    assert torch.equal(drawn, choose(logits, Sampling(temperature=0.0), []))


# ---- options

# The class without the runtime type checks of the tests, which would reject wrong types first.
Unchecked = runpy.run_path(str(sampling.__file__))["Sampling"]

INVALID = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 101}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": None}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_k": 0}, "top_k"),
    ({"top_k": 2.0}, "top_k"),
    ({"top_p": -0.01}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ({"repetition_penalty": None}, "repetition_penalty"),
    ({"presence_penalty": math.inf}, "presence_penalty"),
    ({"frequency_penalty": "a"}, "frequency_penalty"),
    ({"seed": -1}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 1 << 63}, "seed"),
    ({"logit_bias": {3: math.nan}}, "logit_bias"),
    ({"logit_bias": {"3": 1.0}}, "logit_bias"),
    ({"logit_bias": [(3, 1.0)]}, "logit_bias"),
    ({"temperature": 0, "top_k": 5}, "top_k"),
    ({"temperature": 0, "top_p": 0.9}, "top_p"),
    ({"temperature": 0, "min_p": 0.1}, "min_p"),
    ({"temperature": 0, "seed": 0}, "seed"),
]


@pytest.mark.parametrize(("options", "name"), INVALID, ids=str)
def test_invalid_option_raises_with_param(options, name):
    with pytest.raises(RequestError, match=name) as caught:
        Unchecked(**options)
    assert caught.value.param == name


@pytest.mark.parametrize(
    "options", [{"temperature": 0, "top_p": 1.0}, {"temperature": 0, "min_p": 0}, {"seed": (1 << 63) - 1}]
)
def test_options_without_effect_are_allowed_at_temperature_0(options):
    Unchecked(**options)

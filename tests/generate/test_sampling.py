"""Against transformers' own processors, OpenAI's formula, and the chi-squared distribution."""

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


def some_logits(rows=4, seed=0, scale=3.0):
    return scale * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def last(found):
    return list(found.values())[-1]


def same_logits(ours, theirs):
    """The same tokens ruled out, and the same logits for the others."""
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


# transformers computes top-p from the unlikely end (cumulative <= 1 - p is removed), we from the likely one (what the
# likelier tokens alone reach is removed): the same set but for tokens of equal probability at the border, whose order
# neither defines.
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
    logits = some_logits()
    theirs = getattr(transformers, name)(value)(None, logits)
    found = stages(logits, Sampling(**options))
    assert list(found) == [
        "temperature",
        *(name for name in options if name != "temperature" and options[name] != 1000),
    ]
    same_logits(last(found), theirs)


def test_all_stages_equal_transformers():
    logits = theirs = some_logits(rows=32)
    for name, value in (("Temperature", 1.3), ("TopK", 20), ("TopP", 0.8), ("MinP", 0.15)):
        before, theirs = theirs, getattr(transformers, f"{name}LogitsWarper")(value)(None, theirs)
        assert not torch.equal(before, theirs), f"{name} does nothing here, and is not tested"
    found = stages(logits, Sampling(temperature=1.3, top_k=20, top_p=0.8, min_p=0.15))
    assert list(found) == ["temperature", "top_k", "top_p", "min_p"]
    same_logits(last(found), theirs)


@pytest.mark.parametrize("temperature", [1e-6, 1e-9, 1e-40, 5e-324])
def test_small_temperatures_share_the_probability_among_the_largest_logits(temperature):
    """No quotient overflows to NaN; the last row has two largest logits."""
    logits = torch.cat([1000 * some_logits(), torch.tensor([[80.0, -50.0] * (V // 2) + [0.0] * (V % 2)])])
    logits[-1, 2:] = -80.0
    logits[-1, 2] = 80.0
    probs = last(stages(logits, Sampling(temperature=temperature))).softmax(-1)
    largest = logits == logits.amax(-1, keepdim=True)
    torch.testing.assert_close(probs, largest / largest.sum(-1, keepdim=True))
    chosen = choose(logits, Sampling(temperature=temperature), [random.Random(i) for i in range(len(logits))])
    assert largest.gather(-1, chosen[:, None]).all()


def test_top_k_keeps_ties_as_transformers_does():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    same_logits(last(stages(logits, Sampling(top_k=2))), transformers.TopKLogitsWarper(2)(None, logits))


def counted(rows):
    return torch.stack([torch.bincount(torch.tensor(row), minlength=V) for row in rows])


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_equals_transformers(penalty):
    logits = some_logits(rows=2)
    prompt, output = [[1, 2, 3, 3], [7, 7, 7, 7]], [[3, 9, 9], [1, 2, 3]]
    ids = torch.tensor([p + o for p, o in zip(prompt, output, strict=True)])
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    ours = adjust(logits, Sampling(repetition_penalty=penalty), counted(prompt), counted(output))
    assert not torch.equal(theirs, logits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_presence_and_frequency_follow_openais_formula():
    """mu[j] -> mu[j] - c[j] * frequency - float(c[j] > 0) * presence, c of what was sampled, not of the prompt
    (platform.openai.com, "Frequency and presence penalties")."""
    logits = some_logits(rows=2)
    prompt, output = [[1, 2, 2], [5]], [[4, 4, 4, 9], [5, 6, 6]]
    ours = adjust(logits, Sampling(presence_penalty=0.7, frequency_penalty=-0.4), counted(prompt), counted(output))
    for r, row in enumerate(output):
        for j in range(V):
            c = row.count(j)
            assert ours[r, j].item() == pytest.approx(logits[r, j].item() - c * -0.4 - float(c > 0) * 0.7, abs=1e-6)


def test_logit_bias_is_added():
    logits = some_logits()
    ours = adjust(logits, Sampling(logit_bias={3: 2.5, 60: -100.0}))
    expected = logits.clone()
    expected[:, 3] += 2.5
    expected[:, 60] -= 100
    torch.testing.assert_close(ours, expected)
    assert torch.equal(logits, some_logits()), "the model's own logits were changed"


# ---- draws


def misfit(drawn, probs):
    """The chance that draws from `probs` fit it worse than these: Pearson's chi-squared, at least 5 expected a cell."""
    counts, expected = torch.bincount(drawn, minlength=len(probs)).double(), probs.double() * len(drawn)
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
    """From one row's generator in turn; and the first draw of 10,000 neighbouring seeds, as `n` continuations have."""
    n, logits = 10_000, some_logits(rows=1, scale=1.5)
    generators = [random.Random(5)] * n if seeds == "one generator" else [random.Random(5 + r) for r in range(n)]
    wanted = Sampling(**options)
    drawn = choose(logits.expand(n, -1), wanted, generators)
    # the probabilities, worked out in another way: by lists
    weights = {i: math.exp(x / wanted.temperature) for i, x in enumerate(logits[0].tolist())}
    ranked = sorted(weights, key=lambda i: -weights[i])[: wanted.top_k]
    if wanted.top_p:
        total, reached, kept = sum(weights[i] for i in ranked), 0.0, []
        for i in ranked:
            if reached < wanted.top_p * total:
                kept.append(i)
            reached += weights[i]
        ranked = kept
    if wanted.min_p:
        ranked = [i for i in ranked if weights[i] >= wanted.min_p * weights[ranked[0]]]
    probs = torch.tensor([weights[i] if i in ranked else 0.0 for i in range(V)])
    probs /= probs.sum()
    assert (probs[drawn] > 0).all(), "a token that was ruled out was drawn"
    assert misfit(drawn, probs) > 1e-3
    assert misfit(drawn, probs**1.25 / (probs**1.25).sum()) < 1e-6, "this test cannot tell a wrong temperature"


class Fixed(random.Random):
    """A generator that always draws the same."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def random(self):
        return self.value


LOW, HIGH = 0.0, 1 - 2**-53  # what random() can give at the ends


@pytest.mark.parametrize("draw", [LOW, 0.25, 0.5, 0.75, HIGH, 1.0])  # 1.0: as where sums round differently
@pytest.mark.parametrize("rows", [1, 3])
def test_excluded_tokens_are_never_drawn(draw, rows):
    out = -math.inf
    logits = torch.tensor([[out, out, 0.0, out, 0.0, 0.0, out, out]]).expand(rows, -1)
    drawn = choose(logits, Sampling(), [Fixed(draw)] * rows)
    assert set(drawn.tolist()) <= {2, 4, 5}
    drawn = choose(some_logits(rows), Sampling(top_k=2), [Fixed(draw)] * rows)
    assert all(d in row.topk(2).indices for d, row in zip(drawn, some_logits(rows), strict=True))


@pytest.mark.parametrize("draw", [LOW, 0.5, HIGH])
def test_probabilities_that_underflow(draw):
    """exp(-200) is 0 in float32: never drawn, also at the very ends; and tiny sums do not shift the others."""
    logits = torch.full((1, 1000), -200.0)
    logits[0, 500] = 0.0
    assert choose(logits, Sampling(), [Fixed(draw)]).item() == 500
    assert choose(logits * 1e-3, Sampling(temperature=1e-5), [Fixed(draw)]).item() == 500
    logits[0, 0] = logits[0, 999] = -80.0  # 1.8e-35: possible, and drawn only at the very ends
    assert choose(logits, Sampling(), [Fixed(draw)]).item() == {LOW: 0, 0.5: 500, HIGH: 500}[draw]


@pytest.mark.parametrize("draw", [LOW, 0.5, HIGH])
def test_lowest_temperature_takes_the_most_likely(draw):
    logits = 1000 * some_logits()
    drawn = choose(logits, Sampling(temperature=1e-5), [Fixed(draw)] * 4)
    assert torch.equal(drawn, choose(logits, Sampling(temperature=0.0), []))


# ---- options

# As a person meets it: without the type checker of the tests, which would refuse wrong types before we do.
Unchecked = runpy.run_path(str(sampling.__file__))["Sampling"]

BAD = [
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


@pytest.mark.parametrize(("options", "name"), BAD, ids=str)
def test_invalid_option_raises_with_param(options, name):
    with pytest.raises(RequestError, match=name) as caught:
        Unchecked(**options)
    assert caught.value.param == name


@pytest.mark.parametrize(
    "options", [{"temperature": 0, "top_p": 1.0}, {"temperature": 0, "min_p": 0}, {"seed": (1 << 63) - 1}]
)
def test_options_without_effect_are_allowed_at_temperature_0(options):
    Unchecked(**options)

"""The loop against transformers, against recomputing everything at each step, and against each row alone."""

import gc
import random
import weakref
from functools import cache

import pytest
import torch
from tiny import FAMILIES, random_ids, run
from tiny import tiny as tiny_model

from glassformer.errors import CapacityError, CheckpointError, RequestError
from glassformer.generate import prefill, session
from glassformer.generate.decode import decode
from glassformer.generate.request import GenerationRequest
from glassformer.generate.sampling import Sampling, adjust, choose
from glassformer.inspect.edits.edit import replace
from glassformer.kernels.attention import attend_fused
from glassformer.models.language_model import LanguageModel
from glassformer.nn.step import Step

GREEDY = Sampling(temperature=0.0)


@cache
def tiny(family, **changes):
    """Its head is not tied: a random table read both ways answers every token with the token itself."""
    return tiny_model(family, tied_head=False, **changes)


def some_prompts(config, lengths, seed=3):
    return [random_ids(config, 1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]


def rows_of(pieces):
    """The ids of each row, in order of rows; every row's last piece, and only that, says why it ended."""
    rows: dict[int, list] = {}
    for event in pieces:
        assert not rows.get(event.sequence) or rows[event.sequence][-1].finish is None, "a row went on after its end"
        rows.setdefault(event.sequence, []).append(event)
    assert all(row[-1].finish for row in rows.values())
    return [[p.id for p in rows[r] if p.id is not None] for r in sorted(rows)]


def naive(model, prompt, n_tokens, sampling, seed=0, ends=()):
    """Generation without a cache: every step computes all positions again, for one row alone."""
    ids, generator = list(prompt), random.Random(seed)
    for _ in range(n_tokens):
        logits = run(model, torch.tensor([ids]))[:, -1]
        count = [torch.bincount(torch.tensor(part, dtype=torch.long), minlength=model.config.vocab_size)[None]
                 for part in (prompt, ids[len(prompt) :])]  # fmt: skip
        token = choose(adjust(logits, sampling, *count), sampling, [generator]).item()
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


# ---- against transformers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_equals_transformers_generate(family, penalty, in_transformers):
    """48 tokens after a prompt of one token, and after a longer one."""
    model = tiny(family)
    theirs = in_transformers(model)
    for prompt in some_prompts(model.config, [1, 16]):
        expected = theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=48, repetition_penalty=penalty,
            eos_token_id=None, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert len(set(expected)) > 5, "a blind model: it writes the same again and again"
        request = GenerationRequest([prompt], 48, Sampling(temperature=0.0, repetition_penalty=penalty))
        assert rows_of(decode(model, request)) == [expected]


@pytest.mark.parametrize("min_tokens", [0, 1, 2, 5, 12])
def test_min_tokens_equals_transformers(min_tokens, in_transformers):
    """The end token is a token of the greedy text; after `min_tokens`, both texts end at the next end token."""
    model = tiny("qwen3")
    theirs = in_transformers(model)
    [prompt] = some_prompts(model.config, [5])
    [greedy] = rows_of(decode(model, GenerationRequest([prompt], 40, GREEDY)))
    at, end = next((i, token) for i, token in enumerate(greedy) if i > 1 and token not in greedy[:i])
    expected = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=40, min_new_tokens=min_tokens, eos_token_id=end,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    lm = LanguageModel(model, end_ids=[end])
    found = lm.generate(prompt, temperature=0, max_tokens=40, min_tokens=min_tokens).continuations[0]
    ids = [*found.ids, *([] if found.end is None else [found.end.id])]
    assert ids == expected
    assert found.finish == ("stop" if expected[-1] == end else "length")
    assert len(found.ids) == at if min_tokens <= at else len(found.ids) >= min_tokens
    ignored = lm.generate(prompt, temperature=0, max_tokens=40, ignore_eos=True).continuations[0]
    assert (list(ignored.ids), ignored.finish, ignored.end) == (greedy, "length", None)


def test_greedy_continuations_are_equal_unless_an_edit_changes_one():
    lm = LanguageModel(tiny("qwen3"))
    one, two = lm.generate([5, 6], temperature=0, n=2, max_tokens=8).continuations
    assert one == two
    edit = replace("final.logits", 99.0, dim=7, row=1)
    one, two = lm.generate([5, 6], temperature=0, n=2, max_tokens=8, edit=[edit]).continuations
    assert one != two
    assert set(two.ids) == {7}


# ---- against recomputing everything

SAMPLINGS = [
    GREEDY,
    Sampling(seed=7, temperature=1.5),
    Sampling(seed=7, top_k=20, top_p=0.95, min_p=0.01),
    Sampling(
        seed=7, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={3: 2.0, 9: -50.0}
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "warm", "cut", "penalties"])
def test_batched_cached_decoding_equals_recomputation(family, sampling, monkeypatch):
    """Prompts of other lengths beside it, read in chunks of three (the window of five is longer), alone and not."""
    model = tiny(family)
    prompts = some_prompts(model.config, [1, 3, 7, 20, 8])
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 3 * len(prompts))
    together = rows_of(decode(model, GenerationRequest(prompts, 16, sampling)))
    for p, prompt in enumerate(prompts):
        assert together[p] == naive(model, prompt, 16, sampling, 7 + p), f"prompt {p} of {len(prompt)} tokens"


@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 64])
def test_prefill_chunk_size_does_not_change_tokens(chunk, monkeypatch):
    model = tiny("qwen3")
    prompts = some_prompts(model.config, [30, 11, 12])
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", chunk * len(prompts))
    assert rows_of(decode(model, GenerationRequest(prompts, 10, GREEDY))) == [
        naive(model, p, 10, GREEDY) for p in prompts
    ]


def test_sequences_that_end_early_do_not_change_others():
    """A quarter of all tokens end a row, so that rows leave one after the other."""
    model = tiny("qwen3")
    prompts, ends = some_prompts(model.config, [4, 9, 2, 6]), set(range(0, 97, 9))
    sampling = Sampling(seed=1, repetition_penalty=1.2)
    found = rows_of(decode(model, GenerationRequest(prompts, 30, sampling, n=3, end_ids=ends)))
    assert len({len(row) for row in found}) > 5, "the rows end together, and nothing is tested"
    for r, row in enumerate(found):
        assert row == naive(model, prompts[r // 3], 30, sampling, 1 + r, ends)


def test_continuation_i_draws_with_seed_plus_i():
    """Continuation r of n draws with seed + r: the first of five is that of one alone."""
    model = tiny("llama")
    [prompt] = some_prompts(model.config, [5])
    five = rows_of(decode(model, GenerationRequest([prompt], 20, Sampling(seed=40), n=5)))
    assert len(set(map(tuple, five))) == 5
    for r in range(5):
        assert rows_of(decode(model, GenerationRequest([prompt], 20, Sampling(seed=40 + r)))) == [five[r]]


def test_all_bits_of_a_seed_count():
    """All 63 bits of a seed count."""
    model = tiny("llama")
    texts = {
        tuple(rows_of(decode(model, GenerationRequest([[1]], 12, Sampling(seed=s))))[0])
        for s in (5, 5 + (1 << 32), 1 << 62)
    }
    assert len(texts) == 3


# ---- room


def test_generation_fills_the_context():
    model = tiny("qwen3")
    for length in (30, 63):
        pieces = list(decode(model, GenerationRequest(some_prompts(model.config, [length]), None, GREEDY)))
        assert len(pieces) == 64 - length
        assert [p.finish for p in pieces] == [None] * (63 - length) + ["length"]


def test_each_prompt_of_a_batch_fills_the_context():
    model = tiny("qwen3")
    prompts = some_prompts(model.config, [50, 60, 55])
    assert rows_of(decode(model, GenerationRequest(prompts, None, GREEDY))) == [
        naive(model, prompt, 64 - len(prompt), GREEDY) for prompt in prompts
    ]


@pytest.mark.parametrize(
    ("length", "max_tokens", "numbers"),
    [(64, None, "64 tokens does"), (65, 1, "65 tokens"), (40, 25, "40 tokens and max_tokens 25")],
)
def test_too_long_requests_raise_capacity_error(length, max_tokens, numbers):
    model = tiny("qwen3")
    with pytest.raises(CapacityError, match=numbers) as caught:
        decode(model, GenerationRequest(some_prompts(model.config, [3, length]), max_tokens, GREEDY))  # not even begun
    assert "context holds 64" in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt"),
        ([[1], []], {}, "empty"),
        ([[1, 97]], {}, "97 is out of range: allowed are 0 to 96"),
        ([[-1, 5]], {}, "-1 is out of range"),
        ([[1]], {"stop": ("a",)}, "tokenizer"),
        ([[1]], {"sampling": Sampling(logit_bias={97: 1.0})}, "logit_bias: token id 97"),
        ([[1]], {"sampling": Sampling(logit_bias={-1: 1.0})}, "logit_bias: token id -1"),
    ],
)
def test_invalid_requests_raise_before_computation(prompts, options, message):
    with pytest.raises(RequestError, match=message):
        decode(tiny("qwen3"), GenerationRequest(prompts, **options))


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"n": 0}, {"n": 2000}, {"logprobs": -1}], ids=str)
def test_invalid_options_raise_with_param(options):
    with pytest.raises(RequestError, match=next(iter(options))) as caught:
        GenerationRequest([[1]], **options)
    assert caught.value.param == next(iter(options))


def test_nan_logits_raise_checkpoint_error():
    model = tiny_model("qwen3")
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN"):
        next(decode(model, GenerationRequest([[1, 2]], 5)))


def test_padding_of_the_vocabulary_is_never_generated(tokenizer):
    """The model has more rows than the tokenizer tokens: with half its chances there, none is ever written."""
    model = tiny("qwen3", vocab_size=2 * tokenizer.vocab_size)
    [ids] = rows_of(decode(model, GenerationRequest([[1]], 30, Sampling(seed=1, temperature=3.0)), tokenizer=tokenizer))
    assert max(ids) < tokenizer.vocab_size
    without = rows_of(decode(model, GenerationRequest([[1]], 30, Sampling(seed=1, temperature=3.0))))
    assert max(without[0]) >= tokenizer.vocab_size


# ---- log-probabilities


def test_logprobs_precede_all_sampling_stages():
    model = tiny("qwen3")
    [prompt] = some_prompts(model.config, [6])
    sampling = Sampling(seed=2, temperature=2.0, top_k=30, repetition_penalty=1.5, logit_bias={5: 3.0})
    pieces = list(decode(model, GenerationRequest([prompt], 15, sampling, logprobs=4)))
    logits = run(model, torch.tensor([prompt + [p.id for p in pieces]]))[0]
    for i, event in enumerate(pieces):
        expected = logits[len(prompt) - 1 + i].double().softmax(-1).log()
        assert event.logprob == pytest.approx(expected[event.id].item(), abs=1e-4)
        assert [t for t, _ in event.top] == expected.argsort(descending=True)[:4].tolist()
        assert [p for _, p in event.top] == pytest.approx(expected.sort(descending=True).values[:4].tolist(), abs=1e-4)


def test_logprobs_are_optional():
    [plain] = decode(tiny("gpt2"), GenerationRequest([[1]], 1))
    [none] = decode(tiny("gpt2"), GenerationRequest([[1]], 1, logprobs=0))
    assert (plain.logprob, plain.top, none.top) == (None, (), ())
    assert none.logprob is not None
    [full] = decode(tiny("gpt2"), GenerationRequest([[1]], 1, logprobs=1024))
    assert len(full.top) == 97


# ---- what it leaves behind


def test_inference_mode_does_not_leak_between_events():
    model, modes = tiny_model("qwen3").train(), []

    def attend(*arguments):
        modes.append(torch.is_inference_mode_enabled())
        return attend_fused(*arguments)

    pieces = decode(model, GenerationRequest([[1, 2, 3]], 20), attend=attend)
    for _ in range(3):
        next(pieces)
        assert not torch.is_inference_mode_enabled()
        ids = random_ids(model.config, 1, 8)
        model(ids, Step.of(ids)).sum().backward()  # training goes on between two tokens
    assert all(p.grad is not None for p in model.parameters())
    pieces.close()
    assert not torch.is_inference_mode_enabled()
    assert modes == [True] * 9, "three passes through three layers, none of which keeps a graph"


@pytest.fixture
def caches(monkeypatch):
    """Weak references to every cache that is made."""
    made, of = [], session.DenseCache.of

    def remember(*arguments, **rest):
        cache = of(*arguments, **rest)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(session.DenseCache, "of", remember)
    return made


def test_closing_the_iterator_frees_the_cache(caches):
    pieces = decode(tiny("qwen3"), GenerationRequest([[1, 2], [3]], 20))
    next(pieces)
    assert caches[0]() is not None
    pieces.close()
    gc.collect()
    assert caches[0]() is None
    del pieces


@pytest.mark.parametrize("at", [1, 2, 8], ids=lambda at: f"in pass {at}")
def test_interrupt_leaves_the_model_usable(at, caches, monkeypatch):
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 4)
    model, passes = tiny("qwen3"), 0
    [prompt] = some_prompts(model.config, [10])
    before = rows_of(decode(model, GenerationRequest([prompt], 12, GREEDY)))

    def interrupted(spec, *rest):
        nonlocal passes
        passes += spec.window is not None  # the middle layer has the window
        if passes == at:
            raise KeyboardInterrupt
        return attend_fused(spec, *rest)

    with pytest.raises(KeyboardInterrupt):
        list(decode(model, GenerationRequest([prompt], 12, GREEDY), attend=interrupted))
    assert not torch.is_inference_mode_enabled()
    gc.collect()
    assert [cache() for cache in caches] == [None, None]
    assert rows_of(decode(model, GenerationRequest([prompt], 12, GREEDY))) == before

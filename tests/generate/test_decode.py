"""The decode loop, compared with transformers, with uncached recomputation, and with single sequences."""

import gc
import os
import random
from functools import cache

import pytest
import torch
from tiny import FAMILIES, random_ids, run
from tiny import tiny as tiny_model

from glassformer.errors import CapacityError, CheckpointError, RequestError
from glassformer.generate import prefill
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
    """Return a tiny model with an untied head: a tied random head predicts the input token."""
    return tiny_model(family, tied_head=False, **changes)


def random_prompts(config, lengths, seed=3):
    return [random_ids(config, 1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]


def ids_by_sequence(events):
    """Return the ids of each sequence; check that its last event, and no other, has a finish reason."""
    sequences: dict[int, list] = {}
    for event in events:
        assert not sequences.get(event.sequence) or sequences[event.sequence][-1].finish is None, (
            "an event after the finish reason"
        )
        sequences.setdefault(event.sequence, []).append(event)
    assert all(sequence[-1].finish for sequence in sequences.values())
    return [[event.id for event in sequences[i] if event.id is not None] for i in sorted(sequences)]


def generate_uncached(model, prompt, n_tokens, sampling, seed=0, end_ids=()):
    """Generate one sequence without a cache: each step recomputes all positions."""
    ids, generator = list(prompt), random.Random(seed)
    for _ in range(n_tokens):
        logits = run(model, torch.tensor([ids]))[:, -1]
        counts = [torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=model.config.vocab_size)[None]
                 for tokens in (prompt, ids[len(prompt) :])]  # fmt: skip
        token = choose(adjust(logits, sampling, *counts), sampling, [generator]).item()
        if token in end_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


# ---- compared with transformers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_equals_transformers_generate(family, penalty, in_transformers):
    """48 tokens after a prompt of one token, and after a longer one."""
    model = tiny(family)
    theirs = in_transformers(model)
    for prompt in random_prompts(model.config, [1, 16]):
        expected = theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=48, repetition_penalty=penalty,
            eos_token_id=None, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert len(set(expected)) > 5, "degenerate text"
        request = GenerationRequest([prompt], 48, Sampling(temperature=0.0, repetition_penalty=penalty))
        assert ids_by_sequence(decode(model, request)) == [expected]


@pytest.mark.parametrize("min_tokens", [0, 1, 2, 5, 12])
def test_min_tokens_equals_transformers(min_tokens, in_transformers):
    """The end token is a token of the greedy text; after `min_tokens`, both texts end at the next end token."""
    model = tiny("qwen3")
    theirs = in_transformers(model)
    [prompt] = random_prompts(model.config, [5])
    [greedy] = ids_by_sequence(decode(model, GenerationRequest([prompt], 40, GREEDY)))
    end_position, end = next((i, token) for i, token in enumerate(greedy) if i > 1 and token not in greedy[:i])
    expected = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=40, min_new_tokens=min_tokens, eos_token_id=end,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    lm = LanguageModel(model, end_ids=[end])
    continuation = lm.generate(prompt, temperature=0, max_tokens=40, min_tokens=min_tokens).continuations[0]
    ids = [*continuation.ids, *([] if continuation.end is None else [continuation.end.id])]
    assert ids == expected
    assert continuation.finish == ("stop" if expected[-1] == end else "length")
    assert len(continuation.ids) == end_position if min_tokens <= end_position else len(continuation.ids) >= min_tokens
    ignored = lm.generate(prompt, temperature=0, max_tokens=40, ignore_eos=True).continuations[0]
    assert (list(ignored.ids), ignored.finish, ignored.end) == (greedy, "length", None)


def test_greedy_continuations_are_equal_unless_an_edit_changes_one():
    lm = LanguageModel(tiny("qwen3"))
    first, second = lm.generate([5, 6], temperature=0, n=2, max_tokens=8).continuations
    assert first == second
    edit = replace("final.logits", 99.0, dim=7, row=1)
    first, second = lm.generate([5, 6], temperature=0, n=2, max_tokens=8, edit=[edit]).continuations
    assert first != second
    assert set(second.ids) == {7}


# ---- compared with uncached recomputation

SAMPLINGS = [
    GREEDY,
    Sampling(seed=7, temperature=1.5),
    Sampling(seed=7, top_k=20, top_p=0.95, min_p=0.01),
    Sampling(
        seed=7, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={3: 2.0, 9: -50.0}
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "temperature", "truncated", "penalties"])
def test_batched_cached_decoding_equals_recomputation(family, sampling, monkeypatch):
    """Prompts of different lengths, prefilled in chunks of 3 tokens, fewer than the sliding window of 5."""
    model = tiny(family)
    prompts = random_prompts(model.config, [1, 3, 7, 20, 8])
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 3 * len(prompts))
    batched = ids_by_sequence(decode(model, GenerationRequest(prompts, 16, sampling)))
    for p, prompt in enumerate(prompts):
        assert batched[p] == generate_uncached(model, prompt, 16, sampling, 7 + p), (
            f"prompt {p} of {len(prompt)} tokens"
        )


@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 64])
def test_prefill_chunk_size_does_not_change_tokens(chunk, monkeypatch):
    model = tiny("qwen3")
    prompts = random_prompts(model.config, [30, 11, 12])
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", chunk * len(prompts))
    assert ids_by_sequence(decode(model, GenerationRequest(prompts, 10, GREEDY))) == [
        generate_uncached(model, p, 10, GREEDY) for p in prompts
    ]


def test_sequences_that_end_early_do_not_change_others():
    """Eleven tokens are end tokens, so that sequences end at different steps."""
    model = tiny("qwen3")
    prompts, end_ids = random_prompts(model.config, [4, 9, 2, 6]), set(range(0, 97, 9))
    sampling = Sampling(seed=1, repetition_penalty=1.2)
    sequences = ids_by_sequence(decode(model, GenerationRequest(prompts, 30, sampling, n=3, end_ids=end_ids)))
    assert len({len(sequence) for sequence in sequences}) > 5, "all sequences end together: nothing is tested"
    for i, sequence in enumerate(sequences):
        assert sequence == generate_uncached(model, prompts[i // 3], 30, sampling, 1 + i, end_ids)


def test_continuation_i_draws_with_seed_plus_i():
    """Continuation i of five equals a single continuation with seed + i."""
    model = tiny("llama")
    [prompt] = random_prompts(model.config, [5])
    continuations = ids_by_sequence(decode(model, GenerationRequest([prompt], 20, Sampling(seed=40), n=5)))
    assert len(set(map(tuple, continuations))) == 5
    for i in range(5):
        assert ids_by_sequence(decode(model, GenerationRequest([prompt], 20, Sampling(seed=40 + i)))) == [
            continuations[i]
        ]


def test_high_bits_of_a_seed_change_the_text():
    """Seeds that differ only above bit 31 give different texts."""
    model = tiny("llama")
    texts = {
        tuple(ids_by_sequence(decode(model, GenerationRequest([[1]], 12, Sampling(seed=s))))[0])
        for s in (5, 5 + (1 << 32), 1 << 62)
    }
    assert len(texts) == 3


# ---- context length


def test_generation_fills_the_context():
    model = tiny("qwen3")
    for length in (30, 63):
        events = list(decode(model, GenerationRequest(random_prompts(model.config, [length]), None, GREEDY)))
        assert len(events) == 64 - length
        assert [event.finish for event in events] == [None] * (63 - length) + ["length"]


def test_each_prompt_of_a_batch_fills_the_context():
    model = tiny("qwen3")
    prompts = random_prompts(model.config, [50, 60, 55])
    assert ids_by_sequence(decode(model, GenerationRequest(prompts, None, GREEDY))) == [
        generate_uncached(model, prompt, 64 - len(prompt), GREEDY) for prompt in prompts
    ]


@pytest.mark.parametrize(
    ("length", "max_tokens", "message"),
    [(64, None, "64 tokens does"), (65, 1, "65 tokens"), (40, 25, "40 tokens and max_tokens 25")],
)
def test_too_long_requests_raise_capacity_error(length, max_tokens, message):
    model = tiny("qwen3")
    with pytest.raises(CapacityError, match=message) as caught:
        decode(
            model, GenerationRequest(random_prompts(model.config, [3, length]), max_tokens, GREEDY)
        )  # raises before the first event
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
    """The model has twice as many logits as the tokenizer has tokens; no token beyond those is generated."""
    model = tiny("qwen3", vocab_size=2 * tokenizer.vocab_size)
    [ids] = ids_by_sequence(
        decode(model, GenerationRequest([[1]], 30, Sampling(seed=1, temperature=3.0)), tokenizer=tokenizer)
    )
    assert max(ids) < tokenizer.vocab_size
    without_tokenizer = ids_by_sequence(decode(model, GenerationRequest([[1]], 30, Sampling(seed=1, temperature=3.0))))
    assert max(without_tokenizer[0]) >= tokenizer.vocab_size


# ---- log-probabilities


def test_logprobs_precede_all_sampling_stages():
    model = tiny("qwen3")
    [prompt] = random_prompts(model.config, [6])
    sampling = Sampling(seed=2, temperature=2.0, top_k=30, repetition_penalty=1.5, logit_bias={5: 3.0})
    events = list(decode(model, GenerationRequest([prompt], 15, sampling, logprobs=4)))
    logits = run(model, torch.tensor([prompt + [p.id for p in events]]))[0]
    for i, event in enumerate(events):
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


# ---- side effects


def test_inference_mode_does_not_leak_between_events():
    model, modes = tiny_model("qwen3").train(), []

    def attend(*arguments):
        modes.append(torch.is_inference_mode_enabled())
        return attend_fused(*arguments)

    events = decode(model, GenerationRequest([[1, 2, 3]], 20), attend=attend)
    for _ in range(3):
        next(events)
        assert not torch.is_inference_mode_enabled()
        ids = random_ids(model.config, 1, 8)
        model(ids, Step.of(ids)).sum().backward()  # training between two events
    assert all(p.grad is not None for p in model.parameters())
    events.close()
    assert not torch.is_inference_mode_enabled()
    if (
        "TYPECHECK" not in os.environ
    ):  # the checker's wrapper hides from `torch.inference_mode` that `start` is a generator
        assert modes == [True] * 9, "three forward passes of three layers, all without a graph"


def test_closing_the_iterator_frees_the_cache(caches):
    events = decode(tiny("qwen3"), GenerationRequest([[1, 2], [3]], 20))
    next(events)
    assert caches[0]() is not None
    events.close()
    gc.collect()
    assert caches[0]() is None
    del events


@pytest.mark.parametrize("interrupted_pass", [1, 2, 8])
def test_interrupt_leaves_the_model_usable(interrupted_pass, caches, monkeypatch):
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 4)
    model, passes = tiny("qwen3"), 0
    [prompt] = random_prompts(model.config, [10])
    before = ids_by_sequence(decode(model, GenerationRequest([prompt], 12, GREEDY)))

    def interrupt(spec, *rest):
        nonlocal passes
        passes += spec.window is not None  # the middle layer has the window
        if passes == interrupted_pass:
            raise KeyboardInterrupt
        return attend_fused(spec, *rest)

    with pytest.raises(KeyboardInterrupt):
        list(decode(model, GenerationRequest([prompt], 12, GREEDY), attend=interrupt))
    assert not torch.is_inference_mode_enabled()
    gc.collect()
    assert [cache() for cache in caches] == [None, None]
    assert ids_by_sequence(decode(model, GenerationRequest([prompt], 12, GREEDY))) == before

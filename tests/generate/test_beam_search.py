"""Greedy and beam search, compared with exhaustive search, with a search without early stopping, and unbatched."""

import itertools
import math

import pytest
import torch
from tiny import (
    ENCODER_DECODERS,
    encode_source,
    encoder_decoder_config,
    randomise,
    randomise_sharp,
    run,
    tiny_encoder_decoder,
)

from glassformer.config import RecurrentConfig
from glassformer.errors import CapacityError, CheckpointError, RequestError
from glassformer.generate.beam_search import BeamSearch, beam_search, greedy, search
from glassformer.generate.decode import check_request, open_session
from glassformer.generate.request import GenerationRequest, TokenConstraints
from glassformer.generate.sampling import Sampling
from glassformer.generate.session import DEFAULT_MAX_TOKENS
from glassformer.kernels.attention import MANY_HEADS
from glassformer.kernels.linear import PrepackedLinear, can_prepack
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder

BEGIN, END = 1, 2
LENGTH_PENALTIES = (0.0, 0.6, 2.0)
RECURRENT = ("none", "additive", "dot", "general fed")
SOURCES = [[5, 6, 7, 8, 9, 10], [11, 4], [3], [7, 7, 12, 9], [8, 3, 5, 6, 11, 4, 9, 10, 12], [6, 12]]


def recurrent_model(kind, vocab=97, seed=0):
    attention = None if kind == "none" else kind.split()[0]
    config = RecurrentConfig(
        83, vocab, 10, 12, 2, "lstm" if kind == "additive" else "gru", attention=attention, input_feeding="fed" in kind
    )
    model = randomise(RecurrentEncoderDecoder(config), seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.6 if p.ndim > 1 else 1.0)
    return model


def small_model(name, vocab, seed=0):
    """Return a model with a small_model vocabulary."""
    if name in RECURRENT:
        return recurrent_model(name, vocab, seed)
    return randomise_sharp(EncoderDecoder(encoder_decoder_config(name, vocab_size=vocab)), seed)


MODELS = {name: tiny_encoder_decoder(name, tied_head=False) for name in ENCODER_DECODERS} | {
    name: recurrent_model(name) for name in RECURRENT
}
each_model = pytest.mark.parametrize("name", MODELS)


class RandomSession:
    """A decode session without a model: random logits, determined by the source and the text so far."""

    def __init__(self, n_sources, vocab=4, seed=0, sharp=1.5):
        self.texts, self.vocab, self.seed, self.sharp = [(s,) for s in range(n_sources)], vocab, seed, sharp
        self.passes = []

    def logits(self, text):
        generator = torch.Generator().manual_seed(hash((self.seed, *text)) % (1 << 40))
        return torch.randn(self.vocab, generator=generator) * self.sharp

    def start(self):
        yield
        return self.advance([BEGIN] * len(self.texts))

    def advance(self, ids):
        assert len(ids) == len(self.texts)
        self.passes.append(len(ids))
        self.texts = [(*text, token) for text, token in zip(self.texts, ids, strict=True)]
        return torch.stack([self.logits(text) for text in self.texts])

    def select(self, sequences):
        self.texts = [self.texts[sequence] for sequence in sequences]


def request_of(sources, max_tokens, **rest):
    """Return the request that `search` creates from its arguments."""
    greedy = Sampling(temperature=0.0)
    return GenerationRequest(
        [[BEGIN]] * len(sources), max_tokens, greedy, logprobs=0, end_ids=(END,), sources=sources, **rest
    )


def session_of(model, sources, max_tokens):
    request = request_of(sources, max_tokens)
    limits = check_request(model, request)
    return open_session(model, request, limits), request, limits


def session_arguments(model, n_sources, max_tokens):
    return model, request_of([[0]] * n_sources, max_tokens), [max_tokens] * n_sources


def all_texts(logprobs, vocab, max_tokens, settings):
    """Return every text of at most `max_tokens` tokens as (ids, logprob, score, finish), best first."""
    texts = []
    for length in range(1, max_tokens + 1):
        for ids in itertools.product(range(vocab), repeat=length):
            if END in ids[:-1] or (length < max_tokens and ids[-1] != END):
                continue
            total = sum(logprobs(ids[:i])[token] for i, token in enumerate(ids))
            stop = ids[-1] == END
            score = total / ((5 + length) / 6) ** settings.length_penalty
            texts.append((ids[:-1] if stop else ids, total, score, "stop" if stop else "length"))
    return sorted(texts, key=lambda text: (text[3] != "stop", -text[2]))


def beam_search_by_definition(logprobs, vocab, max_tokens, settings):
    """Beam search by its definition: one text at a time, without early stopping."""
    live, finished = [((), 0.0)], []
    for length in range(1, max_tokens + 1):
        longer = [((*ids, t), total + logprobs(ids)[t]) for ids, total in live for t in range(vocab)]
        longer = sorted(longer, key=lambda text: -text[1])[: settings.beam]
        divisor = ((5 + length) / 6) ** settings.length_penalty
        finished += [(ids[:-1], total, total / divisor, "stop") for ids, total in longer if ids[-1] == END]
        live = [text for text in longer if text[0][-1] != END]
    finished += [(ids, total, total / divisor, "length") for ids, total in live]
    return sorted(finished, key=lambda text: (text[3] != "stop", -text[2]))[: settings.n]


def assert_same(results, expected):
    assert [(result.ids, result.finish) for result in results] == [(ids, finish) for ids, _, _, finish in expected]
    for result, (_, total, score, _) in zip(results, expected, strict=True):
        assert result.logprob == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert result.score == pytest.approx(score, rel=1e-4, abs=1e-5)


def logprobs_of(model, source):
    return lambda ids: model.logits((source, BEGIN, *ids)).log_softmax(-1).tolist()


@pytest.mark.parametrize("alpha", LENGTH_PENALTIES)
@pytest.mark.parametrize(("vocab", "max_tokens", "seed"), [(3, 5, 0), (4, 4, 1), (5, 3, 2), (4, 1, 3)])
def test_exhaustive_beam_finds_the_best_texts(vocab, max_tokens, seed, alpha):
    settings, model = (
        BeamSearch(beam=max(7, vocab**max_tokens), n=7, length_penalty=alpha),
        RandomSession(3, vocab, seed),
    )
    results = beam_search(*session_arguments(model, 3, max_tokens), settings)
    for source in range(3):
        assert_same(results[source], all_texts(logprobs_of(model, source), vocab, max_tokens, settings)[:7])


@pytest.mark.parametrize("name", ["separate", "rms", "none", "additive", "general fed"])
def test_exhaustive_beam_of_a_model_finds_the_best_texts(name):
    """With caches and recurrent_model states, compared with uncached forward passes over every text."""
    vocab, max_tokens, settings = 5, 4, BeamSearch(beam=700, n=9)
    model, source = small_model(name, vocab), SOURCES[0]
    source_ids = torch.tensor([source])
    logprobs = {}
    for length in range(max_tokens):
        texts = list(itertools.product(range(vocab), repeat=length))
        ids = torch.tensor([[BEGIN, *text] for text in texts])
        with torch.no_grad():
            if name in RECURRENT:
                logits = model(source_ids.expand(len(ids), -1), ids)
            else:
                logits = run(model, ids, source=encode_source(model, source_ids.expand(len(ids), -1)))
        logprobs |= dict(zip(texts, logits[:, -1].log_softmax(-1).tolist(), strict=True))
    (results,) = search(
        model, [source], BeamSearch(beam=settings.beam, n=settings.n, max_tokens=max_tokens), begin=BEGIN, end=END
    )
    assert_same(results, all_texts(logprobs.__getitem__, vocab, max_tokens, settings)[: settings.n])


@pytest.mark.parametrize("alpha", LENGTH_PENALTIES)
@pytest.mark.parametrize(("beam", "n"), [(1, 1), (2, 1), (3, 3), (5, 2)])
def test_early_stopping_does_not_change_results(beam, n, alpha):
    """It saves forward passes; how many depends on how peaked the distributions are."""
    settings, max_tokens, saved_passes = BeamSearch(beam=beam, n=n, length_penalty=alpha), 12, 0
    for seed in range(8):
        model = RandomSession(4, 5, seed, sharp=3.0)
        results = beam_search(*session_arguments(model, 4, max_tokens), settings)
        assert len(model.passes) <= max_tokens
        saved_passes += max_tokens - len(model.passes)
        for source in range(4):
            assert_same(results[source], beam_search_by_definition(logprobs_of(model, source), 5, max_tokens, settings))
    assert saved_passes > 0 or (alpha == 2 and beam > 1)


@pytest.mark.parametrize("sharp", [0.3, 2.0])
def test_beam_of_one_equals_greedy_decoding(sharp):
    for seed in range(10):
        settings, (a, b) = BeamSearch(), (RandomSession(5, 6, seed, sharp) for _ in range(2))
        greedy_results = [[result] for result in greedy(*session_arguments(a, 5, 9), settings)]
        assert greedy_results == beam_search(*session_arguments(b, 5, 9), settings)
        assert a.passes == b.passes


@each_model
def test_beam_of_one_equals_greedy_decoding_in_models(name):
    model, settings = MODELS[name], BeamSearch()
    with torch.inference_mode():
        results = greedy(*session_of(model, SOURCES, 20), settings)
        assert [[result] for result in results] == beam_search(*session_of(model, SOURCES, 20), settings)
    assert len({result.ids for result in results}) > 3, "the source has no effect"


@each_model
@torch.no_grad()
def test_greedy_equals_argmax_of_uncached_forward_passes(name):
    model = MODELS[name]
    results = search(model, SOURCES, BeamSearch(max_tokens=9), begin=BEGIN, end=END)
    for source, (result,) in zip(SOURCES, results, strict=True):
        source_ids, ids, total = torch.tensor([source]), [BEGIN], 0.0
        while len(ids) < 10 and ids[-1] != END:
            prefix = torch.tensor([ids])
            logits = (
                model(source_ids, prefix)
                if name in RECURRENT
                else run(model, prefix, source=encode_source(model, source_ids))
            )
            top = logits[0, -1].log_softmax(-1).max(-1)
            ids.append(top.indices.item())
            total += top.values.item()
        stop = ids[-1] == END
        assert result.ids == tuple(ids[1:-1] if stop else ids[1:])
        assert result.finish == ("stop" if stop else "length")
        assert result.logprob == pytest.approx(total, rel=1e-4)
        assert result.score == pytest.approx(total / ((4 + len(ids)) / 6) ** 0.6, rel=1e-4)


@each_model
@pytest.mark.parametrize(("beam", "n"), [(1, 1), (4, 3)])
def test_batched_search_equals_single_search(name, beam, n):
    model, settings = MODELS[name], BeamSearch(beam, n, max_tokens=12)
    batched = search(model, SOURCES, settings, begin=BEGIN, end=END)
    for source, results in zip(SOURCES, batched, strict=True):
        (alone,) = search(model, [source], settings, begin=BEGIN, end=END)
        assert_same(results, [(result.ids, result.logprob, result.score, result.finish) for result in alone])


@each_model
@pytest.mark.parametrize(("beam", "n"), [(1, 1), (3, 2)])
def test_large_batch_equals_small_batch(name, beam, n):
    """A large batch uses prepacked matrices and computes attention as one product over all heads."""
    model, settings, large_batch = MODELS[name], BeamSearch(beam, n, max_tokens=12), SOURCES * 3
    large_results = search(model, large_batch, settings, begin=BEGIN, end=END)
    small_results = search(model, SOURCES, settings, begin=BEGIN, end=END)
    for actual, expected in zip(large_results, small_results * 3, strict=True):
        assert_same(actual, [(result.ids, result.logprob, result.score, result.finish) for result in expected])
    if name in ENCODER_DECODERS:
        small_session, large_session = session_of(model, SOURCES, 9)[0], session_of(model, large_batch, 9)[0]
        assert small_session.model is model
        assert isinstance(large_session.model.blocks[0].attn.q, PrepackedLinear) == can_prepack(model.head.weight.dtype)
        heads = model.config.layers[0].attention.n_heads
        assert len(SOURCES) * heads < MANY_HEADS <= len(large_batch) * heads


@each_model
def test_results_are_sorted_and_unique(name):
    results = search(MODELS[name], SOURCES, BeamSearch(6, 6, max_tokens=10), begin=BEGIN, end=END)
    for texts in results:
        assert len(texts) == 6
        assert len({(result.ids, result.finish) for result in texts}) == 6
        assert [result.rank for result in texts] == sorted(result.rank for result in texts)
        assert all(
            result.score == result.logprob / BeamSearch().divisor(len(result.ids) + (result.finish == "stop"))
            for result in texts
        )


def test_finished_sequences_leave_the_batch():
    class ScriptedLengths(RandomSession):
        """Source s generates s tokens, then the end token."""

        def logits(self, text):
            scores = torch.zeros(self.vocab)
            scores[END if len(text) - 2 >= text[0] else 3] = 40.0
            return scores

    for beam in (1, 3):
        model = ScriptedLengths(4, vocab=5)
        settings = BeamSearch(beam=beam, length_penalty=0.0)
        if beam == 1:
            results = [[result] for result in greedy(*session_arguments(model, 4, 50), settings)]
            assert model.passes == [4, 3, 2, 1]
        else:
            results = beam_search(*session_arguments(model, 4, 50), settings)
            assert len(model.passes) == 4
            assert model.passes[1:] == sorted(model.passes[1:], reverse=True)
        assert [result.ids for (result,) in results] == [(), (3,), (3, 3), (3, 3, 3)]
    model = ScriptedLengths(4, vocab=5)
    truncated = greedy(*session_arguments(model, 4, 2), BeamSearch())
    assert [result.ids for result in truncated] == [(), (3,), (3, 3), (3, 3)]
    assert [result.finish for result in truncated] == ["stop", "stop", "length", "length"]
    assert len(model.passes) == 2


@pytest.mark.parametrize("beam", [1, 3])
def test_encoder_and_each_token_run_once(beam):
    """The encoder and the source keys run once; each decoder forward pass adds one token per sequence."""
    model, calls = tiny_encoder_decoder("pre", seed=4), {"encoder": [], "cross": [], "own": []}
    hooks = [
        module.register_forward_hook(lambda _, args, out, kind=kind: calls[kind].append(tuple(args[0].shape[:2])))
        for kind, module in (
            ("encoder", model.encoder), ("cross", model.blocks[1].cross.k), ("own", model.blocks[1].attn.k)
        )
    ]  # fmt: skip
    search(model, SOURCES, BeamSearch(beam=beam, max_tokens=8), begin=BEGIN, end=END)
    for hook in hooks:
        hook.remove()
    assert calls["encoder"] == calls["cross"] == [(6, 9)]
    assert 1 < len(calls["own"]) <= 8
    assert all(width == 1 and n_sequences <= 6 * beam for n_sequences, width in calls["own"])


def test_only_tokens_of_the_vocabulary_are_generated():
    model, constraints = MODELS["separate"], TokenConstraints(vocab_size=9)
    for beam in (1, 4):
        results = search(
            model,
            SOURCES,
            BeamSearch(beam, beam, max_tokens=9),
            begin=BEGIN,
            end=END,
            constraints=constraints,
        )
        assert all(max(result.ids, default=0) < 9 for texts in results for result in texts)
        assert all(len(texts) == beam for texts in results)


def test_texts_without_end_token_stop_at_the_limit():
    model = recurrent_model("dot")
    with torch.no_grad():
        model.head.weight[END] = 0
        model.head.weight[5] = -model.head.weight[6]  # one of the two is above 0
    ((result,),) = search(model, [[3]], BeamSearch(), begin=BEGIN, end=END)
    assert (len(result.ids), result.finish) == (DEFAULT_MAX_TOKENS, "length")
    (results,) = search(MODELS["post"], [[3]], BeamSearch(), begin=BEGIN, end=0)
    assert len(results[0].ids) <= MODELS["post"].config.context_length
    assert not math.isnan(results[0].score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam must be a whole number from 1"),
        ({"beam": 2, "n": 3}, r"n = 3 results need a beam of at least 3, got 2"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"length_penalty": -0.1}, "length_penalty must be a number from 0 to 10"),
    ],
)
def test_options_out_of_range_raise(options, message):
    with pytest.raises(RequestError, match=message):
        BeamSearch(**options)


@pytest.mark.parametrize(
    ("error", "message", "sources", "options"),
    [
        (RequestError, "the source is empty", [[3], []], {}),
        (RequestError, "token id 97 is out of range", [[97]], {}),
        (CapacityError, "a source of 65 tokens does not fit", [[3], [3] * 65], {}),
        (CapacityError, "max_tokens 65 does not fit", [[3]], {"max_tokens": 65}),
    ],
)
def test_invalid_sources_raise(error, message, sources, options):
    with pytest.raises(error, match=message):
        search(MODELS["post"], sources, BeamSearch(**options), begin=BEGIN, end=END)
    assert search(MODELS["post"], [], BeamSearch(), begin=BEGIN, end=END) == []


@pytest.mark.parametrize("beam", [1, 2])
def test_nan_logits_raise_checkpoint_error(beam):
    model = tiny_encoder_decoder("post", seed=2)
    with torch.no_grad():
        model.blocks[0].mlp.up.weight.fill_(math.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        search(model, [[3]], BeamSearch(beam), begin=BEGIN, end=END)

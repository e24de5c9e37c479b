"""Greedy and beam search: against every text there is, against a search that never stops early, and row by row."""

import itertools
import math

import pytest
import torch
from tiny import PAIRS, pair_config, randomise, read, run, tiny_pair, wake

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
ALPHAS = (0.0, 0.6, 2.0)
RECURRENT = ("none", "additive", "dot", "general fed")
SOURCES = [[5, 6, 7, 8, 9, 10], [11, 4], [3], [7, 7, 12, 9], [8, 3, 5, 6, 11, 4, 9, 10, 12], [6, 12]]


def recurrent(kind, vocab=97, seed=0):
    attention = None if kind == "none" else kind.split()[0]
    config = RecurrentConfig(
        83, vocab, 10, 12, 2, "lstm" if kind == "additive" else "gru", attention=attention, input_feeding="fed" in kind
    )
    model = randomise(RecurrentEncoderDecoder(config), seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.6 if p.ndim > 1 else 1.0)
    return model


def small(name, vocab, seed=0):
    """A model that writes few different tokens."""
    if name in RECURRENT:
        return recurrent(name, vocab, seed)
    return wake(EncoderDecoder(pair_config(name, vocab_size=vocab)), seed)


MODELS = {name: tiny_pair(name, tied_head=False) for name in PAIRS} | {name: recurrent(name) for name in RECURRENT}
EACH = pytest.mark.parametrize("name", MODELS)


class Toy:
    """A model of nothing: the scores of the next token are drawn anew for each (source, text so far)."""

    def __init__(self, n_sources, vocab=4, seed=0, sharp=1.5):
        self.texts, self.vocab, self.seed, self.sharp = [(s,) for s in range(n_sources)], vocab, seed, sharp
        self.passes = []

    def logits(self, text):
        drawn = torch.Generator().manual_seed(hash((self.seed, *text)) % (1 << 40))
        return torch.randn(self.vocab, generator=drawn) * self.sharp

    def start(self):
        return self.advance([BEGIN] * len(self.texts))

    def advance(self, ids):
        assert len(ids) == len(self.texts)
        self.passes.append(len(ids))
        self.texts = [(*text, token) for text, token in zip(self.texts, ids, strict=True)]
        return torch.stack([self.logits(text) for text in self.texts])

    def select(self, rows):
        self.texts = [self.texts[row] for row in rows]


def request_of(sources, max_tokens, **rest):
    """The request that `search` makes of its arguments."""
    greedy = Sampling(temperature=0.0)
    return GenerationRequest(
        [[BEGIN]] * len(sources), max_tokens, greedy, logprobs=0, end_ids=(END,), sources=sources, **rest
    )


def session_of(model, sources, max_tokens):
    request = request_of(sources, max_tokens)
    limits = check_request(model, request)
    return open_session(model, request, limits), request, limits


def of_toy_session(toy, n_sources, max_tokens):
    return toy, request_of([[0]] * n_sources, max_tokens), [max_tokens] * n_sources


def everything(logprobs, vocab, most, how):
    """Every text of at most `most` tokens as (ids, logprob, score, finish), the best first."""
    found = []
    for length in range(1, most + 1):
        for ids in itertools.product(range(vocab), repeat=length):
            if END in ids[:-1] or (length < most and ids[-1] != END):
                continue
            total = sum(logprobs(ids[:i])[token] for i, token in enumerate(ids))
            stop = ids[-1] == END
            score = total / ((5 + length) / 6) ** how.length_penalty
            found.append((ids[:-1] if stop else ids, total, score, "stop" if stop else "length"))
    return sorted(found, key=lambda one: (one[3] != "stop", -one[2]))


def patient(logprobs, vocab, most, how):
    """Beam search as its definition says it, one text at a time, never stopped early."""
    live, found = [((), 0.0)], []
    for length in range(1, most + 1):
        longer = [((*ids, t), total + logprobs(ids)[t]) for ids, total in live for t in range(vocab)]
        longer = sorted(longer, key=lambda one: -one[1])[: how.beam]
        divisor = ((5 + length) / 6) ** how.length_penalty
        found += [(ids[:-1], total, total / divisor, "stop") for ids, total in longer if ids[-1] == END]
        live = [one for one in longer if one[0][-1] != END]
    found += [(ids, total, total / divisor, "length") for ids, total in live]
    return sorted(found, key=lambda one: (one[3] != "stop", -one[2]))[: how.n]


def assert_same(found, wanted):
    assert [(one.ids, one.finish) for one in found] == [(ids, finish) for ids, _, _, finish in wanted]
    for one, (_, total, score, _) in zip(found, wanted, strict=True):
        assert one.logprob == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert one.score == pytest.approx(score, rel=1e-4, abs=1e-5)


def of_toy(toy, source):
    return lambda ids: toy.logits((source, BEGIN, *ids)).log_softmax(-1).tolist()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("vocab", "most", "seed"), [(3, 5, 0), (4, 4, 1), (5, 3, 2), (4, 1, 3)])
def test_exhaustive_beam_finds_the_best_texts(vocab, most, seed, alpha):
    how, toy = BeamSearch(beam=max(7, vocab**most), n=7, length_penalty=alpha), Toy(3, vocab, seed)
    found = beam_search(*of_toy_session(toy, 3, most), how)
    for source in range(3):
        assert_same(found[source], everything(of_toy(toy, source), vocab, most, how)[:7])


@pytest.mark.parametrize("name", ["separate", "rms", "none", "additive", "general fed"])
def test_exhaustive_beam_of_a_model_finds_the_best_texts(name):
    """Through cache and states, against whole passes over every text, nothing kept."""
    vocab, most, how = 5, 4, BeamSearch(beam=700, n=9)
    model, source = small(name, vocab), SOURCES[0]
    row = torch.tensor([source])
    known = {}
    for length in range(most):
        texts = list(itertools.product(range(vocab), repeat=length))
        ids = torch.tensor([[BEGIN, *text] for text in texts])
        with torch.no_grad():
            if name in RECURRENT:
                logits = model(row.expand(len(ids), -1), ids)
            else:
                logits = run(model, ids, source=read(model, row.expand(len(ids), -1)))
        known |= dict(zip(texts, logits[:, -1].log_softmax(-1).tolist(), strict=True))
    (found,) = search(model, [source], BeamSearch(beam=how.beam, n=how.n, max_tokens=most), begin=BEGIN, end=END)
    assert_same(found, everything(known.__getitem__, vocab, most, how)[: how.n])


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("beam", "n"), [(1, 1), (2, 1), (3, 3), (5, 2)])
def test_early_stopping_does_not_change_results(beam, n, alpha):
    """And saves passes: by how many depends on how sharp the scores are."""
    how, most, saved = BeamSearch(beam=beam, n=n, length_penalty=alpha), 12, 0
    for seed in range(8):
        toy = Toy(4, 5, seed, sharp=3.0)
        found = beam_search(*of_toy_session(toy, 4, most), how)
        assert len(toy.passes) <= most
        saved += most - len(toy.passes)
        for source in range(4):
            assert_same(found[source], patient(of_toy(toy, source), 5, most, how))
    assert saved > 0 or (alpha == 2 and beam > 1)


@pytest.mark.parametrize("sharp", [0.3, 2.0])
def test_beam_of_one_equals_greedy_decoding(sharp):
    for seed in range(10):
        how, (a, b) = BeamSearch(), (Toy(5, 6, seed, sharp) for _ in range(2))
        greedily = [[one] for one in greedy(*of_toy_session(a, 5, 9), how)]
        assert greedily == beam_search(*of_toy_session(b, 5, 9), how)
        assert a.passes == b.passes


@EACH
def test_beam_of_one_equals_greedy_decoding_in_models(name):
    model, how = MODELS[name], BeamSearch()
    with torch.inference_mode():
        found = greedy(*session_of(model, SOURCES, 20), how)
        assert [[one] for one in found] == beam_search(*session_of(model, SOURCES, 20), how)
    assert len({one.ids for one in found}) > 3, "the source does not show"


@EACH
@torch.no_grad()
def test_greedy_equals_argmax_of_uncached_passes(name):
    model = MODELS[name]
    written = search(model, SOURCES, BeamSearch(max_tokens=9), begin=BEGIN, end=END)
    for source, (found,) in zip(SOURCES, written, strict=True):
        row, ids, total = torch.tensor([source]), [BEGIN], 0.0
        while len(ids) < 10 and ids[-1] != END:
            given = torch.tensor([ids])
            logits = model(row, given) if name in RECURRENT else run(model, given, source=read(model, row))
            top = logits[0, -1].log_softmax(-1).max(-1)
            ids.append(top.indices.item())
            total += top.values.item()
        stop = ids[-1] == END
        assert found.ids == tuple(ids[1:-1] if stop else ids[1:])
        assert found.finish == ("stop" if stop else "length")
        assert found.logprob == pytest.approx(total, rel=1e-4)
        assert found.score == pytest.approx(total / ((4 + len(ids)) / 6) ** 0.6, rel=1e-4)


@EACH
@pytest.mark.parametrize(("beam", "n"), [(1, 1), (4, 3)])
def test_batched_search_equals_single_search(name, beam, n):
    model, how = MODELS[name], BeamSearch(beam, n, max_tokens=12)
    together = search(model, SOURCES, how, begin=BEGIN, end=END)
    for source, found in zip(SOURCES, together, strict=True):
        (alone,) = search(model, [source], how, begin=BEGIN, end=END)
        assert_same(found, [(one.ids, one.logprob, one.score, one.finish) for one in alone])


@EACH
@pytest.mark.parametrize(("beam", "n"), [(1, 1), (3, 2)])
def test_large_batch_equals_small_batch(name, beam, n):
    """With so many rows the matrices are prepacked, and attention goes by products of all heads."""
    model, how, many = MODELS[name], BeamSearch(beam, n, max_tokens=12), SOURCES * 3
    together = search(model, many, how, begin=BEGIN, end=END)
    alone = search(model, SOURCES, how, begin=BEGIN, end=END)
    for found, wanted in zip(together, alone * 3, strict=True):
        assert_same(found, [(one.ids, one.logprob, one.score, one.finish) for one in wanted])
    if name in PAIRS:
        few, lots = session_of(model, SOURCES, 9)[0], session_of(model, many, 9)[0]
        assert few.model is model
        assert isinstance(lots.model.blocks[0].attn.q, PrepackedLinear) == can_prepack(model.head.weight.dtype)
        heads = model.config.layers[0].attention.n_heads
        assert len(SOURCES) * heads < MANY_HEADS <= len(many) * heads


@EACH
def test_results_are_sorted_and_unique(name):
    found = search(MODELS[name], SOURCES, BeamSearch(6, 6, max_tokens=10), begin=BEGIN, end=END)
    for texts in found:
        assert len(texts) == 6
        assert len({(one.ids, one.finish) for one in texts}) == 6
        assert [one.rank for one in texts] == sorted(one.rank for one in texts)
        assert all(
            one.score == one.logprob / BeamSearch().divisor(len(one.ids) + (one.finish == "stop")) for one in texts
        )


def test_finished_sequences_leave_the_batch():
    class Lengths(Toy):
        """Source s writes s tokens, then the end."""

        def logits(self, text):
            scores = torch.zeros(self.vocab)
            scores[END if len(text) - 2 >= text[0] else 3] = 40.0
            return scores

    for beam in (1, 3):
        toy = Lengths(4, vocab=5)
        how = BeamSearch(beam=beam, length_penalty=0.0)
        if beam == 1:
            found = [[one] for one in greedy(*of_toy_session(toy, 4, 50), how)]
            assert toy.passes == [4, 3, 2, 1]
        else:
            found = beam_search(*of_toy_session(toy, 4, 50), how)
            assert len(toy.passes) == 4
            assert toy.passes[1:] == sorted(toy.passes[1:], reverse=True)
        assert [one.ids for (one,) in found] == [(), (3,), (3, 3), (3, 3, 3)]
    toy = Lengths(4, vocab=5)
    cut = greedy(*of_toy_session(toy, 4, 2), BeamSearch())
    assert [one.ids for one in cut] == [(), (3,), (3, 3), (3, 3)]
    assert [one.finish for one in cut] == ["stop", "stop", "length", "length"]
    assert len(toy.passes) == 2


@pytest.mark.parametrize("beam", [1, 3])
def test_encoder_and_each_token_run_once(beam):
    """The encoder and the source's keys once, and each token once: a pass brings one for every row."""
    model, calls = tiny_pair("pre", seed=4), {"encoder": [], "cross": [], "own": []}
    hooks = [
        part.register_forward_hook(lambda _, given, out, kind=kind: calls[kind].append(tuple(given[0].shape[:2])))
        for kind, part in (
            ("encoder", model.encoder), ("cross", model.blocks[1].cross.k), ("own", model.blocks[1].attn.k)
        )
    ]  # fmt: skip
    search(model, SOURCES, BeamSearch(beam=beam, max_tokens=8), begin=BEGIN, end=END)
    for hook in hooks:
        hook.remove()
    assert calls["encoder"] == calls["cross"] == [(6, 9)]
    assert 1 < len(calls["own"]) <= 8
    assert all(width == 1 and rows <= 6 * beam for rows, width in calls["own"])


def test_only_tokens_of_the_vocabulary_are_generated():
    model, limited = MODELS["separate"], TokenConstraints(vocab_size=9)
    for beam in (1, 4):
        found = search(
            model,
            SOURCES,
            BeamSearch(beam, beam, max_tokens=9),
            begin=BEGIN,
            end=END,
            constraints=limited,
        )
        assert all(max(one.ids, default=0) < 9 for texts in found for one in texts)
        assert all(len(texts) == beam for texts in found)


def test_texts_without_end_token_stop_at_the_limit():
    model = recurrent("dot")
    with torch.no_grad():
        model.head.weight[END] = 0
        model.head.weight[5] = -model.head.weight[6]  # one of the two is above 0
    ((one,),) = search(model, [[3]], BeamSearch(), begin=BEGIN, end=END)
    assert (len(one.ids), one.finish) == (DEFAULT_MAX_TOKENS, "length")
    (found,) = search(MODELS["post"], [[3]], BeamSearch(), begin=BEGIN, end=0)
    assert len(found[0].ids) <= MODELS["post"].config.context_length
    assert not math.isnan(found[0].score)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beam": 0}, "beam must be a whole number from 1"),
        ({"beam": 2, "n": 3}, r"n = 3 results need a beam of at least 3, got 2"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"length_penalty": -0.1}, "length_penalty must be a number from 0 to 10"),
    ],
)
def test_options_out_of_range_raise(options, says):
    with pytest.raises(RequestError, match=says):
        BeamSearch(**options)


@pytest.mark.parametrize(
    ("error", "says", "sources", "options"),
    [
        (RequestError, "the source is empty", [[3], []], {}),
        (RequestError, "token id 97 is out of range", [[97]], {}),
        (CapacityError, "a source of 65 tokens does not fit", [[3], [3] * 65], {}),
        (CapacityError, "max_tokens 65 does not fit", [[3]], {"max_tokens": 65}),
    ],
)
def test_invalid_sources_raise(error, says, sources, options):
    with pytest.raises(error, match=says):
        search(MODELS["post"], sources, BeamSearch(**options), begin=BEGIN, end=END)
    assert search(MODELS["post"], [], BeamSearch(), begin=BEGIN, end=END) == []


@pytest.mark.parametrize("beam", [1, 2])
def test_nan_logits_raise_checkpoint_error(beam):
    model = tiny_pair("post", seed=2)
    with torch.no_grad():
        model.blocks[0].mlp.up.weight.fill_(math.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        search(model, [[3]], BeamSearch(beam), begin=BEGIN, end=END)

"""The recurrent encoder-decoder against loops written from the papers, in float64; and its own consistency."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import assert_near, randomise, relative_change
from torch import nn

from glassformer.config import RecurrentConfig, change
from glassformer.errors import ConfigError
from glassformer.kernels.cross_entropy import IGNORED, linear_cross_entropy
from glassformer.nn.recurrent import RecurrentEncoderDecoder, init_recurrent

KINDS = {
    "none": (None, False),
    "additive": ("additive", False),
    "dot": ("dot", False),
    "general": ("general", False),
    "dot fed": ("dot", True),
    "general fed": ("general", True),
}
ATTENTIVE = [kind for kind in KINDS if kind != "none"]
POINTS = {"rnn.states": "S Dr", "rnn.scores": "T S", "rnn.probs": "T S", "rnn.context": "T Dr"}
LENGTHS = torch.tensor([7, 3, 1, 5])
T = 6
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # torch's parameter names of a cell
kinds = pytest.mark.parametrize("kind", KINDS)
ROUNDING = 3e-5  # relative to the largest value: recurrent models accumulate float32 rounding errors
cells = pytest.mark.parametrize("cell", ["gru", "lstm"])


@torch.no_grad()
def tiny(kind="additive", cell="gru", **changes):
    """Return a random model, with matrices scaled until states are far from 0 and attention far from uniform."""
    attention, input_feeding = KINDS[kind]
    config = RecurrentConfig(11, 13, 10, 12, 2, cell, attention=attention, input_feeding=input_feeding)
    model = RecurrentEncoderDecoder(replace(config, **changes))
    randomise(model)
    names = ("encoder", "decoder", "alignment")
    grown = [p for name, p in model.named_parameters() if p.ndim > 1 and name.startswith(names)]
    for name, p in model.named_parameters():
        if cell == "lstm" and ".bias_ih" in name:
            p[-len(p) // 4 :] += 3  # open output gates: an LSTM's states are small otherwise
    limit = 0.97 if attention == "dot" else 0.7  # the product of two states is always small
    for _ in range(40):
        if sharpness(model) < limit:
            break
        for p in grown:
            p.mul_(1.1)
    assert kind == "none" or 0.05 < sharpness(model) < limit, "attention is nearly uniform or one-hot"
    return model


def sharpness(model):
    """Return the mean entropy of attention over the longest source; 1 is uniform, 0 for a model without attention."""
    if model.config.attention is None:
        return 0.0
    source, target = random_ids()
    tap = RecorderTap("rnn.probs")
    model(source[:1] % model.config.source_vocab_size, target[:1] % model.config.target_vocab_size, tap=tap)
    return torch.special.entr(tap["rnn.probs"]).sum(-1).mean().item() / np.log(source.shape[1])


def random_ids(seed=1):
    """Return source ids of LENGTHS, padded with valid tokens, and target ids."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(11, (4, 7), generator=g), torch.randint(13, (4, T), generator=g)


class RecorderTap:
    """A tap that records values."""

    def __init__(self, *names):
        self.names, self.parts = names or tuple(POINTS), {}

    def wants(self, name):
        return name in self.names

    def __call__(self, name, value):
        self.parts.setdefault(name, []).append(value)
        return value

    def __getitem__(self, name):
        return torch.cat(self.parts[name], 1)


class AddTap(RecorderTap):
    """A tap that adds `delta` to one tap point, whose value may come in parts."""

    def __init__(self, name, delta):
        super().__init__(name)
        self.delta, self.at = delta, 0

    def __call__(self, name, value):
        part = self.delta[:, self.at : self.at + value.shape[1]]
        self.at += value.shape[1]
        return value + part


# A second implementation: one sequence, one token at a time, in NumPy.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive_cell(w, prefix, suffix, x, before):
    """GRU: h = (1 - z) n + z h, n = tanh(W x + r (U h)).  LSTM: c = f c + i g, h = o tanh(c)."""
    w_ih, w_hh, b_ih, b_hh = (
        w[f"{prefix}.{name}_{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h = before[0]
    a, b = w_ih @ x + b_ih, w_hh @ h + b_hh
    if len(before) == 1:
        (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
        r, z = sigmoid(ar + br), sigmoid(az + bz)
        return ((1 - z) * np.tanh(an + r * bn) + z * h,)
    i, f, g, o = np.split(a + b, 4)
    c = sigmoid(f) * before[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def naive(model, source, target, edit=lambda name, at, value: value):
    """Return the logits and tap points of one sequence; `edit` may change each value of a tap point."""
    config, w = model.config, {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    n_states = 2 if config.cell == "lstm" else 1
    directions = ("", "_reverse") if config.bidirectional else ("",)
    half = config.d_hidden // len(directions)
    xs, cell_state = [w["source_embed.weight"][i] for i in source], []
    for layer in range(config.n_layers):
        read, ends = [], []
        for direction in directions:
            before, found = (np.zeros(half),) * n_states, {}
            for j in reversed(range(len(xs))) if direction else range(len(xs)):
                before = naive_cell(w, "encoder", f"l{layer}{direction}", xs[j], before)
                found[j] = before[0]
            read.append(found)
            ends.append(before)
        xs = [np.concatenate([found[j] for found in read]) for j in range(len(xs))]
        cell_state.append([np.concatenate(parts) for parts in zip(*ends, strict=True)])
    states = [edit("rnn.states", j, x) for j, x in enumerate(xs)]
    cell_state[-1][0] = np.concatenate([states[-1][:half], states[0][half:]])

    table = w["source_embed.weight" if config.shared_embedding else "target_embed.weight"]
    fed, out = np.zeros(config.d_hidden), {name: [] for name in ("logits", *POINTS)}
    out["rnn.states"] = states

    def attend(s, t):
        scores = np.zeros(len(states))
        for j, h in enumerate(states):
            if config.attention == "additive":
                scores[j] = w["alignment.v.weight"][0] @ np.tanh(
                    w["alignment.query.weight"] @ s + w["alignment.key.weight"] @ h
                )
            else:
                scores[j] = s @ (w["alignment.key.weight"] @ h if config.attention == "general" else h)
        scores = edit("rnn.scores", t, scores)
        probs = edit("rnn.probs", t, np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum())
        context = np.zeros(config.d_hidden)
        for j, h in enumerate(states):
            context += probs[j] * h
        context = edit("rnn.context", t, context)
        for name, value in (("rnn.scores", scores), ("rnn.probs", probs), ("rnn.context", context)):
            out[name].append(value)
        return context

    for t, token in enumerate(target):
        x, context = table[token], None
        if config.attention == "additive":
            context = attend(cell_state[-1][0], t)
            x = np.concatenate([x, context])
        elif config.input_feeding:
            x = np.concatenate([x, fed])
        for layer in range(config.n_layers):
            cell_state[layer] = list(naive_cell(w, "decoder", f"l{layer}", x, cell_state[layer]))
            x = cell_state[layer][0]
        if config.attention is not None:
            context = attend(x, t) if context is None else context
            x = fed = np.tanh(w["combine.weight"] @ np.concatenate([context, x]))
        out["logits"].append(w["head.weight"] @ x)
    return {name: torch.from_numpy(np.stack(values)) for name, values in out.items() if values}


@torch.no_grad()
def check(model, tap, edit=lambda b: lambda name, at, value: value):
    """Compare logits and tap points of a padded batch with loops; `edit(b)` is the edit of sequence b."""
    source, target = random_ids()
    recorder = RecorderTap()

    class Both:
        def wants(self, name):
            return name in POINTS

        def __call__(self, name, value):
            return recorder(name, tap(name, value) if tap is not None and tap.wants(name) else value)

    logits = model(source, target, LENGTHS, Both())
    for b, n in enumerate(LENGTHS.tolist()):
        want = naive(model, source[b, :n].tolist(), target[b].tolist(), edit(b))
        assert set(want) == {"logits", *recorder.parts}
        assert_near(logits[b], want.pop("logits"), ROUNDING)
        for name, value in want.items():
            got = recorder[name][b]
            got = got[:n] if name == "rnn.states" else got[:, :n] if name != "rnn.context" else got
            assert_near(got, value, ROUNDING)
    return recorder


@kinds
@cells
@pytest.mark.parametrize("bidirectional", [True, False])
def test_logits_and_points_equal_loops(kind, cell, bidirectional):
    recorder = check(tiny(kind, cell, bidirectional=bidirectional), None)
    if kind == "none":
        assert set(recorder.parts) == {"rnn.states"}
        return
    probs = recorder["rnn.probs"]
    padding = torch.arange(7) >= LENGTHS[:, None, None]
    assert not probs[padding.expand_as(probs)].any()
    assert_near(probs.sum(-1), torch.ones(4, T), 1e-6)


@kinds
@cells
@pytest.mark.parametrize("point", POINTS)
def test_edits_equal_loops(kind, cell, point):
    """Edit every sequence and every position by a different amount."""
    if kind == "none" and point != "rnn.states":
        return
    model = tiny(kind, cell)
    shape = {"S": 7, "T": T, "Dr": 12}
    size = 0.1 if point == "rnn.probs" else 0.5
    noise = torch.randn(4, *(shape[a] for a in POINTS[point].split()), generator=torch.Generator().manual_seed(3))
    delta = size * noise

    def edit(b):
        return lambda name, at, value: value + delta[b, at, : len(value)].numpy() if name == point else value

    check(model, AddTap(point, delta), edit)
    source, target = random_ids()
    with torch.no_grad():
        assert (
            relative_change(model(source, target, LENGTHS, AddTap(point, delta)), model(source, target, LENGTHS)) > 1e-2
        )


@cells
def test_cells_equal_torch(cell):
    """The encoder's states of each sequence, in both directions, equal those of nn.GRUCell and nn.LSTMCell."""
    model, (source, _) = tiny("none", cell, n_layers=1), random_ids()
    tap = RecorderTap("rnn.states")
    with torch.no_grad():
        state = model.encode(source, LENGTHS, tap)
        for b, n in enumerate(LENGTHS.tolist()):
            for direction, half in (("", slice(0, 6)), ("_reverse", slice(6, 12))):
                one = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[cell](10, 6)
                one.load_state_dict({name: getattr(model.encoder, f"{name}_l0{direction}") for name in WEIGHTS})
                cell_state = None
                for j in reversed(range(n)) if direction else range(n):
                    cell_state = one(model.source_embed(source[b, j]), cell_state)
                    h = cell_state[0] if cell == "lstm" else cell_state
                    assert_near(tap["rnn.states"][b, j, half], h, 1e-6)
                for ours, theirs in zip(state.cell, cell_state if cell == "lstm" else (cell_state,), strict=True):
                    assert_near(ours[0, b, half], theirs, 1e-6)


@kinds
@cells
@pytest.mark.parametrize("chunks", [[1] * T, [2, 1, 3], [5, 1]], ids=str)
@torch.no_grad()
def test_chunks_equal_one_forward_pass(kind, cell, chunks):
    model, (source, target) = tiny(kind, cell), random_ids()
    full_tap, parts_tap = RecorderTap(), RecorderTap()
    full = model(source, target, LENGTHS, full_tap)
    state, parts = model.encode(source, LENGTHS, parts_tap), []
    for part in target.split(chunks, 1):
        hidden, state = model.decode(part, state, parts_tap)
        parts.append(model.logits(hidden))
    assert_near(torch.cat(parts, 1), full, ROUNDING)
    for name in full_tap.parts:
        finite = full_tap[name].isfinite()
        assert torch.equal(finite, parts_tap[name].isfinite())
        assert_near(parts_tap[name][finite], full_tap[name][finite], ROUNDING)


@kinds
@cells
@pytest.mark.parametrize("bidirectional", [True, False])
@torch.no_grad()
def test_padded_equals_single(kind, cell, bidirectional):
    model, (source, target) = tiny(kind, cell, bidirectional=bidirectional), random_ids()
    batch = model(source, target, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        assert_near(batch[b : b + 1], model(source[b : b + 1, :n], target[b : b + 1]), ROUNDING)
    padding = torch.arange(7) >= LENGTHS[:, None]
    assert torch.equal(model(torch.where(padding, 10 - source, source), target, LENGTHS), batch)
    longer = F.pad(source, (0, 3))
    assert_near(model(longer, target, LENGTHS), batch, ROUNDING)


@kinds
def test_gradients_with_padding(kind):
    model, (source, target) = tiny(kind), random_ids()
    padding = torch.arange(7) >= LENGTHS[:, None]
    model(torch.where(padding, 0, source.clamp(min=1)), target, LENGTHS).square().sum().backward()
    assert not model.source_embed.weight.grad[0].any()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


@kinds
@cells
@pytest.mark.parametrize("as_tensor", [True, False])
@torch.no_grad()
def test_select_reorders_and_repeats(kind, cell, as_tensor):
    model, (source, target) = tiny(kind, cell), random_ids()
    chosen = [3, 0, 0, 2, 3]
    _, state = model.decode(target[:, :2], model.encode(source, LENGTHS))
    before = [t.clone() for t in state.cell]
    some = state.select(torch.tensor(chosen) if as_tensor else chosen)
    others = random_ids(5)[1][[0, 1, 2, 3, 0], 2:]  # continuations of one source differ
    hidden, _ = model.decode(others, some)
    want = model.hidden(source[chosen], torch.cat([target[chosen, :2], others], 1), LENGTHS[chosen])[:, 2:]
    assert_near(hidden, want, ROUNDING)
    assert relative_change(hidden[1], hidden[2]) > 1e-2, "continuations of one source must differ"
    assert all(torch.equal(a, b) for a, b in zip(before, state.cell, strict=True)), "a state must not change in place"


@kinds
@torch.no_grad()
def test_capture_does_not_change_logits(kind):
    model, (source, target) = tiny(kind), random_ids()
    plain = model(source, target, LENGTHS)
    assert torch.equal(model(source, target, LENGTHS, RecorderTap(*POINTS, "final.logits")), plain)
    unused = RecorderTap("something else")
    assert torch.equal(model(source, target, LENGTHS, unused), plain)
    assert unused.parts == {}
    last = RecorderTap("final.logits")
    model(source, target, LENGTHS, last)
    assert torch.equal(last["final.logits"], plain)


@kinds
def test_chunked_loss(kind):
    model, (source, target) = tiny(kind), random_ids()
    targets = torch.where(torch.arange(T) < LENGTHS[:, None], target.roll(-1, 1), IGNORED)
    loss = linear_cross_entropy(
        model.hidden(source, target, LENGTHS).flatten(0, 1), model.head.weight, targets.flatten()
    )
    logits = model(source, target, LENGTHS)
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    assert_near(loss.detach(), want.detach(), 1e-6)
    parameters = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(want, parameters), strict=True):
        assert_near(ours, theirs, 1e-5)


@torch.no_grad()
def has_bfloat16_lstm():
    """Whether torch runs nn.LSTM under bfloat16 autocast here: oneDNN needs a CPU with bfloat16 instructions."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(4, 4)(torch.zeros(2, 1, 4))
    except RuntimeError:
        return False
    return True


@kinds
@cells
@torch.no_grad()
def test_lower_precision_is_near_float32(kind, cell):
    """Autocast and bfloat16 weights, in one forward pass and step by step; attention is computed in float32."""
    if cell == "lstm" and not has_bfloat16_lstm():
        pytest.skip("this PyTorch and CPU have no bfloat16 LSTM")
    attention, input_feeding = KINDS[kind]
    config = RecurrentConfig(11, 13, 10, 12, 2, cell, attention=attention, input_feeding=input_feeding)
    model, (source, target) = init_recurrent(RecurrentEncoderDecoder(config), 0), random_ids()
    want = model(source, target, LENGTHS)
    tap = RecorderTap("rnn.probs")
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(model(source, target, LENGTHS, tap).float(), want, 0.05)
    assert kind == "none" or tap["rnn.probs"].dtype == torch.float32
    model.bfloat16()
    hidden, state = model.decode(target[:, :1], model.encode(source, LENGTHS))
    assert_near(model.logits(hidden).float(), want[:, :1], 0.05)
    assert_near(model.logits(model.decode(target[:, 1:], state)[0]).float(), want[:, 1:], 0.05)


def test_shared_embedding_is_one_table():
    model = tiny(target_vocab_size=11, shared_embedding=True)
    assert model.target_embed is model.source_embed
    assert "target_embed.weight" not in dict(model.named_parameters())
    source, target = random_ids()
    want = naive(model, source[0].tolist(), (target[0] % 11).tolist())["logits"]
    with torch.no_grad():
        assert_near(model(source[:1], target[:1] % 11)[0], want, ROUNDING)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("d_hidden", 0, "d_hidden must be at least 1, got 0"),
        ("n_layers", 0, "n_layers must be at least 1"),
        ("d_hidden", 7, "d_hidden must be even .* got 7"),
        ("input_feeding", True, "got attention 'additive'"),
        ("shared_embedding", True, "source_vocab_size 5 and target_vocab_size 6"),
    ],
)
def test_invalid_config_raises_config_error(path, value, message):
    with pytest.raises(ConfigError, match=message):
        change(RecurrentConfig(5, 6, 4, 8, attention="additive"), path, value)


@cells
def test_init_recurrent_preserves_gradient_norms(cell):
    config = RecurrentConfig(50, 60, 24, 32, 2, cell, attention="additive")
    state = torch.random.get_rng_state()
    a, b, c = (RecurrentEncoderDecoder(config) for _ in range(3))
    torch.random.set_rng_state(state)
    a, b, c = (init_recurrent(model, seed) for model, seed in ((a, 0), (b, 0), (c, 1)))
    assert torch.equal(torch.random.get_rng_state(), state), "torch's global generator must not be used"
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.source_embed.weight, c.source_embed.weight)
    for name, p in a.named_parameters():
        if "weight_hh" in name:
            for gate in p.split(p.shape[1]):
                assert_near(gate @ gate.T, torch.eye(p.shape[1]), 1e-5)
        elif "embed" in name:
            assert abs(p.std() / 0.1 - 1) < 0.05
        elif p.ndim == 1:
            width = len(p) // (4 if cell == "lstm" else 3)
            forgets = torch.zeros(len(p))
            if cell == "lstm" and "bias_ih" in name:
                forgets[width : 2 * width] = 1
            assert torch.equal(p, forgets), name
        else:
            fan_out = p.shape[0] // ({"gru": 3, "lstm": 4}[cell] if "weight_ih" in name else 1)
            bound = (6 / (fan_out + p.shape[1])) ** 0.5
            assert 0.9 * bound < p.abs().max() <= bound, name
    g = torch.Generator().manual_seed(0)
    source, target = torch.randint(50, (8, 9), generator=g), torch.randint(60, (8, 9), generator=g)
    assert abs(F.cross_entropy(a(source, target).flatten(0, 1), target.flatten()) - np.log(60)) < 0.15


def test_init_lstm_forget_bias():
    """The bias of the gate that multiplies c is 1, so that c decays slowly without input."""
    model = init_recurrent(RecurrentEncoderDecoder(RecurrentConfig(5, 5, 4, 8, cell="lstm")), 0)
    with torch.no_grad():
        _, c = torch.lstm_cell(torch.zeros(1, 4), (torch.zeros(1, 8), torch.ones(1, 8)), *model.decoder.all_weights[0])
    assert_near(c, torch.full((1, 8), 1.0).sigmoid(), 1e-6)


@kinds
@cells
def test_training_learns_to_reverse(kind, cell):
    """The model learns all 256 strings of 4 symbols within 250 steps."""
    attention, input_feeding = KINDS[kind]
    config = RecurrentConfig(5, 5, 16, 32, cell=cell, attention=attention, input_feeding=input_feeding)
    model = init_recurrent(RecurrentEncoderDecoder(config), 0)
    source = torch.cartesian_prod(*[torch.arange(1, 5)] * 4)
    want = source.flip(1)
    inputs = F.pad(want[:, :-1], (1, 0))  # 0 is the start token
    optimizer, g = torch.optim.Adam(model.parameters(), 1e-2), torch.Generator().manual_seed(0)
    for _ in range(25):
        for _ in range(10):
            some = torch.randperm(256, generator=g)[:64]
            loss = F.cross_entropy(model(source[some], inputs[some]).flatten(0, 1), want[some].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            state, token, generated = model.encode(source), inputs[:, :1], []
            for _ in range(4):
                hidden, state = model.decode(token, state)
                token = model.logits(hidden).argmax(-1)
                generated.append(token)
        if torch.equal(torch.cat(generated, 1), want):
            return
    raise AssertionError(f"not learned in 250 steps: loss {loss:.3f}")

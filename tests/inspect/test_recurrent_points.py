"""Points of the recurrent encoder-decoder: the tap visits the registered points, and their values are consistent."""

import numpy as np
import pytest
import torch

from glassformer.config import RecurrentConfig
from glassformer.errors import RequestError
from glassformer.inspect.capture import points
from glassformer.inspect.capture.recorder import RecorderTap
from glassformer.nn.recurrent import RecurrentEncoderDecoder, init_recurrent

KINDS = {
    "none": (None, False), "additive": ("additive", False), "dot": ("dot", False), "general": ("general", False),
    "general fed": ("general", True),
}  # fmt: skip
LENGTHS = (7, 3, 1)
EACH = pytest.mark.parametrize("kind", KINDS)


@torch.no_grad()
def captured_run(kind):
    """Return a model with peaked attention, its logits for a padded batch, and the values of all points."""
    attention, feeding = KINDS[kind]
    config = RecurrentConfig(11, 13, 10, 12, 2, "gru", attention=attention, input_feeding=feeding)
    model = init_recurrent(RecurrentEncoderDecoder(config), 0)
    for parameter in model.parameters():
        parameter.mul_(3)
    draw = torch.Generator().manual_seed(1)
    source, target = torch.randint(11, (3, 7), generator=draw), torch.randint(13, (3, 5), generator=draw)

    class Everything(RecorderTap):
        def wants(self, name):
            self.setdefault(name, [])
            return True

    tap = Everything()
    logits = model(source, target, torch.tensor(LENGTHS), tap)
    return model, logits, {name: torch.cat(parts, 1) for name, parts in tap.items()}


@EACH
def test_tap_visits_the_registered_points_in_order(kind):
    model, _, seen = captured_run(kind)
    assert list(seen) == points.live(model.config) == list(points.points(model.config))
    assert points.derived(model.config) == []
    assert ("rnn.context" in seen) == (kind != "none")


@EACH
def test_axes_match_the_shapes(kind):
    model, _, seen = captured_run(kind)
    size = {"B": 3, "T": 5, "S": 7, "Dr": 12, "V": 13}
    for name, value in seen.items():
        point = points.find(model.config, name)
        assert value.shape == tuple(size[axis] for axis in point.axes.split()), name
        assert point.meaning
        assert points.needs(model.config, name) == [name]


@EACH
def test_context_is_the_weighted_sum_of_states(kind):
    """context_t = sum_j alpha_tj h_j with alpha_t = softmax(scores_t), computed element by element."""
    if kind == "none":
        return
    _, logits, seen = captured_run(kind)
    states, scores, probs, context = (
        seen[f"rnn.{n}"].double().numpy() for n in ("states", "scores", "probs", "context")
    )
    for b, length in enumerate(LENGTHS):
        for t in range(5):
            exps = [np.exp(scores[b, t, j] - scores[b, t].max()) for j in range(7)]
            total = np.zeros(12)
            for j in range(length):
                assert abs(probs[b, t, j] - exps[j] / sum(exps)) < 1e-6
                total += probs[b, t, j] * states[b, j]
            assert not probs[b, t, length:].any(), "padding has a probability"
            assert np.abs(total - context[b, t]).max() < 1e-6
    even = np.stack([states[0].mean(0)] * 5)
    assert np.abs(even - context[0]).max() > 0.01, "attention is uniform"
    assert torch.equal(seen["final.logits"], logits)


def test_unknown_point_error_suggests_the_nearest():
    bare, aligned = (RecurrentConfig(5, 5, 4, 4, attention=attention) for attention in (None, "dot"))
    with pytest.raises(RequestError, match=r"no point 'rnn.probs'; the closest name is"):
        points.find(bare, "rnn.probs")
    with pytest.raises(RequestError, match=r"no point 'rnn.prob'; the closest name is 'rnn.probs'"):
        points.find(aligned, "rnn.prob")
    with pytest.raises(RequestError, match=r"no point 'blocks.0.attn.z'"):
        points.find(aligned, "blocks.0.attn.z")

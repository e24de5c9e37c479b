"""A traced value works as an array, and keeps the names of its axes where they are known."""

import numpy as np
import pytest
import torch
from tiny import random_ids, tiny

from glassformer.inspect.trace.value import Value
from glassformer.models.language_model import LanguageModel


@pytest.fixture(scope="module")
def t():
    lm = LanguageModel(tiny("gpt2"))
    return lm.trace(random_ids(lm.config, 1, 7)[0].tolist())


@pytest.fixture
def probs(t):
    return t["blocks.1.attn.probs"]  # [H, T, S]


def test_numpy_and_torch_accept_a_value(t, probs):
    assert np.array_equal(np.asarray(probs), probs.tensor.numpy())
    assert np.asarray(probs, dtype=np.float64).dtype == np.float64
    assert np.array_equal(t.numpy("blocks.1.attn.probs"), probs.numpy())
    assert torch.equal(torch.as_tensor(probs), probs.tensor)
    assert torch.equal(torch.tensor(probs), probs.tensor)
    assert torch.equal(torch.stack([probs, probs]), torch.stack([probs.tensor, probs.tensor]))
    assert torch.equal(torch.sum(probs, -1), probs.tensor.sum(-1))
    assert len(probs) == len(probs.tensor)
    assert probs[0, 0, 0].item() == probs.tensor[0, 0, 0].item()


def test_bfloat16_becomes_float32_in_numpy():
    value = Value("x", torch.tensor([1.5, 2.5], dtype=torch.bfloat16), ("T",))
    assert value.numpy().dtype == np.float32
    assert value.numpy().tolist() == [1.5, 2.5]
    assert torch.as_tensor(value).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("index", "axes"),
    [
        (3, ("T", "S")), ((3, 5), ("S",)), (slice(1, 3), ("H", "T", "S")), ((slice(None), 2), ("H", "S")),
        ((..., 0), ("H", "T")), ((0, ..., 0), ("T",)), ((0, 1, 2), ()), (-1, ("T", "S")),
    ],
)  # fmt: skip
def test_slices_keep_the_names_of_remaining_axes(probs, index, axes):
    part = probs[index]
    assert isinstance(part, Value)
    assert part.axes == axes
    assert part.ndim == len(axes)
    assert (part.error, part.identity) == (probs.error, probs.identity)
    assert torch.equal(part.tensor, probs.tensor[index])


@pytest.mark.parametrize("index", [[0, 2], torch.tensor([0, 2]), None, (0, [1, 2])])
def test_other_indices_return_a_tensor(probs, index):
    part = probs[index]
    assert isinstance(part, torch.Tensor)
    assert torch.equal(part, probs.tensor[index])


def test_arithmetic_keeps_axes_and_drops_the_check(probs):
    x = probs.tensor
    for got, want in (
        (probs + 1, x + 1), (1 - probs, 1 - x), (2 * probs, 2 * x), (probs / probs, x / x), (-probs, -x),
        (probs**2, x**2), (abs(probs), x.abs()), (probs + x, x + x), (x + probs, x + x), (1 + probs, 1 + x),
        (probs + x.numpy(), x + x), (1 / (probs + 1), 1 / (x + 1)), (torch.exp(probs), x.exp()), (probs - probs, x - x),
    ):  # fmt: skip
        assert isinstance(got, Value)
        assert got.axes == probs.axes
        assert got.identity is None
        assert torch.equal(got.tensor.nan_to_num(), want.nan_to_num())


def test_comparisons_return_booleans(probs):
    x = probs.tensor
    for got, want in (
        (probs > 0.1, x > 0.1), (probs >= x, x >= x), (probs < 0.1, x < 0.1), (probs <= 0.1, x <= 0.1),
        (probs == x, x == x), (probs != 0, x != 0),
    ):  # fmt: skip
        assert got.dtype == torch.bool
        assert torch.equal(got.tensor, want)
    assert (probs @ x.transpose(-1, -2)).shape == x.shape
    assert hash(probs) == hash(probs)


def test_tensor_methods_work_on_a_value_and_its_slices(probs):
    x, row = probs.tensor, probs[1, 3]
    assert isinstance(row, Value)
    assert torch.equal(row.double(), x[1, 3].double())
    assert row.argmax().item() == x[1, 3].argmax().item()
    assert [float(one) for one in row] == x[1, 3].tolist()
    assert int(probs[1, 3].argmax()) == int(x[1, 3].argmax())
    with pytest.raises(AttributeError, match="no_such_method"):
        probs.no_such_method()

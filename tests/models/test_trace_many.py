"""Activations of many texts equal those of single traces, in memory and in files."""

import numpy as np
import pytest
import torch
from generate.scripted import make_tokenizer
from safetensors.torch import load_file
from tiny import assert_near, tiny

from glassformer.errors import CapacityError, RequestError
from glassformer.models.language_model import LanguageModel

TEXTS = ["the cat", "the dog ate the hat. the cat sat", [5, 6, 7], torch.tensor([9, 1]), np.array([3, 3, 3, 8])]
POINTS = ["embed.out", "blocks.*.resid_post", "blocks.1.attn.z", "final.norm", "final.logits"]


@pytest.fixture(scope="module", params=["qwen3", "gemma2", "phi3"])
def lm(request):
    tokenizer = make_tokenizer()
    return LanguageModel(tiny(request.param, vocab_size=tokenizer.vocab_size), tokenizer)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_trace_many_equals_single_traces(lm, batch_size):
    done = []
    stream = lm.trace_many(TEXTS, capture=POINTS, batch_size=batch_size, progress=lambda *counts: done.append(counts))
    batches = list(stream)
    assert done[-1] == (len(TEXTS), len(TEXTS))
    assert [batch.first for batch in batches] == sorted({batch.first for batch in batches})
    for name in batches[0].values:
        arrays = [array for batch in batches for array in batch.split(name)]
        for text, array in zip(TEXTS, arrays, strict=True):
            assert_near(torch.from_numpy(array), lm.trace(text, capture=POINTS)[name].tensor)


def test_trace_many_is_lazy(lm):
    calls = []
    stream = lm.trace_many(TEXTS, capture="embed.out", batch_size=1, progress=lambda n, of: calls.append(n))
    next(stream)
    assert calls == []
    next(stream)
    assert calls == [1]


@pytest.mark.parametrize("file_format", ["safetensors", "npy"])
def test_saved_activations_equal_the_stream(lm, tmp_path, file_format):
    points = ["blocks.0.resid_post", "blocks.1.attn.z"]
    expected = list(lm.trace_many(TEXTS, capture=points, batch_size=2))
    files = lm.save_activations(TEXTS, tmp_path, capture=points, batch_size=2, file_format=file_format)
    assert all(file.exists() for file in files)
    for name in points:
        whole = np.concatenate([batch.values[name] for batch in expected])
        if file_format == "npy":
            saved = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
            assert np.load(tmp_path / "lengths.npy").tolist() == [n for batch in expected for n in batch.lengths]
        else:
            saved = np.concatenate([load_file(file)[name].numpy() for file in files])
        np.testing.assert_array_equal(saved, whole)


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ([[1]], {"capture": "blocks.0.attn.probs"}, RequestError, "not one value per token: use `trace`"),
        ([[1]], {"capture": ()}, RequestError, "capture names no point"),
        ([[1]], {"capture": "embed.out", "batch_size": 0}, RequestError, "batch_size must be a whole number from 1"),
        ([[1], []], {"capture": "embed.out"}, RequestError, "text 2 of 2 is empty"),
        ([[1], [2] * 2000], {"capture": "embed.out"}, CapacityError, "text 2 of 2 has 2000 tokens"),
    ],
)
def test_trace_many_rejects_bad_requests(lm, texts, options, error, message):
    with pytest.raises(error, match=message):
        list(lm.trace_many(texts, **options))


def test_save_activations_rejects_unknown_formats(lm, tmp_path):
    with pytest.raises(RequestError, match="file_format must be safetensors or npy, got 'csv'"):
        lm.save_activations([[1]], tmp_path, capture="embed.out", file_format="csv")


@pytest.mark.parametrize(
    "ids", [[5, 6, 7], torch.tensor([5, 6, 7]), np.array([5, 6, 7])], ids=["list", "torch", "numpy"]
)
def test_trace_accepts_token_ids(lm, ids):
    assert lm.trace(ids).ids == (5, 6, 7)


def test_trace_rejects_ids_with_two_axes(lm):
    with pytest.raises(RequestError, match=r"token ids must have one axis, got shape \[1, 2\]"):
        lm.trace(torch.tensor([[5, 6]]))

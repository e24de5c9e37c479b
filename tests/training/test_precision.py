"""Test the choice of the training dtype, the measured matrix rate, and bfloat16 autocast."""

from collections import Counter

import pytest
import torch
from tiny_runs import SHAPE

from glassformer.errors import ConfigError
from glassformer.families import find_family
from glassformer.nn.model import Decoder
from glassformer.training.data.packing import PackedBatch
from glassformer.training.init import init_weights
from glassformer.training.run.precision import (
    choose_precision,
    matrix_flops_per_token,
    matrix_shapes,
    measure_matrix_rate,
    tune_malloc,
)
from glassformer.training.tasks.evaluate import Compute


@pytest.mark.parametrize(
    ("given", "dtype", "because"),
    [
        ({"requested": "float32", "device": "cuda", "cuda_bf16": True}, "float32", "requested"),
        ({"requested": "bfloat16", "device": "cpu"}, "bfloat16", "requested"),
        ({"requested": "auto", "device": "cuda:1", "cuda_bf16": True}, "bfloat16", "natively"),
        ({"requested": "auto", "device": "cuda"}, "float32", "no native bfloat16"),
        ({"requested": "auto", "device": "mps"}, "float32", "not measured"),
        ({"requested": "auto", "device": "cpu", "features": frozenset({"avx2"})}, "float32", "neither"),
        ({"requested": "auto", "device": "cpu", "features": frozenset({"amx_bf16"})}, "bfloat16", "amx_bf16"),
        ({"requested": "auto", "device": "cpu", "features": frozenset({"avx512_bf16"}), "width": 32}, "float32", "32"),
    ],
)
def test_precision_choice_has_a_reason(given, dtype, because):
    choice = choose_precision(**given)
    assert choice.dtype == dtype
    assert because in choice.because


def test_unknown_dtype_raises_config_error():
    with pytest.raises(ConfigError, match="float16"):
        choose_precision(requested="float16", device="cpu")


def tiny() -> Decoder:
    return init_weights(Decoder(find_family("qwen3").shape(SHAPE.fill(11))), 0)


def test_matrices_are_counted_with_the_tied_head():
    model = tiny()
    shapes = matrix_shapes(model)
    assert shapes[11, 16] == 1
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)
    assert matrix_flops_per_token(shapes) == 6 * matrices


def test_rate_is_measured_at_each_dtype():
    for dtype in (torch.float32, torch.bfloat16):
        rate = measure_matrix_rate(Counter({(64, 64): 2, (128, 64): 1}), 256, dtype, seconds=0.02)
        assert 1e8 < rate < 1e14


def test_bfloat16_forward_is_near_float32_with_float32_gradients():
    ids = torch.randint(0, 11, (4, 17), generator=torch.Generator().manual_seed(0))
    rows = PackedBatch(ids[:, :-1], ids[:, 1:], torch.arange(16).expand(4, -1), None, 64, 64.0)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny()
        loss = Compute(torch.device("cpu"), dtype).loss(model, rows)
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        found[dtype] = (loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert found[torch.bfloat16][0] == pytest.approx(found[torch.float32][0], rel=5e-3)
    assert not torch.equal(found[torch.bfloat16][1], found[torch.float32][1])  # it did run in another dtype
    assert torch.cosine_similarity(found[torch.bfloat16][1], found[torch.float32][1], 0) > 0.999


def test_malloc_can_be_tuned_on_glibc():
    import platform

    assert tune_malloc() == (platform.libc_ver()[0] == "glibc")

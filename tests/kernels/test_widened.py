"""Widened linear layers: products in float32 of weights in a dtype that the CPU does not multiply."""

import pytest
import torch
import torch.nn.functional as F
from generate.scripted import make_tokenizer
from tiny import random_ids, tiny
from torch import nn

import glassformer
from glassformer.kernels import cpu, linear
from glassformer.kernels.cpu import cpu_features, multiplies_natively
from glassformer.kernels.linear import TILE, WIDEN_ROWS, WidenedLinear, widen, widened_product
from glassformer.kernels.native import modules
from glassformer.models.language_model import LanguageModel
from glassformer.nn.step import Step

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=[False, True], ids=["no instructions", "native"])
def native(request, monkeypatch):
    """Pretend that this CPU has, or has not, instructions for bfloat16 and float16."""
    monkeypatch.setattr(linear, "multiplies_natively", lambda dtype: request.param or dtype == torch.float32)
    return request.param


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [1, WIDEN_ROWS - 1, WIDEN_ROWS, 33])
@pytest.mark.parametrize(("n_in", "n_out"), [(48, 7), (700, TILE // 700 * 2 + 5), (TILE + 1, 2)])
@pytest.mark.parametrize("biased", [True, False])
def test_product_equals_float64(dtype, rows, n_in, n_out, biased):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, n_in, generator=generator).to(dtype) for n in (rows, n_out))
    bias = torch.randn(n_out, generator=generator).to(dtype) if biased else None
    found = widened_product(x.view(rows, 1, n_in), weight, bias)
    wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert (found.dtype, found.shape) == (dtype, (rows, 1, n_out))
    error = (found[:, 0].double() - wanted).abs().max() / wanted.abs().max()
    assert error <= 2 * torch.finfo(dtype).eps


def test_product_has_gradients():
    x, weight = torch.randn(9, 32).bfloat16().requires_grad_(), torch.randn(5, 32).bfloat16().requires_grad_()
    widened_product(x, weight, None).float().square().sum().backward()
    found = x.grad, weight.grad
    y, v = (t.detach().double().requires_grad_() for t in (x, weight))
    F.linear(y, v).square().sum().backward()
    for one, wanted in zip(found, (y.grad, v.grad), strict=True):
        assert one is not None
        assert wanted is not None
        assert (one.double() - wanted).abs().max() <= 0.02 * wanted.abs().max()


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_models_are_widened_without_native_kernels(tied, native, tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "is_fast", lambda: False)
    tokenizer = make_tokenizer()
    LanguageModel(tiny("llama", vocab_size=tokenizer.vocab_size, tied_head=tied), tokenizer).save(tmp_path)
    lm = glassformer.load(tmp_path, device="cpu", dtype="bfloat16")
    plain = [module for module in lm.model.modules() if type(module) is nn.Linear]
    assert bool(plain) == native
    assert any(isinstance(module, WidenedLinear) for module in lm.model.modules()) != native
    choice = next(choice for choice in lm.choices if choice.what == "linear")
    assert choice.value == ("torch" if native else "widened")
    full = glassformer.load(tmp_path, device="cpu", dtype="float32")
    assert not any(isinstance(module, WidenedLinear) for module in full.model.modules())


@torch.no_grad()
def test_widened_model_is_closer_to_float32(monkeypatch):
    model = tiny("llama").bfloat16()
    ids = random_ids(model.config, 2, 9)
    wanted = tiny("llama").bfloat16().float()(ids, Step.of(ids))
    plain = model(ids, Step.of(ids)).float()
    names = list(model.state_dict())
    monkeypatch.setattr(linear, "multiplies_natively", lambda dtype: dtype == torch.float32)
    widen(model)
    found = model(ids, Step.of(ids)).float()
    assert list(model.state_dict()) == names
    top = wanted.abs().max()
    assert (found - wanted).abs().max() <= 0.05 * top
    assert (found - plain).abs().max() <= 0.05 * top


def test_cpu_features_are_read(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx512_bf16 sse\n")
    assert "avx512_bf16" in cpu_features(tmp_path / "cpuinfo")
    assert cpu_features(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(("feature", "dtype"), [("avx512_bf16", torch.bfloat16), ("amx_fp16", torch.float16)])
def test_instructions_decide(feature, dtype, monkeypatch):
    for features, known in (({feature}, True), ({"avx2", "f16c"}, False)):
        monkeypatch.setattr(cpu, "cpu_features", lambda features=features: frozenset(features))
        multiplies_natively.cache_clear()
        assert multiplies_natively(dtype) == known
        assert multiplies_natively(torch.float32)
    multiplies_natively.cache_clear()

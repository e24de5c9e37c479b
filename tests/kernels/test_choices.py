"""`choose_attention`, `choose_linear` and `choose_placement` report the implementation that runs."""

import pytest
import torch
import torch.nn.functional as F
from tiny import ENCODER_DECODERS, encode_source, random_ids, tiny, tiny_encoder_decoder
from tiny_encoders import CONFIGS as ENCODERS
from tiny_encoders import tiny_encoder
from tiny_families import CONFIGS

from glassformer.config import RecurrentConfig
from glassformer.kernels import attention
from glassformer.kernels.attention import ATTENTION, PRODUCTS_LENGTH, choose_attention
from glassformer.kernels.cpu import multiplies_natively
from glassformer.kernels.describe import describe
from glassformer.kernels.linear import PREPACK_ROWS, choose_linear, prepack
from glassformer.kernels.native.library import choose_library
from glassformer.kernels.native.modules import choose_native
from glassformer.kernels.placement import choose_placement, choose_quantized_placement
from glassformer.nn.step import Step

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def products(monkeypatch):
    """Record the names of the attention implementations that forward passes use."""
    called = []
    fused, definition = F.scaled_dot_product_attention, attention.attend_reference

    def record(name, function):
        return lambda *args, **kwargs: (called.append(name), function(*args, **kwargs))[1]

    monkeypatch.setattr(F, "scaled_dot_product_attention", record("sdpa", fused))
    for module in ("glassformer.kernels.attention", "glassformer.nn.attend"):
        monkeypatch.setattr(f"{module}.attend_reference", record("reference", definition))
    return called


@pytest.mark.parametrize("name", [*CONFIGS, *ENCODER_DECODERS, *ENCODERS])
def test_reported_attention_is_used(name, products):
    make = tiny_encoder if name in ENCODERS else tiny_encoder_decoder if name in ENCODER_DECODERS else tiny
    model = make(name)
    choice = choose_attention(model.config, "cpu", F32)
    attend = ATTENTION[choice.value]
    products.clear()
    if name in ENCODER_DECODERS:
        source = encode_source(model, random_ids(model.encoder.config, 2, 5), attend=attend)
    else:
        source = None
    ids = random_ids(model.config, 2, 7)
    with torch.no_grad():
        model(ids, Step.of(ids, attend=attend, source=source))
    assert set(products) == {choice.value}
    assert choice.because


def test_attention_reference_names_the_missing_field():
    assert "softcap" in choose_attention(CONFIGS["gemma2"](), "cpu", F32).because
    assert "sinks" in choose_attention(CONFIGS["gpt_oss"](), "cuda", BF16).because
    mixed = tiny("llama", **{"layers.1.attention.softcap": 2.0}).config
    choice = choose_attention(mixed, "cpu", F32)
    assert choice.value == "sdpa"
    assert "1 of 3 layers have softcap" in choice.because


@pytest.mark.parametrize(
    ("device", "dtype", "length", "value"),
    [
        ("cpu", F32, 64, "sdpa"),
        ("cuda", BF16, 64, "sdpa"),
        ("cpu", BF16, PRODUCTS_LENGTH, "products"),
        ("cpu", BF16, PRODUCTS_LENGTH + 1, "sdpa float32"),
    ],
)
def test_attention_for_training(device, dtype, length, value):
    assert choose_attention(CONFIGS["llama"](), device, dtype, "training", length).value == value
    assert choose_attention(CONFIGS["llama"](), device, dtype).value == "sdpa"
    assert choose_attention(CONFIGS["gemma2"](), device, dtype, "training", length).value == "reference"


@pytest.mark.parametrize(("kind", "value"), [(None, "none"), ("dot", "reference")])
def test_attention_of_recurrent_models(kind, value):
    config = RecurrentConfig(11, 11, 8, 8, attention=kind)
    assert choose_attention(config, "cpu", F32).value == value


def test_linear_choice_agrees_with_prepack():
    model = tiny("llama")
    for rows in (1, PREPACK_ROWS - 1, PREPACK_ROWS, 64):
        choice = choose_linear("cpu", F32, rows)
        assert (prepack(model, rows) is not model) == (choice.value == "prepacked")
        assert choice.because
    for device, dtype in (("cuda", F32), ("cpu", torch.float64)):
        assert choose_linear(device, dtype, 64).value == "torch"
    for dtype in (torch.float16, BF16):
        assert (choose_linear("cpu", dtype, 64).value == "widened") != multiplies_natively(dtype)


def test_describe_reports_all_choices():
    placement = choose_placement("cpu", "auto", stored=BF16, n_parameters=1000)
    assert (placement.device, placement.dtype) == (torch.device("cpu"), F32)
    found = {choice.what: choice.value for choice in describe(CONFIGS["gemma2"](), placement)}
    kernels, native = choose_library().value, choose_native(CONFIGS["gemma2"](), placement.device, F32) is not None
    products = {"attention": "reference" if kernels == "torch" else "native", "linear": "native" if native else "torch"}
    assert found == {"device": "cpu", "dtype": "float32", "kernels": kernels} | products


def test_describe_reports_attention_that_no_kernel_runs():
    quantized = choose_quantized_placement("cpu", "auto", "int8")
    for config in (RecurrentConfig(11, 11, 8, 8, attention="dot"), ENCODERS["bert"]):
        found = {choice.what: choice.value for choice in describe(config, quantized)}
        assert found["linear"] == "packed"
        assert found["attention"] == choose_attention(config, "cpu", F32).value

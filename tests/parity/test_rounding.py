"""Rounding in bfloat16: norms and scaled embeddings are bit-equal to the modules of `transformers`."""

from dataclasses import replace

import pytest
import torch
import transformers
from hf_models import hf_run
from tiny import random_ids, randomise, run, tiny
from tiny_families import DECODERS

from glassformer.config import MLPConfig, NormConfig
from glassformer.formats import load_decoder, save_model
from glassformer.nn.model import Decoder
from glassformer.nn.moe import MoE, route
from glassformer.nn.norm import make_norm
from glassformer.nn.step import Step

MODELS = transformers.models
HF_NORMS = {
    "weight": MODELS.llama.modeling_llama.LlamaRMSNorm,
    "float32": MODELS.olmo2.modeling_olmo2.Olmo2RMSNorm,
    "float32 1+": MODELS.gemma.modeling_gemma.GemmaRMSNorm,
}


@pytest.mark.parametrize("scale", HF_NORMS)
def test_norm_rounds_as_in_transformers(scale):
    x = torch.randn(500, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    theirs = randomise(HF_NORMS[scale](96, eps=1e-6)).bfloat16()
    for ours in HF_NORMS:
        norm = make_norm(NormConfig("rms", 1e-6, ours), 96).bfloat16()
        norm.load_state_dict(theirs.state_dict())
        assert torch.equal(norm(x), theirs(x)) == (ours == scale), ours


def test_norm_without_weights_equals_olmo():
    x = torch.randn(500, 96, generator=torch.Generator().manual_seed(0)).bfloat16() + 0.5
    assert torch.equal(
        make_norm(NormConfig("layer", 1e-5, None), 96)(x), MODELS.olmo.modeling_olmo.OlmoLayerNorm(96)(x)
    )


@pytest.mark.parametrize("rounded", [True, False])
def test_round_embed_scale(rounded):
    """sqrt(48) is 6.928; the nearest bfloat16 is 6.9375."""
    model = tiny("gemma").bfloat16()
    other = Decoder(tiny("gemma", round_embed_scale=rounded).config).bfloat16()
    other.load_state_dict(model.state_dict())
    theirs = MODELS.gemma.modeling_gemma.GemmaTextScaledWordEmbedding(97, 48, 0, embed_scale=48**0.5).bfloat16()
    theirs.load_state_dict({"weight": model.embed.weight})
    captured = {}

    class CaptureTap:
        def wants(self, name):
            return name == "embed.out"

        def __call__(self, name, value):
            captured[name] = value
            return value

    ids = torch.arange(97)[None, :60]
    with torch.no_grad():
        other(ids, Step.of(ids, tap=CaptureTap()))
        assert torch.equal(captured["embed.out"], theirs(ids)) == rounded


@pytest.mark.parametrize("float32", [True, False])
def test_float32_router_equals_deepseek(float32):
    """Scores, selection and weights of the experts are computed in float32."""
    config = transformers.DeepseekV3Config(
        hidden_size=48, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2, routed_scaling_factor=1.7
    )
    theirs = MODELS.deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter(config)
    moe = MoE(replace(tiny("deepseek_v3").config.layers[1].experts, float32_router=float32), MLPConfig(24), 48)
    randomise(moe)
    theirs.weight.data.copy_(moe.router.weight)
    theirs.e_score_correction_bias.copy_(moe.score_correction)
    theirs.weight.data = theirs.weight.data.bfloat16()
    moe.router.bfloat16()
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits, weights, experts = theirs(x)
    assert torch.equal(moe.router(x).float(), logits) == float32
    if float32:
        ours = route(moe.config, moe.router(x), moe.score_correction)
        order, our_order = experts.argsort(-1), ours[1].argsort(-1)
        assert torch.equal(ours[1].gather(-1, our_order), experts.gather(-1, order))
        assert torch.allclose(ours[0].gather(-1, our_order), weights.gather(-1, order), rtol=1e-6)


def relative_rms(actual, expected):
    """Return the root mean square error, relative to the expected values."""
    return ((actual.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("family", DECODERS)
def test_bfloat16_error_is_no_larger_than_in_transformers(family, tmp_path):
    """Mixtures of experts get a wider margin: rounding decides between experts with nearly equal scores."""
    model = tiny(family)
    routed = any(layer.experts is not None for layer in model.config.layers)
    ratio, limit = (1.5, 0.1) if routed else (1.1, 0.05)
    save_model(model, tmp_path)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = random_ids(hf.config, 4, 40)
    exact, _ = hf_run(hf, ids)
    theirs, _ = hf_run(hf.bfloat16(), ids)
    ours = run(load_decoder(tmp_path, dtype=torch.bfloat16), ids)
    assert relative_rms(ours, exact) < ratio * relative_rms(theirs, exact) < limit

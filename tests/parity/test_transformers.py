"""Parity with `transformers`: logits, residual stream and files, for each family and variant."""

import json

import pytest
import torch
import transformers
from cases import CASES, HF_CONFIGS, NAMES
from hf_models import CaptureTap, hf_random, hf_run
from safetensors.torch import load_file
from tiny import assert_near, random_ids, run, tiny, tiny_config
from tiny_families import DECODERS

from glassformer.formats import load_decoder, save_model


def assert_same_run(model, hf, ids):
    """Compare the logits and the residual stream after every block."""
    logits, blocks = hf_run(hf, ids)
    captured = CaptureTap(".resid_post")
    assert_near(run(model, ids, tap=captured), logits)
    assert len(blocks) == len(captured) == model.config.n_layers
    for i, block in enumerate(blocks):
        assert_near(captured[f"blocks.{i}.resid_post"], block)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_transformers_opens_saved_model(family, changes, tmp_path):
    """Logits and residual stream agree; the model that transformers saves again loads bit-equal."""
    model = tiny(family, **changes)
    save_model(model, tmp_path / "ours")
    hf, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(hf).__name__ == json.loads((tmp_path / "ours/config.json").read_text())["architectures"][0]
    assert not any(info.values()), f"transformers complains: {info}"
    assert_same_run(model, hf, random_ids(model.config, 2, 40))

    hf.save_pretrained(tmp_path / "theirs")
    reloaded = load_decoder(tmp_path / "theirs")
    assert reloaded.config == model.config
    ours, theirs = dict(model.named_parameters()), dict(reloaded.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    a, b = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert all(torch.equal(a[name], b[name]) for name in b), "a tensor changed in the round trip"
    assert set(a) - set(b) <= {"lm_head.weight"}


@pytest.mark.parametrize("family", DECODERS)
def test_model_of_transformers_opens(family, tmp_path):
    hf = hf_random(transformers.AutoModelForCausalLM.from_config(HF_CONFIGS[family]()))
    hf.save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    assert_same_run(model, hf, random_ids(model.config, 2, 40))


def test_gpt2_saved_without_its_head_opens(tmp_path):
    """GPT2Model's tensors have no `transformer.` prefix, as in the checkpoint that OpenAI's weights came in."""
    hf = transformers.GPT2LMHeadModel(HF_CONFIGS["gpt2"]())
    hf.transformer.save_pretrained(tmp_path)
    ids = random_ids(tiny_config("gpt2", vocab_size=89), 2, 40)
    assert_near(run(load_decoder(tmp_path), ids), hf_run(hf, ids)[0])

"""The tokens that a neuron promotes: W · norm(w_down act), computed in NumPy float64 from hooks of `transformers`."""

import numpy as np
import pytest
import torch
from tiny import tiny
from transformers import AutoModelForCausalLM

from glassformer.inspect.edits.edit import ablate, scale
from glassformer.models.language_model import LanguageModel

IDS = [7, 3, 31, 4, 4, 60, 2, 19, 8, 55, 23, 9]
# The last block's down projection, the norm of its output and the final norm, as `transformers` names them.
MODULES = {
    "llama": ("model.layers.2.mlp.down_proj", None, "model.norm"),
    "qwen3": ("model.layers.2.mlp.down_proj", None, "model.norm"),
    "gpt2": ("transformer.h.2.mlp.c_proj", None, "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.layers.2.mlp.dense_4h_to_h", None, "gpt_neox.final_layer_norm"),
    "phi": ("model.layers.2.mlp.fc2", None, "model.final_layernorm"),
    "olmo": ("model.layers.2.mlp.down_proj", None, "model.norm"),
    "olmo2": ("model.layers.2.mlp.down_proj", "model.layers.2.post_feedforward_layernorm", "model.norm"),
    "gemma2": ("model.layers.2.mlp.down_proj", "model.layers.2.post_feedforward_layernorm", "model.norm"),
    "gemma3_text": ("model.layers.2.mlp.down_proj", "model.layers.2.post_feedforward_layernorm", "model.norm"),
}


def frozen(norm, x, part):
    """Apply a norm with the statistics of x, and without its bias, to a part of x."""
    name = type(norm).__name__
    weight = np.ones(len(x)) if getattr(norm, "weight", None) is None else norm.weight.detach().double().numpy()
    weight = weight + 1 if name.startswith("Gemma") else weight
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None) or 1e-5
    if "RMS" in name:
        return part / np.sqrt((x**2).mean() + eps) * weight
    return (part - part.mean()) / np.sqrt(x.var() + eps) * weight


@pytest.mark.parametrize("family", MODULES)
def test_promoted_tokens_equal_numpy_on_transformers(family, tmp_path):
    lm = LanguageModel(tiny(family))
    lm.save(tmp_path)
    theirs, inputs = AutoModelForCausalLM.from_pretrained(tmp_path), {}
    down, inner, final = (name and theirs.get_submodule(name) for name in MODULES[family])
    for module in (down, inner, final):
        if module is not None:
            module.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0][0]}))
    with torch.no_grad():
        theirs(torch.tensor([IDS]))
    head = theirs.get_output_embeddings().weight.detach().double().numpy()
    weight = down.weight.detach().double().numpy()
    weight = weight.T if family == "gpt2" else weight  # GPT-2 stores [in, out]
    for position in (5, 11):
        result = lm.trace(IDS).block(layer=2, position=position, top=6)
        assert result.note is None
        act, x = (inputs[module][position].double().numpy() for module in (down, final))
        assert [one.index for one in result.neurons] == np.argsort(-np.abs(act) * np.linalg.norm(weight, axis=0))[
            :6
        ].tolist()
        for one in result.neurons:
            part = weight[:, one.index] * act[one.index]
            if inner is not None:
                part = frozen(inner, inputs[inner][position].double().numpy(), part)
            logits = head @ frozen(final, x, part)
            order = np.argsort(-logits)
            for shown, best in ((one.promotes, order[:4]), (one.suppresses, order[::-1][:4])):
                assert [token.id for token in shown] == best.tolist()
                size = np.abs(logits).max()
                np.testing.assert_allclose([token.value for token in shown], logits[best], atol=1e-4 * size)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_promoted_tokens_are_those_that_ablation_costs(family):
    """Removing a neuron of the last block lowers the logits of the tokens that it promotes."""
    lm = LanguageModel(tiny(family))
    t = lm.trace(IDS)
    for one in t.block(layer=2, position=11, top=4).neurons:
        without = lm.trace(IDS, edit=[scale("blocks.2.mlp.act", 0.9, dim=one.index, position=11)])
        lost = (t["final.logits"].tensor - without["final.logits"].tensor)[11] * 10
        assert all(lost[token.id] > 0 for token in one.promotes[:1])
        assert all(lost[token.id] < 0 for token in one.suppresses[:1])


def test_a_later_block_that_normalizes_the_stream_leaves_no_direct_path():
    changes = {"layers.2.norm_at": ("post",)}
    result = LanguageModel(tiny("llama", **changes)).trace(IDS).block(layer=1, position=3)
    assert "block 2 normalizes the residual stream itself" in result.note
    assert len(result.neurons) == 12
    assert all(one.promotes == one.suppresses == () for one in result.neurons)
    edited = LanguageModel(tiny("llama")).trace(IDS, edit=[ablate("final.norm", position=2)])
    assert edited.block(layer=1, position=3).note.startswith("final.norm is edited")

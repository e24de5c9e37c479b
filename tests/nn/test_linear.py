"""The Linear protocol: forward passes call linear layers and never read their weights."""

import pytest
import torch
from tiny import ENCODER_DECODERS, encode_source, random_ids, run, tiny, tiny_encoder_decoder
from tiny_families import CONFIGS
from torch import nn

from glassformer.nn.linear import Float32Linear, HeadLinear, TiedLinear


class OpaqueLinear(nn.Module):
    """A linear layer that computes the products of `layer` and counts accesses to its weight."""

    def __init__(self, layer):
        super().__init__()
        self._layer, self.reads = (layer,), 0
        self.bias = layer.bias
        for product in ("per_head", "transposed"):
            if hasattr(layer, product):
                setattr(self, product, getattr(layer, product))

    @property
    def weight(self):
        self.reads += 1
        return self._layer[0].weight

    def forward(self, x):
        return self._layer[0](x)


def opaque(module):
    """Replace every linear layer in place; return the replacements."""
    found = []
    for name, child in module.named_children():
        if isinstance(child, nn.Linear | TiedLinear):
            found.append(OpaqueLinear(child))
            setattr(module, name, found[-1])
        else:
            found += opaque(child)
    return found


@pytest.mark.parametrize("name", [*CONFIGS, *ENCODER_DECODERS])
def test_forward_pass_reads_no_weight(name):
    model = tiny_encoder_decoder(name, seed=8) if name in ENCODER_DECODERS else tiny(name, seed=8)
    ids = random_ids(model.config, 2, 7)

    @torch.no_grad()
    def logits():
        return run(
            model,
            ids,
            source=encode_source(model, random_ids(model.encoder.config, 2, 5)) if name in ENCODER_DECODERS else None,
        )

    expected = logits()
    layers = opaque(model)
    assert torch.equal(logits(), expected)
    assert sum(layer.reads for layer in layers) == 0
    assert layers[0].weight.ndim == 2
    assert layers[0].reads == 1


def test_tied_linear_has_no_matrix_of_its_own():
    embed = nn.Embedding(7, 3)
    head, x = TiedLinear(embed, bias=True), torch.randn(2, 3)
    assert list(head.state_dict()) == ["bias"]
    nn.init.normal_(head.bias)
    assert torch.equal(head(x), nn.functional.linear(x, embed.weight, head.bias))
    embed.weight.data.mul_(2)
    assert head.weight is embed.weight


def test_head_linear_multiplies_each_head_by_its_own_matrix():
    layer, x = HeadLinear(3, 4, 5), torch.randn(2, 6, 3)
    each, back = torch.randn(2, 6, 4, 3), torch.randn(2, 6, 4, 5)
    matrices = layer.weight.view(4, 5, 3)
    for h in range(4):
        torch.testing.assert_close(layer(x)[..., h, :], x @ matrices[h].T)
        torch.testing.assert_close(layer.per_head(each)[..., h, :], each[..., h, :] @ matrices[h].T)
        torch.testing.assert_close(layer.transposed(back)[..., h, :], back[..., h, :] @ matrices[h])


def test_float32_linear_computes_in_float32():
    layer, x = Float32Linear(64, 8).bfloat16(), torch.randn(5, 64).bfloat16()
    assert torch.equal(layer(x), nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float()))

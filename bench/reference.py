"""Reference models of the benchmarks: a GPT-2 shaped model in plain PyTorch, and transformers' models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassformer.families.common.shape import ShapeConfig


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); queries, keys and values from one matrix."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm_1(x)).split(width, -1)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm_2(x))


class PlainGPT(nn.Module):
    """nanoGPT's model: biases in all layers, learned positions, a tied head, and logits of all tokens."""

    def __init__(self, shape: ShapeConfig):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.d_model)
        self.positions = nn.Embedding(shape.context, shape.d_model)
        self.blocks = nn.ModuleList(PlainBlock(shape.d_model, shape.n_heads) for _ in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.d_model)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def transformers_model(shape: ShapeConfig) -> nn.Module:
    """Return transformers' model of this shape, without dropout and with scaled_dot_product_attention."""
    import transformers as hf

    torch.manual_seed(0)
    if shape.family == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=shape.vocab_size,
                n_positions=shape.context,
                n_embd=shape.d_model,
                n_layer=shape.n_layers,
                n_head=shape.n_heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=0,
                eos_token_id=None,
                activation_function="gelu",
                attn_implementation="sdpa",
            )
        )
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.d_model,
            intermediate_size=shape.d_ff,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_kv_heads,
            max_position_embeddings=shape.context,
            tie_word_embeddings=shape.tied_head,
            bos_token_id=0,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
    )

"""The decoder-only stack: embedding, blocks, final norm, language-modelling head."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.config import ModelConfig
from glassformer.nn.attention import spec_of
from glassformer.nn.norm import make_norm
from glassformer.nn.position import LearnedPositions, SinusoidalPositions
from glassformer.nn.residual import Block
from glassformer.nn.step import Step


class Decoder(nn.Module):
    """Token ids [B, T] to logits [B, T, V]: at each position, the scores of every possible next token.

    Parameters are not initialised here: `init_weights` draws them, or a checkpoint fills them.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.positions = LearnedPositions(config.context_length, config.d_model)
        else:
            self.positions = SinusoidalPositions(config.d_model) if config.positions == "sinusoidal" else None
        self.blocks = nn.ModuleList(Block(layer, config.d_model) for layer in config.layers)
        self.norm = make_norm(config.final_norm, config.d_model)
        self.head = None if config.tied_head else nn.Linear(config.d_model, config.vocab_size, bias=False)
        attentions = [layer.attention for layer in config.layers]
        self.specs = {spec_of(attention) for attention in attentions}
        self.ropes = {(a.rope, a.head_dim) for a in attentions if a.rope is not None}

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output table: its own, or the embedding's where the head is tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def hidden(self, ids: Int[Tensor, "B T"], step: Step) -> Float[Tensor, "B T D"]:
        """What the language-modelling head reads: the residual stream after the last block, normed."""
        step.prepare(self.specs, self.ropes)
        x = step.see("embed.tokens", self.embed(ids))
        if self.positions is not None:
            x = x + step.see("embed.positions", self.positions(step.positions).to(x.dtype))
        x = step.see("embed.out", x)
        for i, block in enumerate(self.blocks):
            x = block(x, step.layer(i))
        return step.see("final.norm", self.norm(x))

    def logits(self, hidden: Float[Tensor, "*B D"], step: Step) -> Float[Tensor, "*B V"]:
        """The language-modelling head."""
        return step.see("final.logits", F.linear(hidden, self.head_weight))

    def forward(self, ids: Int[Tensor, "B T"], step: Step) -> Float[Tensor, "B T V"]:
        return self.logits(self.hidden(ids, step), step)

"""Encoder-only models: states for each token, and the heads for masked tokens and for the next sentence.

    ids [B, S] -> embed + types + positions -> norm -> blocks -> states [B, S, D] -> head -> logits [B, S, V]
                                                                    '-> states[:, 0] -> pooler [B, D] -> follows [B, 2]

"BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (Devlin et al. 2019).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import MaskedHeadConfig, TextEncoderConfig
from glassformer.nn.linear import TiedLinear
from glassformer.nn.mlp import ACTIVATIONS
from glassformer.nn.model import Encoder
from glassformer.nn.norm import make_norm
from glassformer.nn.step import Step


class MaskedHead(nn.Module):
    """States to the logits of every token: norm(act(dense(x))) times the embedding's table, plus a bias."""

    def __init__(self, config: MaskedHeadConfig, embed: nn.Embedding):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.dense = nn.Linear(embed.embedding_dim, embed.embedding_dim)
        self.norm = make_norm(config.norm, embed.embedding_dim)
        self.output = TiedLinear(embed, bias=True)

    def forward(self, states: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return self.output(self.norm(self.activation(self.dense(states))))


class TextEncoder(Encoder):
    """Token ids [B, S] to states [B, S, D]. `step.types` are the token types; by default all are type 0."""

    config: TextEncoderConfig

    def __init__(self, config: TextEncoderConfig):
        super().__init__(config)
        width, types = config.d_model, config.n_token_types
        self.token_types = nn.Embedding(types, width) if types else None
        self.pooler = nn.Linear(width, width) if config.pooler else None
        self.next_sentence = nn.Linear(width, 2) if config.next_sentence else None
        self.head = None if config.head is None else MaskedHead(config.head, self.embed)

    def add_token_types(self, x: Float[Tensor, "B S D"], step: Step) -> Float[Tensor, "B S D"]:
        if self.token_types is None:
            assert step.types is None, "this model has no token types"
            return x
        types = torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device) if step.types is None else step.types
        return x + step.see("embed.types", self.token_types(types))

    def pooled(self, states: Float[Tensor, "B S D"], step: Step) -> Float[Tensor, "B D"]:
        """Return tanh(W x + b) of the first state."""
        assert self.pooler is not None, "this model has no pooler"
        return step.see("final.pooled", torch.tanh(self.pooler(states[:, 0])))

    def follows(self, pooled: Float[Tensor, "B D"], step: Step) -> Float[Tensor, "B 2"]:
        """Return the logits of "the second text follows the first" and "it does not"."""
        assert self.next_sentence is not None, "this model has no next-sentence head"
        return step.see("final.follows", self.next_sentence(pooled))

    def logits(self, states: Float[Tensor, "*B D"], step: Step) -> Float[Tensor, "*B V"]:
        """Return the logits of every token at each position."""
        assert self.head is not None, "this model has no head"
        return step.see("final.logits", self.head(states))

"""The three stacks: decoder (a language model), encoder, and encoder-decoder.

    sources [B, S] -> Encoder -> states [B, S, D] --------.
                                                          v cross-attention, in every block
    ids [B, T] -----> embed + positions -> blocks -> norm -> head -> logits [B, T, V]

"Attention Is All You Need" (Vaswani et al. 2017), figure 1. A decoder-only model is the second line alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.config import EncoderConfig, ModelConfig
from glassformer.errors import CapacityError
from glassformer.nn.attention import attend_spec
from glassformer.nn.block import Block
from glassformer.nn.linear import TiedLinear
from glassformer.nn.norm import make_norm
from glassformer.nn.position import RelativePositions, make_positions
from glassformer.nn.protocols import EncodedSource
from glassformer.nn.step import Step


class Stack(nn.Module):
    """Base class of encoder and decoder: token ids to the normalized residual stream after the last block.

    Parameters are not initialized here: `init_weights` draws them, or a checkpoint fills them. `embed` is an embedding
    to share with another stack.
    """

    def __init__(self, config: ModelConfig | EncoderConfig, embed: nn.Embedding | None = None):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model) if embed is None else embed
        self.positions = make_positions(config)
        self.embed_norm = make_norm(config.embed_norm, config.d_model)
        self.blocks = nn.ModuleList(Block(layer, config.d_model) for layer in config.layers)
        self.norm = make_norm(config.final_norm, config.d_model)
        attentions = [layer.attention for layer in config.layers]
        heads, causal = attentions[0].n_heads, attentions[0].causal
        self.relative_positions = None if config.relative is None else RelativePositions(config.relative, heads, causal)
        self.specs = {attend_spec(attention) for attention in attentions}
        self.specs |= {attend_spec(layer.cross, source=True) for layer in config.layers if layer.cross is not None}
        self.ropes = {(a.rope, a.head_dim) for a in attentions if a.rope is not None}

    def hidden(self, ids: Int[Tensor, "B T"], step: Step) -> Float[Tensor, "B T D"]:
        """Return the normalized residual stream after the last block: the input of a head, or of cross-attention."""
        step.prepare(self.specs, self.ropes)
        return self.run_blocks(self.embed_input(ids, step), step)

    def embed_input(self, ids: Int[Tensor, "B T"], step: Step) -> Float[Tensor, "B T D"]:
        """Return the input of block 0: the token embeddings, plus the positions if the model adds them."""
        x = step.see("embed.tokens", self.embed(ids))
        if self.config.embed_scale != 1:
            x = x * self.embed_scale(x.dtype)
        x = self.add_token_types(x, step)
        if self.positions is not None:
            x = x + step.see("embed.positions", self.positions(step.positions).to(x.dtype))
        return step.see("embed.out", self.embed_norm(x))

    def run_blocks(self, x: Float[Tensor, "B T D"], step: Step, first: int = 0) -> Float[Tensor, "B T D"]:
        """Run the blocks from `first` on and the final norm; `x` is the input of block `first`."""
        bias = self.score_bias(step)
        for i, block in enumerate(self.blocks):
            if i >= first:
                x = block(x, step.layer(i, bias))
        return step.see("final.norm", self.norm(x))

    def add_token_types(self, x: Float[Tensor, "B T D"], step: Step) -> Float[Tensor, "B T D"]:
        """Add the embeddings of token types; encoder-only models override this."""
        return x

    def score_bias(self, step: Step) -> Float[Tensor, "#B H T S"] | None:
        """Return the bias of relative positions (T5), which is added to the scores of every layer."""
        if self.relative_positions is None:
            return None
        view = step.view(next(spec for spec in self.specs if not spec.source))
        return self.relative_positions(view.queries, view.keys)

    def embed_scale(self, dtype: torch.dtype) -> float:
        """Return the factor of the embedding."""
        return self.config.embed_scale


class Encoder(Stack):
    """Token ids [B, S] to states [B, S, D]; each token sees its complete sequence."""

    def forward(self, ids: Int[Tensor, "B S"], step: Step) -> Float[Tensor, "B S D"]:
        return self.hidden(ids, step)


class Decoder(Stack):
    """Token ids [B, T] to logits [B, T, V] of the next token at each position."""

    config: ModelConfig

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        if config.tied_head:
            self.head = TiedLinear(self.embed, config.head_bias)
        else:
            self.head = nn.Linear(config.d_model, config.vocab_size, config.head_bias)

    def embed_scale(self, dtype: torch.dtype) -> float:
        scale = self.config.embed_scale
        return torch.tensor(scale, dtype=dtype).item() if self.config.round_embed_scale else scale

    def logits(self, hidden: Float[Tensor, "*B D"], step: Step) -> Float[Tensor, "*B V"]:
        """Apply the language-modelling head."""
        logits = self.head(self.scaled(hidden))
        if (cap := self.config.logit_softcap) is not None:
            logits = cap * torch.tanh(logits / cap)
        return step.see("final.logits", logits)

    def scaled(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Return the input of the head, multiplied by `head_scale`."""
        return hidden if self.config.head_scale == 1 else hidden * self.config.head_scale

    def forward(self, ids: Int[Tensor, "B T"], step: Step) -> Float[Tensor, "B T V"]:
        return self.logits(self.hidden(ids, step), step)


class EncoderDecoder(Decoder):
    """Source ids [B, S] and target ids [B, T] to logits [B, T, V].

        source = model.encode(sources, Step.of(sources, lengths))
        logits = model(ids, Step.of(ids, source=source))

    Tap points, loss and cache are those of a decoder (`DenseCache.of(..., source=source)`).
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        assert config.encoder is not None, "the config of an encoder-decoder must have an encoder"
        self.encoder = Encoder(config.encoder, self.embed if config.shared_embedding else None)

    def encode(self, ids: Int[Tensor, "B S"], step: Step) -> EncodedSource:
        """Encode the sources, once per generation. The names of the tap points begin with `encoder.`.

        Raises:
            CapacityError: a source is longer than the encoder's context.
        """
        limit = self.encoder.config.context_length
        if ids.shape[-1] > limit:
            raise CapacityError(f"a source of {ids.shape[-1]} tokens does not fit: the encoder's context holds {limit}")
        assert step.cache is None, "an encoder has no cache: the decoder's cross-attention caches its keys"
        return EncodedSource(self.encoder(ids, step.inside("encoder.")), step.positions, step.padded)


def make_model(config: ModelConfig) -> Decoder:
    """Return the model that a configuration describes, with uninitialized parameters."""
    return Decoder(config) if config.encoder is None else EncoderDecoder(config)

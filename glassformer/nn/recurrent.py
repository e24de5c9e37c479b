"""The recurrent encoder-decoder (GRU or LSTM), with and without attention.

    source -> embed -> GRU or LSTM -> states h_1 .. h_S --(the last)--> s_0
                                          |
                     score(s, h_j) -> softmax = probs -> context = sum_j probs_j h_j

    attention         s           input of the cell                    hidden, the input of the head
    None              -           y_t                                  s_t
    additive          s_(t-1)     [y_t; context_t]                     tanh(W [context_t; s_t])
    dot, general      s_t         y_t                                  tanh(W [context_t; s_t])
      input feeding   s_t         [y_t; hidden_(t-1)]                  tanh(W [context_t; s_t])

y_t is the embedding of target token t, hidden_t the input of the head for token t + 1, s_t the decoder's state (of the
top layer). None: Sutskever et al. 2014. Additive: Bahdanau et al. 2015, with one tanh layer instead of their maxout of
s, y and context, and s_0 copied instead of projected. Dot, general, input feeding: Luong et al. 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from glassformer.config import RecurrentConfig
from glassformer.nn.protocols import Tap

Cell = tuple[Tensor, ...]  # the state of a cell, each [L, B, Dr]: (h,) of a GRU, (h, c) of an LSTM


class RecurrentSource(NamedTuple):
    """The inputs of attention: states [B, S, Dr], keys [B, S, Dr] for the scores, padding [B, 1, S] or None."""

    states: Tensor
    keys: Tensor
    padding: Tensor | None


@dataclass(frozen=True)
class RecurrentState:
    """The decoder's state. `fed` [B, 1, Dr]: the previous hidden vector, with input feeding."""

    cell: Cell
    source: RecurrentSource | None = None
    fed: Tensor | None = None

    def select(self, sequences: Sequence[int] | Int[Tensor, "R"]) -> RecurrentState:
        """Return these sequences, in this order; one may be repeated (continuations of one source)."""
        index = torch.as_tensor(sequences, device=self.cell[0].device)

        def pick(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.index_select(0, index)

        source = None if self.source is None else RecurrentSource(*map(pick, self.source))  # pyright: ignore[reportArgumentType]
        return RecurrentState(tuple(t.index_select(1, index) for t in self.cell), source, pick(self.fed))


class RecurrentAttention(nn.Module):
    """score(s, h): how well source state h fits decoder state s.

    additive: v.tanh(W s + U h) (Bahdanau et al. 2015, appendix A.1.2). dot: s.h. general: s.W h (Luong et al. 2015,
    section 3.1). The key, the part that depends on h alone, is computed once per source.
    """

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.kind = kind
        self.key = nn.Identity() if kind == "dot" else nn.Linear(width, width, bias=False)
        if kind == "additive":
            self.query = nn.Linear(width, width, bias=False)
            self.v = nn.Linear(width, 1, bias=False)

    def forward(self, s: Float[Tensor, "B T Dr"], keys: Float[Tensor, "B S Dr"]) -> Float[Tensor, "B T S"]:
        if self.kind == "additive":
            return self.v((self.query(s)[:, :, None] + keys[:, None]).tanh_()).squeeze(-1)
        return s @ keys.mT


def see(tap: Tap | None, name: str, value: Tensor) -> Tensor:
    """Pass a value to the tap; return the value to continue with."""
    return value if tap is None or not tap.wants(name) else tap(name, value)


class RecurrentEncoderDecoder(nn.Module):
    """Source ids [B, S] and target ids [B, T] to logits [B, T, V] of the next target token.

    Tap points: `rnn.states` [B, S, Dr], the encoder's states, the last of which is the decoder's first; with attention
    also `rnn.scores` and `rnn.probs` [B, T, S] and `rnn.context` [B, T, Dr]. If a step needs the one before it
    (additive, input feeding) these come in T parts [B, 1, ...], in order: an edit of one changes those after it.
    Parameters are not initialized here: `init_recurrent` draws them, or a checkpoint fills them.
    """

    def __init__(self, config: RecurrentConfig):
        super().__init__()
        self.config = config
        width, layers = config.d_hidden, config.n_layers
        RNN = {"gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
        self.source_embed = nn.Embedding(config.source_vocab_size, config.d_model)
        shared = config.shared_embedding
        self.target_embed = self.source_embed if shared else nn.Embedding(config.target_vocab_size, config.d_model)
        n_directions = 2 if config.bidirectional else 1
        self.encoder = RNN(
            config.d_model, width // n_directions, layers, batch_first=True, bidirectional=n_directions == 2
        )
        self.step_by_step = config.attention == "additive" or config.input_feeding
        self.decoder = RNN(config.d_model + width * self.step_by_step, width, layers, batch_first=True)
        if config.attention is not None:
            self.alignment = RecurrentAttention(config.attention, width)
            self.combine = nn.Linear(2 * width, width, bias=False)
        self.head = nn.Linear(width, config.target_vocab_size, bias=False)

    def encode(
        self, source: Int[Tensor, "B S"], lengths: Int[Tensor, "B"] | None = None, tap: Tap | None = None
    ) -> RecurrentState:
        """Encode the source; return the decoder's first state.

        Args:
            lengths: tokens of each source, the rest is padding; None: no padding.

        Raises:
            RuntimeError: a length is 0 or above S.
        """
        x = self.source_embed(source)  # [B, S, D]
        if lengths is None:
            states, last = self.encoder(x)
            ends = torch.full((len(x),), x.shape[1], device=x.device)
            padding = None
        else:
            packed, last = self.encoder(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
            states, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
            ends = lengths.to(x.device)
            padding = (torch.arange(x.shape[1], device=x.device) >= ends[:, None])[:, None]  # [B, 1, S]
        states = see(tap, "rnn.states", states.contiguous())  # a packed [S, B, Dr] would be copied by each product
        cell = self._start(states, ends, last if isinstance(last, tuple) else (last,))
        if self.config.attention is None:
            return RecurrentState(cell)
        fed = torch.zeros_like(states[:, :1]) if self.config.input_feeding else None
        return RecurrentState(cell, RecurrentSource(states, self.alignment.key(states), padding), fed)

    def _start(self, states: Float[Tensor, "B S Dr"], ends: Int[Tensor, "B"], last: Cell) -> Cell:
        """Return the decoder's first state: each encoder layer's last state, both directions concatenated.

        The top layer's h is taken from `states`, so that an edit of them changes the decoder's state too.
        """
        n_directions = 2 if self.config.bidirectional else 1
        h, *c = (t.unflatten(0, (-1, n_directions)).transpose(1, 2).flatten(2) for t in last)  # [L, B, Dr]
        half = states.shape[-1] // n_directions
        forward, backward = states[torch.arange(len(states), device=ends.device), ends - 1, :half], states[:, 0, half:]
        return torch.cat([h[:-1], torch.cat([forward, backward], -1)[None]]), *c

    def decode(
        self, ids: Int[Tensor, "B T"], state: RecurrentState, tap: Tap | None = None
    ) -> tuple[Float[Tensor, "B T Dr"], RecurrentState]:
        """Process target tokens; return hidden, the input of the head, and the state after them."""
        y = self.target_embed(ids)  # [B, T, D]
        parts = []
        for part in y.split(1, 1) if self.step_by_step else (y,):
            hidden, state = self._advance(part, state, tap)
            parts.append(hidden)
        return torch.cat(parts, 1), state

    def _advance(
        self, y: Float[Tensor, "B T D"], state: RecurrentState, tap: Tap | None
    ) -> tuple[Float[Tensor, "B T Dr"], RecurrentState]:
        """Apply the table above to one token, or to all tokens if they depend on each other through s only."""
        context = None
        if self.config.attention == "additive":
            context = self._attend(state.cell[0][-1][:, None], state.source, tap)
            y = torch.cat([y, context], -1)
        elif state.fed is not None:
            y = torch.cat([y, state.fed], -1)
        s, cell = self._recur(y, state.cell)
        if self.config.attention is None:
            return s, replace(state, cell=cell)
        if context is None:
            context = self._attend(s, state.source, tap)
        hidden = torch.tanh(self.combine(torch.cat([context, s], -1)))
        return hidden, replace(state, cell=cell, fed=None if state.fed is None else hidden)

    def _attend(
        self, s: Float[Tensor, "B T Dr"], source: RecurrentSource | None, tap: Tap | None
    ) -> Float[Tensor, "B T Dr"]:
        """Attention: context_t = sum_j softmax_j(score(s_t, h_j)) h_j."""
        assert source is not None, "the state has no source: it is from a model without attention"
        scores = self.alignment(s, source.keys).float()  # [B, T, S]
        if source.padding is not None:
            scores = scores.masked_fill(source.padding, -torch.inf)
        scores = see(tap, "rnn.scores", scores)
        probs = see(tap, "rnn.probs", scores.softmax(-1))
        return see(tap, "rnn.context", (probs @ source.states.float()).to(s.dtype))

    def _recur(self, x: Float[Tensor, "B T _"], cell: Cell) -> tuple[Float[Tensor, "B T Dr"], Cell]:
        """Run the decoder's cells. For one token torch's cell functions take half of nn.LSTM's time on a CPU."""
        if x.shape[1] > 1:
            s, last = self.decoder(x, cell if self.config.cell == "lstm" else cell[0])
            return s, last if isinstance(last, tuple) else (last,)
        s, layers = x[:, 0], []
        for before, weights in zip(zip(*cell, strict=True), self.decoder.all_weights, strict=True):
            lstm = self.config.cell == "lstm"
            after = torch.lstm_cell(s, before, *weights) if lstm else (torch.gru_cell(s, before[0], *weights),)
            layers.append(after)
            s = after[0]
        return s[:, None], tuple(torch.stack(t) for t in zip(*layers, strict=True))

    def hidden(
        self,
        source: Int[Tensor, "B S"],
        target: Int[Tensor, "B T"],
        lengths: Int[Tensor, "B"] | None = None,
        tap: Tap | None = None,
    ) -> Float[Tensor, "B T Dr"]:
        """Return hidden after each given target token (teacher forcing)."""
        return self.decode(target, self.encode(source, lengths, tap), tap)[0]

    def logits(self, hidden: Float[Tensor, "*B Dr"], tap: Tap | None = None) -> Float[Tensor, "*B V"]:
        """Apply the head."""
        return see(tap, "final.logits", self.head(hidden))

    def forward(
        self,
        source: Int[Tensor, "B S"],
        target: Int[Tensor, "B T"],
        lengths: Int[Tensor, "B"] | None = None,
        tap: Tap | None = None,
    ) -> Float[Tensor, "B T V"]:
        return self.logits(self.hidden(source, target, lengths, tap), tap)


@torch.no_grad()
def init_recurrent(model: RecurrentEncoderDecoder, seed: int, std: float = 0.1) -> RecurrentEncoderDecoder:
    """Initialize the weights: embeddings N(0, std), the matrix of each gate separately, biases 0.

    Recurrent matrices are orthogonal, which preserves the norm of gradients through many steps (Saxe et al. 2014;
    Bahdanau et al. 2015, appendix B.1); other matrices are Glorot uniform (Glorot & Bengio 2010, equation 16); the bias
    of an LSTM's forget gate is 1 (Gers et al. 2000; Jozefowicz et al. 2015). Draws on the CPU with its own generator:
    the same seed gives the same weights on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    n_gates = {"gru": 3, "lstm": 4}[model.config.cell]
    for name, p in model.named_parameters():
        values = torch.zeros(p.shape)
        cells = name.startswith(("encoder.", "decoder."))
        for gate, part in enumerate(values.chunk(n_gates if cells else 1)):
            if ".weight_hh" in name:
                nn.init.orthogonal_(part, generator=generator)
            elif "embed" in name:
                part.normal_(0, std, generator=generator)
            elif p.ndim == 2:
                nn.init.xavier_uniform_(part, generator=generator)
            elif model.config.cell == "lstm" and ".bias_ih" in name and gate == 1:  # torch's order: i, f, g, o
                part.fill_(1)
        p.copy_(values)
    return model

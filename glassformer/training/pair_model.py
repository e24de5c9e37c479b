"""An encoder-decoder in training, whichever it is: made, and fed with a batch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from glassformer.config import ModelConfig, RecurrentConfig
from glassformer.generate.writing import PairModel
from glassformer.nn.init import init_glorot
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder, init_recurrent
from glassformer.nn.step import Step
from glassformer.training.evaluate import Pass
from glassformer.training.pair_batches import PairBatch


def new_pair_model(config: ModelConfig | RecurrentConfig, seed: int) -> PairModel:
    """A model with first weights: Glorot's in a Transformer, as in 2017."""
    if isinstance(config, RecurrentConfig):
        return init_recurrent(RecurrentEncoderDecoder(config), seed)
    model = EncoderDecoder(config)
    init_glorot(model, seed)
    return model


def target_hidden(model: PairModel, batch: PairBatch, how: Pass) -> Float[Tensor, "B T D"]:
    """What the head reads at each place of the targets, every token before it being given (teacher forcing)."""
    if isinstance(model, RecurrentEncoderDecoder):
        return model.hidden(batch.source, batch.inputs, batch.source_lengths)
    lengths = batch.source_lengths.tolist()
    source = model.encode(batch.source, Step.of(batch.source, lengths, attend=how.attend(batch.source.shape[1])))
    length = max(batch.source.shape[1], batch.inputs.shape[1])
    return model.hidden(batch.inputs, Step.of(batch.inputs, attend=how.attend(length), source=source))

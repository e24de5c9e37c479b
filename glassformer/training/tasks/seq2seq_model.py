"""An encoder-decoder in training, whichever it is: made, gone on with, and fed with a batch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.config import ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import read_config
from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape
from glassformer.formats import load_seq2seq
from glassformer.formats.find import find_model
from glassformer.formats.reader import read_json
from glassformer.generate.session import Seq2SeqModel, vocab_sizes
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder, init_recurrent
from glassformer.nn.step import Step
from glassformer.training.data.seq2seq_batches import Seq2SeqBatch
from glassformer.training.init import init_glorot
from glassformer.training.tasks.evaluate import Compute

CONTEXTS = ("context", "source_context")


def create_seq2seq_model(config: ModelConfig | RecurrentConfig, seed: int) -> Seq2SeqModel:
    """A model with first weights: Glorot's in a Transformer, as in 2017."""
    if isinstance(config, RecurrentConfig):
        return init_recurrent(RecurrentEncoderDecoder(config), seed)
    model = EncoderDecoder(config)
    init_glorot(model, seed)
    return model


def model_shape(model: str | Path) -> Seq2SeqShape | RecurrentShape:
    """The shape of a translator that is there, to be trained on.

    A recurrent model has no context: it gets RecurrentShape's. CheckpointError where there is no translator,
    ConfigError where its layers are such as no shape has.
    """
    file = find_model(model) / "config.json"
    config = read_config(read_json(file), str(file))
    if isinstance(config, RecurrentConfig):
        sizes = asdict(config)
        del sizes["source_vocab_size"], sizes["target_vocab_size"]
        return RecurrentShape(**sizes)
    if isinstance(config, TextEncoderConfig):
        raise CheckpointError(f"{model} is an encoder, which writes nothing: it is no translator")
    if config.encoder is None:
        raise CheckpointError(f"{model} is a language model, which reads no source: go on with it by task lm")
    layer = config.layers[0]
    shape = Seq2SeqShape(
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=layer.attention.n_heads,
        d_ff=layer.mlp.d_ff,
        context=config.context_length,
        source_context=config.encoder.context_length,
        norm_at="post" if layer.norm_at == ("post",) else "pre",
        positions="learned" if config.positions == "learned" else "sinusoidal",
        shared_embedding=config.shared_embedding,
        tied_head=config.tied_head,
    )
    if shape.expand(config.vocab_size, config.encoder.vocab_size) != config:
        raise ConfigError(f"{model} is an encoder-decoder of another kind than those trained here: see PairShape")
    return shape


def check_shape(model: str | Path, shape: Seq2SeqShape | RecurrentShape) -> None:
    """ConfigError where `shape` is not that of the model to go on from; shorter contexts are fine."""
    own = model_shape(model)
    if isinstance(own, Seq2SeqShape) and isinstance(shape, Seq2SeqShape):
        for name in CONTEXTS:
            asked, limit = getattr(shape, name) or shape.context, getattr(own, name)
            if asked > limit:
                raise ConfigError(f"{name} is {asked}, and {model} was made for at most {limit}: lower it")
    if type(own) is not type(shape):
        raise ConfigError(f"{model} has a {type(own).__name__}, and the settings say {type(shape).__name__}")
    ours, asked = asdict(own), asdict(shape)
    wrong = [f"{n} {asked[n]!r} where it has {ours[n]!r}" for n in ours if n not in CONTEXTS and ours[n] != asked[n]]
    if wrong:
        raise ConfigError(f"{model} is gone on with as it is, the settings say {', '.join(wrong)}: see model_shape")


def load_seq2seq_model(folder: str | Path, vocab_size: int) -> Seq2SeqModel:
    """The model in `folder` in float32, each parameter with storage of its own, for a tokenizer of so many tokens."""
    model = load_seq2seq(folder, dtype=torch.float32, copy=True)
    room = min(vocab_sizes(model))
    if room < vocab_size:
        raise ConfigError(f"the tokenizer has {vocab_size} tokens, and the model's vocab_size is {room}")
    return model


def target_hidden(model: Seq2SeqModel, batch: Seq2SeqBatch, compute: Compute) -> Float[Tensor, "B T D"]:
    """What the head reads at each place of the targets, every token before it being given (teacher forcing)."""
    if isinstance(model, RecurrentEncoderDecoder):
        return model.hidden(batch.source, batch.inputs, batch.source_lengths)
    lengths = batch.source_lengths.tolist()
    attend = compute.attention_for(model.config, max(batch.source.shape[1], batch.inputs.shape[1]))
    source = model.encode(batch.source, Step.of(batch.source, lengths, attend=attend))
    return model.hidden(batch.inputs, Step.of(batch.inputs, attend=attend, source=source))

"""A checkpoint to a model. Loading is accounting: every tensor lands once, every parameter is filled once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from glassformer.config import ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.errors import CheckpointError
from glassformer.families.common.family import AnyConfig
from glassformer.formats.checkpoint import AnyModel, Checkpoint, account, empty_model, open_checkpoint
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder

KINDS = {  # for somebody who took a model for something else
    "writer": "a language model, which reads no source: `glassformer generate`, or glassformer.load",
    "translator": "a translator, which writes from a source: `glassformer translate`, or glassformer.load_translator",
    "encoder": "an encoder, which reads a text and writes none: `glassformer embed`, or glassformer.load_embedder",
}


def load_model(
    source: str | Path | Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    copy: bool = False,
    ignore_keys: tuple[str, ...] = (),
) -> Decoder:
    """The language model of a folder or file, on `device` in `dtype` (each tensor in its own by default).

    Tensors that need no conversion stay mapped from the file; `copy` gives each its own aligned storage, as training
    needs. Neither takes more memory than the weights. What is quantized is decoded, by default to float32.
    CheckpointError lists every tensor that is missing, left over or of the wrong shape, in one message; or says that
    the model is of another kind, and what it is for.
    """
    model = _load(_opened(source, ignore_keys, "writer"), torch.device(device), dtype, copy)
    assert isinstance(model, Decoder)
    return model


def load_pair_model(
    source: str | Path | Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    copy: bool = False,
    ignore_keys: tuple[str, ...] = (),
) -> EncoderDecoder | RecurrentEncoderDecoder:
    """`load_model` of an encoder-decoder. CheckpointError too where the model is of another kind."""
    model = _load(_opened(source, ignore_keys, "translator"), torch.device(device), dtype, copy)
    assert isinstance(model, EncoderDecoder | RecurrentEncoderDecoder)
    return model


def load_text_encoder(
    source: str | Path | Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    copy: bool = False,
    ignore_keys: tuple[str, ...] = (),
) -> TextEncoder:
    """`load_model` of an encoder that stands by itself. CheckpointError too where the model is of another kind."""
    model = _load(_opened(source, ignore_keys, "encoder"), torch.device(device), dtype, copy)
    assert isinstance(model, TextEncoder)
    return model


def reads_source(config: AnyConfig) -> bool:
    """Whether it is a translator's."""
    return isinstance(config, RecurrentConfig) or (isinstance(config, ModelConfig) and config.encoder is not None)


def _opened(source: str | Path | Checkpoint, ignore_keys: tuple[str, ...], wanted: str) -> Checkpoint:
    """A checkpoint of the kind that is wanted, one of KINDS; CheckpointError says which other kind it is of."""
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(Path(source), ignore_keys)
    config = checkpoint.config
    kind = "encoder" if isinstance(config, TextEncoderConfig) else "translator" if reads_source(config) else "writer"
    if kind != wanted:
        raise CheckpointError(f"{checkpoint.path} is {KINDS[kind]}")
    return checkpoint


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None, copy: bool) -> AnyModel:
    config, reader = checkpoint.config, checkpoint.reader
    model = empty_model(config)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for entry, name in sorted(account(checkpoint, parameters), key=lambda pair: reader.place(pair[1])):
        if name is None:
            kind = dtype or checkpoint.dtype
            for ours in entry.ours:
                _place(model, ours, torch.zeros(parameters[ours].shape, dtype=kind, device=device))
            continue
        own = reader.dtype(name)
        assert own is not None, f"{name} is no weight"
        kind = entry.dtype(dtype, own)
        again = name == entry.instead  # of two parameters: each gets numbers of its own
        if copy or again or entry.moves or not reader.mapped(name) or device.type != "cpu" or kind != own:
            values = [torch.empty(parameters[n].shape, dtype=kind, device=device) for n in entry.ours]
            whole = len(values) == 1 and not entry.moves and reader.mapped(name)
            if whole and device.type == "cpu" and values[0].dtype == own:
                reader.read(name, values[0])
            else:
                for begin, rows in reader.rows(name):
                    entry.fill(values, begin, rows)
        else:
            values = entry.split(reader[name], parameters)
        for ours, value in zip(entry.ours, values, strict=True):
            _place(model, ours, value)
    return model.eval()


def _place(model: torch.nn.Module, name: str, value: Tensor) -> None:
    """Put a value in a parameter's place (assigning keeps a mapped tensor mapped)."""
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, torch.nn.Parameter(value, requires_grad=value.is_floating_point()))

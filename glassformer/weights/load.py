"""A checkpoint folder to a model. Loading is accounting: every tensor lands once, every parameter is filled once."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from glassformer.config import ModelConfig, RecurrentConfig
from glassformer.errors import CheckpointError
from glassformer.families import Family, family_of, read_config
from glassformer.nn.model import Decoder, EncoderDecoder, make_model
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.weights.reader import Reader, read_json
from glassformer.weights.rules import Entry, entries

KINDS = ("F32", "BF16", "F16", "F64")


def load_model(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    copy: bool = False,
    ignore_keys: tuple[str, ...] = (),
) -> Decoder:
    """The language model of a Hugging Face folder, on `device` in `dtype` (the checkpoint's own by default).

    Tensors that need no conversion stay mapped from the file; `copy` gives each its own aligned storage, as training
    needs. Neither takes more memory than the weights. CheckpointError lists every tensor that is missing, left over or
    of the wrong shape, in one message; or says that the model is a translator.
    """
    model = _load(Path(folder), torch.device(device), dtype, copy, ignore_keys)
    if isinstance(model, EncoderDecoder | RecurrentEncoderDecoder):
        raise CheckpointError(
            f"{folder} is a translator, which writes from a source: `glassformer translate`, "
            "or glassformer.load_translator"
        )
    return model


def load_pair_model(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    copy: bool = False,
    ignore_keys: tuple[str, ...] = (),
) -> EncoderDecoder | RecurrentEncoderDecoder:
    """`load_model` of an encoder-decoder. CheckpointError too where the model is a language model."""
    model = _load(Path(folder), torch.device(device), dtype, copy, ignore_keys)
    if not isinstance(model, EncoderDecoder | RecurrentEncoderDecoder):
        raise CheckpointError(
            f"{folder} is a language model, which reads no source: `glassformer generate`, or glassformer.load"
        )
    return model


def _load(
    folder: Path, device: torch.device, dtype: torch.dtype | None, copy: bool, ignore_keys: tuple[str, ...]
) -> Decoder | RecurrentEncoderDecoder:
    config = read_config(read_json(folder / "config.json"), str(folder / "config.json"), ignore_keys)
    with torch.device("meta"):
        model = RecurrentEncoderDecoder(config) if isinstance(config, RecurrentConfig) else make_model(config)
    reader = Reader(folder)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    pairs = account(family_of(config), config, parameters, reader, folder)
    for entry, name in pairs:
        if name is None:
            kind = dtype or reader[next(iter(reader))].dtype
            for ours in entry.ours:
                _place(model, ours, torch.zeros(parameters[ours].shape, dtype=kind, device=device))
            continue
        mapped = reader[name]
        if copy or entry.transposed or entry.groups > 1 or device.type != "cpu" or dtype not in (None, mapped.dtype):
            values = [torch.empty(parameters[n].shape, dtype=dtype or mapped.dtype, device=device) for n in entry.ours]
            for begin, rows in reader.rows(name):
                entry.fill(values, begin, rows)
        else:
            values = entry.split(mapped, parameters)
        for ours, value in zip(entry.ours, values, strict=True):
            _place(model, ours, value)
    return model.eval()


def account(
    fam: Family,
    config: ModelConfig | RecurrentConfig,
    parameters: dict[str, Tensor],
    reader: Reader,
    folder: Path,
) -> list[tuple[Entry, str | None]]:
    """Each entry with the name its tensor has in the file, None for zeros. All problems in one CheckpointError."""
    pairs, wrong, unused = [], [], set(reader)
    bare = not any(name.startswith(fam.prefix) for name in reader)
    for entry in entries(fam, config, parameters):
        name = entry.theirs.removeprefix(fam.prefix) if bare else entry.theirs
        if name not in reader and entry.zeros:
            pairs.append((entry, None))
            continue
        if name not in reader:
            wrong.append(f"missing: {name} (fills {', '.join(entry.ours)})")
            continue
        unused.discard(name)
        if reader.shape(name) != entry.shape(parameters):
            found, told = list(reader.shape(name)), list(entry.shape(parameters))
            wrong.append(f"shape: {name} is {found}, the config says {told}")
        if reader.kind(name) not in KINDS:
            wrong.append(f"type: {name} is {reader.kind(name)}, weights are {', '.join(KINDS)}")
        pairs.append((entry, name))
    wrong += [f"not used: {name}" for name in sorted(unused) if not _may_be_left(fam, config, name, reader)]
    if wrong:
        shown = "\n  ".join(wrong[:20]) + (f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise CheckpointError(f"{folder}: the weights do not fit the configuration:\n  {shown}")
    return pairs


def _may_be_left(fam: Family, config: ModelConfig | RecurrentConfig, name: str, reader: Reader) -> bool:
    """A buffer without weights, or a copy of the embedding beside a tied head."""
    if any(re.fullmatch(pattern, name.removeprefix(fam.prefix)) for pattern in fam.ignored):
        return True
    rules = None if isinstance(config, RecurrentConfig) else fam.rules_of(config)
    if rules is None or isinstance(config, RecurrentConfig):
        return False
    theirs = {rule.ours: rule.theirs for rule in rules}
    table, head = theirs["embed.weight",], theirs.get(("head.weight",))
    table = table if table in reader else table.removeprefix(fam.prefix)
    copies = {*fam.copies, *(() if head is None or not config.tied_head else (head,))}
    return (
        (name in copies or fam.prefix + name in copies) and table in reader and torch.equal(reader[name], reader[table])
    )


def _place(model: torch.nn.Module, name: str, value: Tensor) -> None:
    """Put a value in a parameter's place (assigning keeps a mapped tensor mapped)."""
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, torch.nn.Parameter(value, requires_grad=value.is_floating_point()))

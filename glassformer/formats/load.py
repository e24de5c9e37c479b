"""Load a checkpoint's weights into a model. Every tensor is used once and every parameter is filled once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glassformer.config import ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.errors import CheckpointError, ConfigError, shortened
from glassformer.families import Family
from glassformer.families.common.family import AnyConfig
from glassformer.formats.checkpoint import Checkpoint, ModelKind, open_checkpoint
from glassformer.formats.gguf.blocks import pack_blocks
from glassformer.formats.reader import FLOAT_DTYPES, TensorReader
from glassformer.formats.tensor_mapping import TensorMapping, map_tensors
from glassformer.kernels.packed_linear import PackedEmbedding, can_replace, replace_matrix
from glassformer.kernels.placement import QuantizedMatrices
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Decoder, EncoderDecoder, make_model
from glassformer.nn.recurrent import RecurrentEncoderDecoder

HEAD = "lm_head.weight"
# Rotary angles, which old files store, and the value head of reinforcement learning.
NOT_WEIGHTS = (r"(.*\.)?rotary_emb\.inv_freq", r"v_head\.(summary\.)?(weight|bias)")
AnyModel = Decoder | RecurrentEncoderDecoder | TextEncoder
DESCRIPTIONS: dict[ModelKind, str] = {
    "decoder": "a decoder-only language model: use `glassformer generate`",
    "encoder-decoder": "an encoder-decoder: use `glassformer translate`",
    "recurrent": "a recurrent encoder-decoder: use `glassformer translate`",
    "encoder": "an encoder-only model: use `glassformer embed`",
}


def load_model(
    source: str | Path | Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    copy: bool = False,
    packed: bool = False,
    ignore_keys: tuple[str, ...] = (),
) -> AnyModel:
    """Load the model of a checkpoint of any kind.

    Args:
        source: an opened checkpoint, or the path of one.
        device: where the parameters are stored.
        dtype: the dtype of the parameters; None keeps each tensor's own, and decodes quantized ones to float32.
        copy: give every parameter its own aligned storage, as training needs. By default tensors that need no
            conversion stay memory-mapped. Either way the peak memory is that of the weights.
        packed: keep quantized matrices as they are stored, in the layout of `kernels/packed.py`, where `can_pack`
            allows it; for inference on a CPU. `dtype` is then that of all other parameters, float32 as a rule.
        ignore_keys: see `open_checkpoint`; only for a path.

    Raises:
        CheckpointError: lists every tensor that is missing, unused or of the wrong shape, in one message; a packed
            matrix has a scale that is not finite. The first
            forward pass raises it for weights that are not finite, unless they were copied: see `FiniteCheck`.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, ignore_keys)
    device, reader = torch.device(device), checkpoint.reader
    model = empty_model(checkpoint.config)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for mapping, name in sorted(account(checkpoint, parameters), key=lambda match: reader.file_position(match[1])):
        if name is None:
            for ours in mapping.parameter_names:
                zeros = torch.zeros(parameters[ours].shape, dtype=dtype or checkpoint.dtype, device=device)
                _assign(model, ours, zeros)
            continue
        if packed and can_pack(model, mapping, reader, name):
            _pack(model, mapping, checkpoint, name, parameters)
            continue
        stored = reader.dtype(name)
        assert stored is not None, f"{name} is not a weight"
        target = mapping.dtype(dtype, stored)
        same = reader.mapped(name) and device.type == "cpu" and target == stored and not mapping.rearranges
        if same and not copy and name != mapping.fallback:  # a fallback tensor fills two parameters, so it is copied
            values = mapping.split(reader[name], parameters)
        else:
            values = [
                torch.empty(parameters[ours].shape, dtype=target, device=device) for ours in mapping.parameter_names
            ]
            if same and len(values) == 1:
                reader.read_into(name, values[0])
            else:
                for begin, rows in reader.rows(name):
                    mapping.fill(values, begin, rows)
        for ours, value in zip(mapping.parameter_names, values, strict=True):
            _assign(model, ours, value)
    if not copy:
        FiniteCheck(model, str(checkpoint.path))
    return model.eval()


def can_pack(model: AnyModel, mapping: TensorMapping, reader: TensorReader, name: str) -> bool:
    """Whether a tensor's quantized blocks can be packed: whole rows fill matrices of linear layers and embeddings."""
    changes_rows = mapping.transposed or mapping.row_vector or mapping.float32 or mapping.offset != 0
    layers = all(can_replace(model, ours) for ours in mapping.parameter_names)
    return reader.block_type(name) is not None and not changes_rows and layers


def quantized_matrices(checkpoint: Checkpoint) -> tuple[QuantizedMatrices, ...]:
    """Return a checkpoint's quantized matrices by type, and whether they can be packed. Errors: see `account`."""
    reader = checkpoint.reader
    if all(reader.quantized_bytes(name) is None for name in reader):
        return ()
    model = empty_model(checkpoint.config)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    found: dict[tuple[str, bool], list[tuple[int, int, int]]] = {}
    for mapping, name in account(checkpoint, parameters):
        if name is not None and (nbytes := reader.quantized_bytes(name)) is not None:
            key = reader.stored_type(name), can_pack(model, mapping, reader, name)
            n_weights = sum(parameters[ours].numel() for ours in mapping.parameter_names)
            found.setdefault(key, []).append((len(mapping.parameter_names), n_weights, nbytes))
    return tuple(
        QuantizedMatrices(kind, *map(sum, zip(*parts, strict=True)), packs=packs)
        for (kind, packs), parts in found.items()
    )


def _pack(
    model: AnyModel, mapping: TensorMapping, checkpoint: Checkpoint, name: str, parameters: dict[str, Tensor]
) -> None:
    """Pack a tensor's blocks in the matrices that it fills. Its rows are ordered as bytes, before they are packed."""
    kind, blocks = checkpoint.reader.block_type(name), []
    assert kind is not None, f"{name} is not quantized"
    for begin, rows in checkpoint.reader.block_rows(name):
        if not blocks:
            sizes = [parameters[ours].shape[0] for ours in mapping.parameter_names]
            blocks = [torch.empty(size, rows.shape[-1], dtype=torch.uint8) for size in sizes]
        mapping.fill(blocks, begin, rows)
    for ours, rows in zip(mapping.parameter_names, blocks, strict=True):
        replace_matrix(model, ours, pack_blocks(kind, rows, f"{checkpoint.path}: {name}"))


def require_floats(checkpoint: Checkpoint) -> None:
    """Check that the weights can be quantized. CheckpointError: some are quantized already. Other errors: `account`."""
    reader, parameters = checkpoint.reader, meta_parameters(checkpoint.config)
    types = {reader.stored_type(name) for _, name in account(checkpoint, parameters) if name is not None}
    if quantized := sorted(types - FLOAT_DTYPES.keys()):
        stored = ", ".join(quantized)
        raise CheckpointError(f"{checkpoint.path} is quantized already ({stored}): load it as it is, without quantize")


class FiniteCheck:
    """A hook of a model's embeddings: in the first forward pass, it checks every parameter and is removed.

    It raises CheckpointError if a parameter is NaN or infinite. The first forward pass reads every mapped weight
    anyway. Packed matrices were checked when they were packed. Few non-finite weights would show in the output: an
    infinite score is capped, clipped or gets probability 0, and a row of the embedding is used by one token only.
    """

    def __init__(self, model: AnyModel, path: str):
        self.model, self.path = model, path
        tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding | PackedEmbedding))
        self.handles = [table.register_forward_pre_hook(self) for table in tables]

    @torch.no_grad()
    def __call__(self, *_: Any) -> None:
        named = [(name, p) for name, p in self.model.named_parameters() if p.numel()]
        extremes = [torch.stack(p.aminmax()).isfinite().all() for _, p in named]
        finite = torch.stack(extremes).tolist() if extremes else []
        if bad := [name for (name, _), ok in zip(named, finite, strict=True) if not ok]:
            dtype = str(self.model.get_parameter(bad[0]).dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{self.path}: weights are NaN or infinite, because the file is damaged or its numbers are too large "
                f"for {dtype}: {shortened(bad)}"
            )
        for handle in self.handles:
            handle.remove()


def load_decoder(source: str | Path | Checkpoint, **options: Any) -> Decoder:
    """Load a decoder-only model; the options are `load_model`'s.

    Raises:
        CheckpointError: the checkpoint is of another kind, or see `load_model`.
    """
    model = load_model(_require(source, options, "decoder"), **options)
    assert isinstance(model, Decoder)
    return model


def load_seq2seq(source: str | Path | Checkpoint, **options: Any) -> EncoderDecoder | RecurrentEncoderDecoder:
    """Load an encoder-decoder, a Transformer or a recurrent one; otherwise as `load_decoder`."""
    model = load_model(_require(source, options, "encoder-decoder", "recurrent"), **options)
    assert isinstance(model, EncoderDecoder | RecurrentEncoderDecoder)
    return model


def load_text_encoder(source: str | Path | Checkpoint, **options: Any) -> TextEncoder:
    """Load an encoder-only model; otherwise as `load_decoder`."""
    model = load_model(_require(source, options, "encoder"), **options)
    assert isinstance(model, TextEncoder)
    return model


def _require(source: str | Path | Checkpoint, options: dict[str, Any], *kinds: ModelKind) -> Checkpoint:
    """Open a checkpoint and check its kind before any weights are loaded."""
    ignore_keys = options.pop("ignore_keys", ())
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, ignore_keys)
    if checkpoint.kind not in kinds:
        raise CheckpointError(f"{checkpoint.path} is {DESCRIPTIONS[checkpoint.kind]}")
    return checkpoint


def _assign(model: torch.nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter. Assigning, unlike copying, keeps a memory-mapped tensor mapped."""
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, torch.nn.Parameter(value, requires_grad=value.is_floating_point()))


def meta_parameters(config: AnyConfig) -> dict[str, Tensor]:
    """Return a model's parameters by name, on the meta device: shapes only."""
    return dict(empty_model(config).named_parameters())


def empty_model(config: AnyConfig) -> AnyModel:
    """Create a model on the meta device. ConfigError: a matrix has more numbers than a tensor can have."""
    try:
        with torch.device("meta"), _SkipInit():
            if isinstance(config, RecurrentConfig):
                return RecurrentEncoderDecoder(config)
            if isinstance(config, TextEncoderConfig):
                return TextEncoder(config)
            return make_model(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch's errors of sizes beyond 64 bits
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the configuration describes a matrix that is too large: {reason}") from error


class _SkipInit(TorchFunctionMode):
    """Skip torch.nn.init: on the meta device it has no effect, and it would import a second's worth of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def account(checkpoint: Checkpoint, parameters: dict[str, Tensor]) -> list[tuple[TensorMapping, str | None]]:
    """Match a checkpoint's tensors with a model's parameters.

    Returns:
        Each mapping with the name of its tensor in the file, or None if its parameters are zeros.

    Raises:
        CheckpointError: lists all tensors that are missing, unused, of the wrong shape or type, or stored twice.
    """
    family, config, reader = checkpoint.family, checkpoint.config, checkpoint.reader
    matches, problems, unused = [], [f"stored twice: {name}" for name in reader.duplicates], set(reader)
    bare = not any(name.startswith(family.prefix) for name in reader)
    present = {family.prefix + name if bare else name for name in reader}
    tied = isinstance(config, ModelConfig) and config.tied_head
    for mapping in map_tensors(family, config, parameters, present):
        name = mapping.tensor_name.removeprefix(family.prefix) if bare else mapping.tensor_name
        if name not in reader and mapping.fallback in reader:
            name = mapping.fallback
        if name not in reader and tied and mapping.parameter_names == ("embed.weight",) and HEAD in reader:
            name = HEAD  # one table, stored under the name of the head only
        if name not in reader:
            if mapping.zeros_if_missing:
                matches.append((mapping, None))
            else:
                problems.append(f"missing: {name} (fills {', '.join(mapping.parameter_names)})")
                if bare and mapping.parameter_names == ("head.weight",):
                    problems.append("the checkpoint was saved from a base model, which has no language-modelling head")
            continue
        unused.discard(name)
        if reader.shape(name) != mapping.shape(parameters):
            stored, needed = list(reader.shape(name)), list(mapping.shape(parameters))
            problems.append(f"shape: {name} is {stored}, the config needs {needed}")
        if reader.dtype(name) is None:
            problems.append(
                f"type: {name} is {reader.stored_type(name)}, supported types are {reader.supported_types(name)}"
            )
        matches.append((mapping, name))
    problems += [f"not used: {name}" for name in sorted(unused) if not _is_redundant(family, config, name, reader)]
    if problems:
        listed = shortened(problems, "\n  ")
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the configuration:\n  {listed}")
    return matches


def _is_redundant(family: Family, config: AnyConfig, name: str, reader: TensorReader) -> bool:
    """Whether an unused tensor is a buffer, a bias of zeros (early GPTQ files), or equals a tied or duplicate one."""
    n_layers = config.n_layers if isinstance(config, ModelConfig) else 0
    patterns = [pattern.replace("{n_layers}", str(n_layers)) for pattern in (*family.ignored, *NOT_WEIGHTS)]
    if any(re.fullmatch(pattern, name.removeprefix(family.prefix)) for pattern in patterns):
        return True
    is_bias = name.endswith(".bias") and name.removesuffix("bias") + "weight" in reader
    if is_bias and reader.dtype(name) is not None and not reader[name].any():
        return True
    rules = family.rules_for(config)
    if rules is None or isinstance(config, RecurrentConfig):
        return False
    twin = dict(family.duplicates).get(name)
    if twin is not None and twin in reader:
        return torch.equal(reader[name], reader[twin])
    theirs = {rule.parameter_names: rule.tensor_name for rule in rules}
    table, head = theirs["embed.weight",], theirs.get(("head.weight",))
    table = table if table in reader else table.removeprefix(family.prefix)
    tied = isinstance(config, ModelConfig) and config.tied_head
    copies = {*family.embedding_copies, *(() if head is None or not tied else (head,))}
    known = name in copies or family.prefix + name in copies
    return known and table in reader and torch.equal(reader[name], reader[table])

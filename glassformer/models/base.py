"""The base class of text models: loading, token ids, traces, sweeps and saving."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from glassformer.errors import CheckpointError, RequestError
from glassformer.formats import Checkpoint, ModelKind, find_model, open_checkpoint
from glassformer.formats.load import DESCRIPTIONS, FiniteCheck, quantized_matrices, require_floats
from glassformer.formats.save import GgufKind
from glassformer.generate.sampling import check_number
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.record.many import (
    ActivationBatch,
    FileFormat,
    Progress,
    save_activations,
    stream_activations,
    token_points,
)
from glassformer.inspect.record.store import load as load_trace
from glassformer.inspect.sweep.sweep import Sweep, sweep
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.methods import ModelViews
from glassformer.kernels.describe import describe
from glassformer.kernels.linear import widen
from glassformer.kernels.native.modules import choose_native, use_native
from glassformer.kernels.packed_linear import count_weights, packed_modules, runs_packed
from glassformer.kernels.placement import (
    Choice,
    Placement,
    Quantize,
    choose_placement,
    choose_quantized_placement,
)
from glassformer.kernels.quantize import Quantization, quantize_model
from glassformer.nn.linear import device_of, dtype_of
from glassformer.nn.step import Step

M = TypeVar("M", bound="TextModel")
TextOrIds = str | Sequence[int] | Tensor | np.ndarray  # token ids: one integer axis


class TextModel(ModelViews, ABC):
    """A model with its tokenizer; base class of `LanguageModel`, `Translator` and `Embedder`.

    Attributes:
        model: the torch module.
        tokenizer: the `Tokenizer`; None if a decoder's checkpoint has none, so that it takes token ids only.
        path: the folder or file that the model was loaded from; "" if it was constructed in memory.
        kind: "decoder", "encoder-decoder", "recurrent" or "encoder".
        trace_type: the class of its traces.
        placement: the device and dtype that `load` chose; None if the model was constructed in memory.
        quantization: the matrices that `load` quantized, and their errors; None if it was not requested.
        left_out: the names of the tensors that were not loaded, of other parts of a multimodal model.
    """

    kinds: ClassVar[tuple[ModelKind, ...]]
    model: Any
    tokenizer: Any
    path: str
    kind: ModelKind
    trace_type: Any
    placement: Placement | None = None
    quantization: Quantization | None = None
    left_out: Sequence[str] = ()

    @classmethod
    def load(
        cls: type[M],
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Quantize | None = None,
        ignore_keys: Sequence[str] = (),
        offline: bool = False,
    ) -> M:
        """Load a model of this class; `glassformer.load` loads one of any class.

        Args:
            path: a model folder, a GGUF or safetensors file, a run folder (its best checkpoint), the name of a packaged
                model, or `owner/name[@revision]` on the Hugging Face hub.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            dtype: "auto", "float32", "bfloat16" or "float16". With "auto", a CPU runs quantized matrices as they are
                stored if it has kernels for them; any other value decodes them.
            quantize: "int8" or "int4" quantizes the matrices of an unquantized model at load, for a CPU: see
                `kernels/quantize.py`. `quantization` then has the error of each matrix.
            ignore_keys: keys of config.json that the model family does not know and that do not matter.
            offline: use no network; a hub model must have been downloaded before.

        Raises:
            CheckpointError: files are missing, damaged or inconsistent, or contain a model of another class; the model
                to quantize is quantized already.
            ConfigError: a configuration key, device or dtype is not supported, or not with `quantize`.
        """
        checkpoint = open_checkpoint(find_model(path, offline=offline), tuple(ignore_keys))
        return cls.from_checkpoint(checkpoint, device=device, dtype=dtype, quantize=quantize)

    @classmethod
    def from_checkpoint(
        cls: type[M],
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Quantize | None = None,
    ) -> M:
        """Load a model from an open checkpoint. Other arguments and errors: see `load`."""
        if checkpoint.kind not in cls.kinds:
            kind = DESCRIPTIONS[checkpoint.kind]
            raise CheckpointError(f"{cls.__name__} cannot load {checkpoint.path}, which is {kind}")
        if quantize is not None:
            require_floats(checkpoint)
            placement = choose_quantized_placement(device, dtype, quantize)
        else:
            placement = choose_placement(
                device, dtype, stored=checkpoint.dtype, n_parameters=checkpoint.n_parameters,
                quantized=quantized_matrices(checkpoint), packs=runs_packed(),
            )  # fmt: skip
        loaded = cls._load(checkpoint, placement)
        if quantize is not None:
            loaded.quantization = quantize_model(loaded.model, quantize, str(checkpoint.path))
            FiniteCheck(loaded.model, str(checkpoint.path))  # of the other parameters
        if placement.packed or choose_native(loaded.config, placement.device, placement.dtype) is not None:
            use_native(loaded.model)
        else:
            widen(loaded.model)
        loaded.placement, loaded.left_out = placement, checkpoint.left_out
        return loaded

    @classmethod
    @abstractmethod
    def _load(cls: type[M], checkpoint: Checkpoint, placement: Placement) -> M:
        """Load the weights and the tokenizer of a checkpoint of one of `kinds`."""

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.model)

    @property
    def n_parameters(self) -> int:
        return count_weights(self.model)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The device, dtype and implementations that run the model, with the reasons."""
        placement = self.placement
        if placement is None:
            dtype = str(self.dtype).removeprefix("torch.")
            device = Choice("device", str(self.device), "the weights are on it")
            choices = device, Choice("dtype", dtype, "the weights have it")
            placement = Placement(self.device, self.dtype, choices, packed=any(packed_modules(self.model)))
        return describe(self.config, placement)

    @abstractmethod
    def encode(self, text: TextOrIds) -> list[int]:
        """Return the token ids that the model processes for a text; token ids are returned as a list."""

    @abstractmethod
    def trace(
        self,
        text: TextOrIds,
        target: TextOrIds | None = None,
        *,
        capture: str | Sequence[str] = (),
        edit: Edit | Sequence[Edit] = (),
        budget: int | None = None,
        max_tokens: int | None = None,
        before_forward: Callable[[], None] | None = None,
    ) -> Trace:
        """Record the activations of a text: see `inspect/trace/trace.py`.

        Args:
            text: a text or token ids.
            target: the target of a model with a source; None generates it.
            capture: points, or patterns of them ("blocks.5.attn.*"), to record during the forward pass. All other
                values are recomputed when they are requested.
            edit: changes to activations during the forward pass: see `inspect/edits/edit.py`.
            budget: the most bytes that the trace may hold.
            max_tokens: how many tokens to generate at most; a `LanguageModel` generates none by default.
            before_forward: called before each forward pass; an exception from it stops the trace.

        A `LanguageModel` also takes `stop` and sampling options, a `Translator` `ended` and `special`.

        Raises:
            RequestError: a point or option does not exist, or has no effect.
            CapacityError: a text does not fit the context, or the trace the budget.
        """

    def trace_many(
        self,
        texts: Sequence[TextOrIds],
        *,
        capture: str | Sequence[str],
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> Iterator[ActivationBatch]:
        """Yield the activations of many texts as NumPy arrays, `batch_size` texts per forward pass.

        Args:
            texts: texts or token ids.
            capture: points, or patterns of them, that have one value per token ("blocks.*.resid_post").
            batch_size: how many texts to process, and to hold in memory, at a time.
            progress: called with (texts done, all texts).

        Raises:
            RequestError: a point is unknown or has no value per token, or a text is empty.
            CapacityError: a text does not fit the context.
        """
        return self._stream_activations([self.encode(text) for text in texts], capture, batch_size, progress)

    def save_activations(
        self,
        texts: Sequence[TextOrIds],
        folder: str | Path,
        *,
        capture: str | Sequence[str],
        batch_size: int = 16,
        file_format: FileFormat = "safetensors",
        progress: Progress | None = None,
    ) -> list[Path]:
        """Save the activations of many texts to files, a batch at a time; return the files.

        file_format: "safetensors" writes one file per batch; "npy" writes one memory-mapped array per point. Other
        arguments and errors: see `trace_many`.
        """
        if file_format not in get_args(FileFormat):
            raise RequestError(f"file_format must be safetensors or npy, got {file_format!r}", param="file_format")
        sequences = [self.encode(text) for text in texts]
        batches = self._stream_activations(sequences, capture, batch_size, progress)
        return save_activations(batches, [len(ids) for ids in sequences], folder, file_format)

    def _stream_activations(
        self, sequences: list[list[int]], capture: str | Sequence[str], batch_size: int, progress: Progress | None
    ) -> Iterator[ActivationBatch]:
        if self.kind not in ("decoder", "encoder"):
            raise RequestError("trace_many does not support encoder-decoders: trace each source and target separately")
        check_number("batch_size", batch_size, 1, 1 << 31)
        names = token_points(self.config, patterns(capture))
        logits = "final.logits" in names

        def forward(ids: Tensor, step: Step) -> None:
            hidden = self.model.hidden(ids, step) if self.kind == "decoder" else self.model(ids, step)
            if logits:
                self.model.logits(hidden, step)

        return stream_activations(self, sequences, names, forward, batch_size=batch_size, progress=progress)

    def load_trace(self, folder: str | Path) -> Trace:
        """Load a trace of this model that `Trace.save` saved.

        Raises:
            CheckpointError: the trace is incomplete, or belongs to another model.
        """
        return load_trace(self.trace_type, self, folder)

    def sweep(self, text: TextOrIds | Trace, **options: Any) -> Sweep:
        """Return a sweep of edits over a text, which runs during iteration. Options: see `inspect/sweep/sweep.py`."""
        return sweep(text if isinstance(text, Trace) else self.trace(text), **options)

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Save the model as a Hugging Face folder: configuration, weights, tokenizer."""

    @abstractmethod
    def save_gguf(self, path: str | Path, kind: GgufKind = "F16", *, progress: Progress | None = None) -> None:
        """Save the model and its tokenizer as one GGUF file; `kind` is the type of its matrices.

        Warns of the parts of the tokenizer that GGUF cannot store. progress: called with the number of weights
        stored so far, and of all weights.

        Raises:
            ConfigError, TokenizerError: GGUF cannot express the model or its tokenizer.
            CheckpointError: the file cannot be written, or its type cannot store the weights.
        """

    def __repr__(self) -> str:
        name = self.path or type(self.model).__name__
        return f"{type(self).__name__}({name}, {self.n_parameters / 1e6:.2f}M parameters, {self.tokenizer})"


def token_ids(value: Any, name: str = "text") -> list[int]:
    """Return a list, tensor or array of token ids as a list.

    Raises:
        RequestError: the value is not a sequence of token ids.
    """
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim != 1:
            raise RequestError(f"{name}: token ids must have one axis, got shape {list(value.shape)}", param=name)
        value = value.tolist()
    try:
        return [index(token) for token in value]
    except TypeError:
        raise RequestError(f"a {name} must be a text or token ids, got {value!r:.100}", param=name) from None


def patterns(capture: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or several patterns as a tuple."""
    return (capture,) if isinstance(capture, str) else tuple(capture)

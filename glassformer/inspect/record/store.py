"""Traces on disk: `trace.json` describes the trace and names the safetensors file with its tensors.

The tensor file is written first, under a name made from its contents; then trace.json, which names it, replaces the
older one. An interruption at any moment leaves either the older trace or the new one, complete.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from glassformer.atomic import write_text
from glassformer.config import as_dict
from glassformer.errors import CheckpointError, RequestError
from glassformer.formats.safetensors_file import save_tensors
from glassformer.inspect.capture.capture import required_points
from glassformer.inspect.capture.points import ENCODER, find, points, sizes
from glassformer.inspect.edits.apply import Edits, edited_points, trace_fields
from glassformer.inspect.edits.edit import Store, from_json
from glassformer.inspect.trace.recompute import CapturedValues
from glassformer.inspect.trace.recurrent import RecurrentTrace, SourceTokens
from glassformer.inspect.trace.seq2seq import Seq2seqTrace
from glassformer.inspect.trace.trace import Trace
from glassformer.nn.protocols import EncodedSource

FORMAT, ABOUT, LAST, EDIT = 1, "trace.json", "last_logits", "edit."
ANY_LENGTH = 1 << 31  # an edit may name positions that generation did not reach
SAMPLE = 1024  # numbers of each parameter in a fingerprint, in addition to the sum of all
T = TypeVar("T", bound=Trace)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def signature(model: Any) -> str:
    """Return a SHA-256 that identifies a model.

    It covers the configuration, and for each parameter the sum of its numbers as integers and a sample of them.
    """
    digest = hashlib.sha256(json.dumps(as_dict(model.config), sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten().view(INTEGERS[parameter.element_size()])
        some = flat[:: max(1, len(flat) // SAMPLE)].cpu().contiguous()
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype} {int(flat.sum(dtype=torch.int64))}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def save(t: Trace, folder: str | Path) -> None:
    """Save a trace in a folder. CheckpointError where the disk is full or the folder cannot be written."""
    folder = Path(folder)
    captured = t.captured.tensors | ({} if t.captured.last_logits is None else {LAST: t.captured.last_logits})
    if isinstance(t, Seq2seqTrace):
        captured |= {f"{ENCODER}{name}": tensor for name, tensor in t.source.captured.tensors.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in captured.items()}
    tensors |= {f"{EDIT}{edit.vector}": edit.tensor for edit in t.edits if edit.tensor is not None}
    tensors = {
        name: tensor.clone() for name, tensor in tensors.items()
    }  # safetensors rejects tensors that share memory
    about: dict[str, Any] = {
        "format": FORMAT, "kind": t.kind, "fingerprint": signature(t.model), "ids": t.ids, "n_prompt": t.n_prompt,
        "finish": t.finish, "seed": t.seed, "rereads": t.reprefills, "budget": t.budget,
        "edits": [edit.json for edit in t.edits],
    }  # fmt: skip
    if t.source is not None:
        about |= {"source": t.source_ids, "target": t.target}
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    about["tensors"] = f"trace-{digest.hexdigest()[:16]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be created: {error.strerror}") from error
    save_tensors(tensors, folder / about["tensors"])
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    for old in folder.glob("trace-*.safetensors"):
        if old.name != about["tensors"]:
            old.unlink(missing_ok=True)


def load(trace_type: type[T], lm: Any, folder: str | Path) -> T:
    """Load a trace of this model. CheckpointError where it is of another model, incomplete or damaged."""
    folder, about = Path(folder), {}
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        if about["format"] != FORMAT:
            raise CheckpointError(f"{folder / ABOUT} has format {about['format']}, and this version reads {FORMAT}")
        if about["fingerprint"] != signature(lm.model):
            raise CheckpointError(f"{folder}: this trace is of another model, or of other weights than this model's")
        if (kind := about.get("kind", "decoder")) != lm.kind:
            raise ValueError(f"the trace is of a model of kind {kind!r}, and this one is of kind {lm.kind!r}")
        found: dict[str, Tensor] = load_file(folder / about["tensors"])
        return _trace(trace_type, lm, about, found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no complete trace: {error}") from error
    except CheckpointError:
        raise
    except RequestError as error:  # from an edit
        raise CheckpointError(f"{folder / ABOUT}: {error}") from error
    except Exception as error:  # safetensors has an error type of its own
        raise CheckpointError(f"{folder / about.get('tensors', '')} is damaged: {error}") from error


def _trace(trace_type: type[T], lm: Any, about: dict[str, Any], found: dict[str, Tensor]) -> T:
    """Make the trace of a model from its description and its tensors. KeyError names what is missing."""
    store, device = Store(), next(lm.model.parameters()).device
    for name in [name for name in found if name.startswith(EDIT)]:
        store.put(found.pop(name))
    tensors = {name: tensor.to(device) for name, tensor in found.items()}
    source, edits = about.get("source", []), [from_json(one, store) for one in about["edits"]]
    editor = Edits(lm.config, edits, [about["n_prompt"]], ANY_LENGTH, len(source)) if edits else None
    rest = {name: about[name] for name in ("n_prompt", "finish", "seed", "budget")} | trace_fields(editor)
    rest["reprefills"] = about["rereads"]

    def captured(
        model: Any, ids: list[int], prefix: str, editor: Edits | None, encoded: EncodedSource | None = None
    ) -> CapturedValues:
        own = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        own = own if prefix else {name: tensor for name, tensor in own.items() if not name.startswith(ENCODER)}
        last, edited = own.pop(LAST, None), edited_points(editor)
        for name in required_points(model.config, edited) if trace_type.has_blocks else points(model.config):
            known = sizes(model.config, name) | {"T": len(ids), "S": len(source), "2": 2}
            shape = tuple(known[axis.removeprefix("#")] for axis in find(model.config, name).axes.split()[1:])
            if name not in own:
                raise KeyError(f"{prefix}{name}")
            if own[name].shape != shape:
                raise ValueError(f"{prefix}{name} must have the shape {list(shape)}, got {list(own[name].shape)}")
        return CapturedValues(model, torch.tensor(ids, device=device), own, editor, edited, last, encoded)

    ids = about["ids"]
    if issubclass(trace_type, RecurrentTrace):
        tokens = SourceTokens(lm, source)
        return trace_type(lm, captured(lm.model, ids, "", editor), tokens, about["target"], **rest)
    if issubclass(trace_type, Seq2seqTrace):
        inner = None if editor is None else editor.for_encoder()
        encoder = trace_type.source_type(lm, captured(lm.model.encoder, source, ENCODER, inner), **trace_fields(inner))
        values = captured(lm.model, ids, "", editor, encoder.encoded)
        return trace_type(lm, values, encoder, about["target"], **rest)
    return trace_type(lm, captured(lm.model, ids, "", editor), **rest)

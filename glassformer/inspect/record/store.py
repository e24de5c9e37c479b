"""Traces on disk: `trace.json` says what was traced, and names the safetensors file that has the numbers.

The file is written first, under a name made from what is in it; then trace.json, which names it, takes the place of an
older one. A kill at any moment leaves the older trace whole, or the new one.
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
from glassformer.inspect.capture.points import find, points, sizes
from glassformer.inspect.capture.reader import always
from glassformer.inspect.edits.apply import Edits, edited
from glassformer.inspect.edits.apply import about as about_edits
from glassformer.inspect.edits.edit import Store, from_json
from glassformer.inspect.trace.recompute import KeptValues
from glassformer.inspect.trace.seq2seq import SIDE, GeneratedTarget, RecurrentTrace, Seq2seqTrace, SourceTokens
from glassformer.inspect.trace.trace import Trace
from glassformer.nn.protocols import EncodedSource

FORMAT, ABOUT, LAST, EDIT = 1, "trace.json", "last_logits", "edit."
ENDLESS = 1 << 31  # a text may have been named further than it went
SAMPLE = 1024  # numbers of each parameter that are part of a fingerprint, beside the sum of all
T = TypeVar("T", bound=Trace)
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def signature(model: Any) -> str:
    """SHA-256 of what tells a model from another: its configuration, and of each parameter the sum of all its bits as
    whole numbers, and numbers from all over it.
    """
    digest = hashlib.sha256(json.dumps(as_dict(model.config), sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten().view(WHOLE[parameter.element_size()])
        some = flat[:: max(1, len(flat) // SAMPLE)].cpu().contiguous()
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype} {int(flat.sum(dtype=torch.int64))}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def save(t: Trace, folder: str | Path) -> None:
    """Write a trace's folder. CheckpointError where the disk is full or cannot be written."""
    folder, pair = Path(folder), t if isinstance(t, GeneratedTarget) else None
    kept = t.kept.tensors | ({} if t.kept.last_logits is None else {LAST: t.kept.last_logits})
    if isinstance(t, Seq2seqTrace):
        kept |= {f"{SIDE}{name}": tensor for name, tensor in t.source.kept.tensors.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    tensors |= {f"{EDIT}{edit.vector}": edit.tensor for edit in t.edits if edit.tensor is not None}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # one file has no two names for one place
    about: dict[str, Any] = {
        "format": FORMAT, "kind": t.kind, "fingerprint": signature(t.model), "ids": t.ids, "n_prompt": t.n_prompt,
        "finish": t.finish, "seed": t.seed, "rereads": t.rereads, "budget": t.budget,
        "edits": [edit.json for edit in t.edits],
    }  # fmt: skip
    if pair is not None:
        about |= {"source": pair.source.ids, "target": pair.target}
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    about["tensors"] = f"trace-{digest.hexdigest()[:16]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be made: {error.strerror}") from error
    save_tensors(tensors, folder / about["tensors"])
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    for old in folder.glob("trace-*.safetensors"):
        if old.name != about["tensors"]:
            old.unlink(missing_ok=True)


def load(trace_type: type[T], lm: Any, folder: str | Path) -> T:
    """A trace that was saved, of this very model. CheckpointError where it is of another, or not whole."""
    folder, about = Path(folder), {}
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        if about["format"] != FORMAT:
            raise CheckpointError(f"{folder / ABOUT} has format {about['format']}, and this version reads {FORMAT}")
        if about["fingerprint"] != signature(lm.model):
            raise CheckpointError(f"{folder}: this trace is of another model, or of other weights than this one has")
        if (kind := about.get("kind", "decoder")) != lm.kind:
            raise ValueError(f"it says of the kind {kind!r}, and this model's is {lm.kind!r}")
        found: dict[str, Tensor] = load_file(folder / about["tensors"])
        return _trace(trace_type, lm, about, found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no whole trace: {error}") from error
    except CheckpointError:
        raise
    except RequestError as error:  # of an edit
        raise CheckpointError(f"{folder / ABOUT}: {error}") from error
    except Exception as error:  # safetensors has an error type of its own
        raise CheckpointError(f"{folder / about.get('tensors', '')} is damaged: {error}") from error


def _trace(trace_type: type[T], lm: Any, about: dict[str, Any], found: dict[str, Tensor]) -> T:
    """The trace of a model that these numbers were kept of. KeyError names what is not there."""
    store, device = Store(), next(lm.model.parameters()).device
    for name in [name for name in found if name.startswith(EDIT)]:
        store.put(found.pop(name))
    tensors = {name: tensor.to(device) for name, tensor in found.items()}
    source, edits = about.get("source", []), [from_json(one, store) for one in about["edits"]]
    editor = Edits(lm.config, edits, [about["n_prompt"]], ENDLESS, len(source)) if edits else None
    rest = {name: about[name] for name in ("n_prompt", "finish", "seed", "rereads", "budget")} | about_edits(editor)

    def kept(
        model: Any, ids: list[int], prefix: str, editor: Edits | None, read: EncodedSource | None = None
    ) -> KeptValues:
        own = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        own = own if prefix else {name: tensor for name, tensor in own.items() if not name.startswith(SIDE)}
        last = own.pop(LAST, None)
        must = points(model.config) if lm.kind == "recurrent" else always(model.config, edited(editor))
        for name in must:
            known = sizes(model.config, name) | {"T": len(ids), "S": len(source), "2": 2}
            due = tuple(known[axis.removeprefix("#")] for axis in find(model.config, name).axes.split()[1:])
            if name not in own:
                raise KeyError(f"{prefix}{name}")
            if own[name].shape != due:
                raise ValueError(f"{prefix}{name} has the shape {list(own[name].shape)}, and {list(due)} is due")
        return KeptValues(model, torch.tensor(ids, device=device), own, editor, edited(editor), last, read)

    ids = about["ids"]
    if issubclass(trace_type, RecurrentTrace):
        return trace_type(lm, kept(lm.model, ids, "", editor), SourceTokens(lm, source), about["target"], **rest)
    if issubclass(trace_type, Seq2seqTrace):
        inner = None if editor is None else editor.inside(SIDE)
        encoded = trace_type.source_type(lm, kept(lm.model.encoder, source, SIDE, inner), **about_edits(inner))
        return trace_type(lm, kept(lm.model, ids, "", editor, encoded.read), encoded, about["target"], **rest)
    return trace_type(lm, kept(lm.model, ids, "", editor), **rest)

"""Edits: changes to values in a forward pass, as frozen data that compares by effect.

    ablate   set to 0                                 ablate("blocks.5.attn.z", head=3)
    scale    multiply                                 scale("blocks.2.mlp.out", 0.5, position=4)
    replace  set to a number or a vector              replace("blocks.1.attn.scores", 0.0, head=0, query=5, key=2)
    add      add a number or a vector                 add("blocks.8.resid_post", vector, scale=4.0, position=-1)
    patch    set to the value in another text         patch("blocks.8.resid_mid", from_trace=other, position=4)
    knockout hide a key from a query                  knockout("blocks.3.attn.scores", query=-1, key=2)

Positions, queries and keys count the tokens of the model's input, the token that begins a text included. -1 is every
token after which a token is generated: the last of the prompt, then each generated token. Several indices may be in any
order, each once; the rows of a vector are in the same order. An axis that is not named is selected completely. `row` is
the number of a continuation where several are generated at once. In a model with a source, the keys of
"blocks.i.cross...." and of "rnn...." are tokens of the source, and so are all positions of "encoder....".
An edit refers to a tensor by its SHA-256, so that the edit itself is JSON; a `Store` holds the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from glassformer.errors import CapacityError, RequestError
from glassformer.inspect.trace.trace import Trace
from glassformer.plain_numbers import plain_indices, plain_number

Indices = int | Sequence[int] | None
Op = Literal["ablate", "scale", "replace", "add", "patch", "knockout"]
TAKES = {  # arguments besides the selection: required, and optional
    "ablate": ((), ()),
    "scale": (("factor",), ()),
    "replace": ((), ("value", "vector")),
    "add": ((), ("value", "vector", "factor")),
    "patch": (("vector",), ("from_trace",)),
    "knockout": ((), ()),
}
WHERE = ("head", "position", "query", "key", "dim", "row")
NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MAX_NUMBER = torch.finfo(torch.float32).max
MAX_STORE_BYTES = 256 << 20


@dataclass(frozen=True)
class Edit:
    """One edit. The fields are those of its JSON form; `tensor` is the tensor that `vector` refers to."""

    op: Op
    point: str
    head: Indices = None
    position: Indices = None
    query: Indices = None
    key: Indices = None
    dim: Indices = None
    row: int | None = None
    factor: float | None = None
    value: float | None = None
    vector: str | None = None
    from_trace: str | None = field(default=None, compare=False)
    tensor: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        for name in (*WHERE, "factor", "value"):
            given = getattr(self, name)
            object.__setattr__(self, name, plain_indices(given) if name in WHERE else plain_number(given))
        _check({one.name: getattr(self, one.name) for one in fields(self)})
        if (self.vector is None) != (self.tensor is None):
            raise _wrong(f"vector {self.vector!r} refers to a tensor that is missing: put it into the store first")

    @property
    def json(self) -> dict[str, Any]:
        """The edit as JSON values, without fields that are None."""
        found = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and one.name != "tensor":
                found[one.name] = list(value) if isinstance(value, tuple) else _spelled(value)
        return found

    @property
    def hash(self) -> str:
        """SHA-256 of the edit's effect: the same in every process."""
        does = {name: value for name, value in self.json.items() if name != "from_trace"}
        return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()

    def first_position(self, n_prompt: int) -> int:
        """Return the first position whose values the edit may change, given the length of the prompt."""
        if self.point.startswith(("encoder.", "rnn.")) or ".cross." in self.point:
            return 0
        starts = [_first(indices, n_prompt) for indices in (self.position, self.query, self.key) if indices is not None]
        return max(starts, default=0)


def edits_key(edits: Sequence[Edit], position: int, n_prompt: int) -> str:
    """Return a hash of the edits that affect a position or an earlier one: a part of the position's cache key."""
    touching = [edit.hash for edit in edits if edit.first_position(n_prompt) <= position]
    return hashlib.sha256("\n".join(touching).encode()).hexdigest() if touching else ""


# ---- constructors


def ablate(point: str, **where: Any) -> Edit:
    """Set the selected values to 0. Ablate a head at attn.z: before W_o, where heads are separate."""
    return Edit("ablate", point, **_where(where))


def scale(point: str, factor: float, **where: Any) -> Edit:
    """Multiply the selected values by `factor`."""
    return Edit("scale", point, factor=factor, **_where(where))


def replace(point: str, value: float | Tensor | Sequence[float], **where: Any) -> Edit:
    """Set the selected values to one number, or to a vector with as many numbers as are selected."""
    return Edit("replace", point, **_number_or_vector(value), **_where(where))


def add(point: str, vector: float | Tensor | Sequence[float], *, scale: float | None = None, **where: Any) -> Edit:
    """Add `scale` times a number or a vector to the selected values."""
    return Edit("add", point, factor=scale, **_number_or_vector(vector), **_where(where))


def patch(point: str, from_trace: Trace, *, name: str | None = None, source_position: Any = None, **where: Any) -> Edit:
    """Set the selected values to those of another text, at the positions that both texts have.

    name: the id of `from_trace` in the edit's JSON. source_position: the positions in `from_trace` to copy from, one
    for each of `position`; by default the same ones.
    """
    where = {axis: plain_indices(indices) for axis, indices in _where(where).items()}
    sources = where
    if source_position is not None:
        sources = where | {"position": plain_indices(source_position)}
        if where.get("position") is None or len(as_list(where["position"])) != len(as_list(sources["position"])):
            raise _wrong(f"source_position needs as many positions in `position`, got {where.get('position')!r:.100}")
    values = _select(point, from_trace, sources)
    return Edit("patch", point, vector=sha256(values), tensor=values, from_trace=name, **where)


def knockout(point: str, **where: Any) -> Edit:
    """Hide keys from queries: their scores become -inf, and softmax gives their weight to the other keys."""
    return Edit("knockout", point, **_where(where))


def from_json(data: Any, store: Store | None = None, trace_of: Callable[[str], Trace] | None = None) -> Edit:
    """Return an edit from its JSON form. RequestError for an invalid key or value, or a vector not in `store`.

    trace_of: returns the trace of an id, for a patch `from_trace`.
    """
    if not isinstance(data, Mapping):
        raise _wrong(f"an edit is an object with op and point, got {data!r:.100}")
    known = [one.name for one in fields(Edit) if one.name != "tensor"]
    for key in data:
        if key not in known:
            raise _wrong(f"unknown key {key!r}; known: {', '.join(known)}")
    given = {key: value for key, value in data.items() if value is not None}
    for key in ("op", "point"):
        if key not in given:
            raise _wrong(f"{key} is missing")
    for key in ("factor", "value"):
        if isinstance(given.get(key), str):
            if given[key] not in NUMBERS:
                raise _wrong(f"{key} must be a number, got {given[key]!r}")
            given[key] = NUMBERS[given[key]]
    vector, source = given.get("vector"), given.get("from_trace")
    if vector is not None:
        _check(given)
        return Edit(**given, tensor=(store or Store()).get(vector))
    if given["op"] == "patch" and source is not None:
        _check({**given, "vector": ""})
        if trace_of is None:
            raise _wrong(f"there is no trace {source!r}")
        where = {name: given[name] for name in WHERE if name in given}
        for name in given.keys() - {"op", "point", "from_trace", *where}:
            raise _wrong(f"{name} has no effect on patch")
        return patch(given["point"], trace_of(source), name=source, **where)
    _check(given)
    return Edit(**given)


# ---- tensors by hash


class Store:
    """Tensors by their SHA-256, at most `limit` bytes of them: the least recently used are evicted. Thread-safe."""

    def __init__(self, limit: int = MAX_STORE_BYTES):
        self.limit, self.tensors = limit, OrderedDict[str, Tensor]()
        self._lock = threading.Lock()

    def put(self, tensor: Tensor) -> str:
        """Store a tensor as float32 and return its SHA-256. CapacityError if it is larger than the store."""
        tensor = _plain(tensor)
        name = sha256(tensor)
        if tensor.nbytes > self.limit:
            raise CapacityError(f"a tensor of {tensor.nbytes:,} bytes does not fit: at most {self.limit:,} are stored")
        with self._lock:
            self.tensors[name] = tensor
            self.tensors.move_to_end(name)
            stored = sum(one.nbytes for one in self.tensors.values())
            while stored > self.limit:
                stored -= self.tensors.popitem(last=False)[1].nbytes
        return name

    def get(self, name: Any) -> Tensor:
        """Return a tensor by its SHA-256. RequestError where the store does not have it."""
        with self._lock:
            if not isinstance(name, str) or name not in self.tensors:
                raise _wrong(f"no tensor has the SHA-256 {name!r}: store it first, or again if it was evicted")
            self.tensors.move_to_end(name)
            return self.tensors[name]


def sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's shape and its numbers as float32."""
    tensor = _plain(tensor)
    return hashlib.sha256(f"{list(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


# ---- validation


def _wrong(message: str) -> RequestError:
    return RequestError(f"edit: {message}", param="edit")


def _where(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in WHERE:
            raise _wrong(f"unknown axis {name!r}; known: {', '.join(WHERE)}")
    return given


def _check(given: Mapping[str, Any]) -> None:
    """Raise RequestError unless these fields, None where absent, make an edit."""
    op, point = given.get("op"), given.get("point")
    if op not in TAKES:
        raise _wrong(f"op must be one of {', '.join(TAKES)}, got {op!r}")
    if not isinstance(point, str):
        raise _wrong(f"point must be the name of a point, such as 'blocks.0.attn.z', got {point!r}")
    for name in WHERE:
        _check_indices(name, given.get(name))
    for name in ("factor", "value"):
        number = given.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise _wrong(f"{name} must be a number, got {number!r}")
        if number is not None and MAX_NUMBER < abs(number) < math.inf:
            raise _wrong(f"{name} must be at most {MAX_NUMBER:g}, the largest float32, got {number!r:.40}")
    must, may = TAKES[op]
    there = {name for name in ("factor", "value", "vector", "from_trace") if given.get(name) is not None}
    for name in sorted(there - {*must, *may}):
        raise _wrong(f"{name} has no effect on {op}")
    for name in must:
        if name not in there:
            raise _wrong(f"{op} needs {'a trace to copy from (from_trace)' if name == 'vector' else name}")
    if op in ("replace", "add") and len(there & {"value", "vector"}) != 1:
        raise _wrong(f"{op} needs either a value, one number, or a vector")


def _check_indices(name: str, given: Any) -> None:
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return
    some = given if isinstance(given, list | tuple) else ()
    if name == "row" or not some or any(isinstance(i, bool) or not isinstance(i, int) for i in some):
        kind = "a whole number" if name == "row" else "a whole number or a list of them"
        raise _wrong(f"{name} must be {kind}, got {given!r:.100}")
    if len(set(some)) < len(some):
        twice = next(i for i in some if some.count(i) > 1)
        raise _wrong(f"{name} names {twice} twice: name each index once")


def _number_or_vector(given: Any) -> dict[str, Any]:
    given = plain_number(given)
    if isinstance(given, int | float) and not isinstance(given, bool):
        return {"value": given}
    try:
        tensor = _plain(given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float32))
    except (TypeError, ValueError, RuntimeError):
        raise _wrong(f"a vector is a tensor or numbers, got {given!r:.100}") from None
    return {"vector": sha256(tensor), "tensor": tensor}


def _select(point: str, trace: Trace, where: Mapping[str, Any]) -> Tensor:
    """Return the selected part of a point in another text. Axes with one selected index have length 1."""
    if not isinstance(trace, Trace):
        raise _wrong(f"from_trace must be a trace, which lm.trace returns, got {trace!r:.100}")
    axes = trace.axes(point)
    some = {name: None if where.get(name) is None else as_list(where[name]) for name in WHERE}
    if is_product(point):
        tensor = trace.rows(point, some["head"], some["query"]).tensor
        rest = {len(axes) - 1: some["key"]}
    else:
        tensor = trace.at(point, some["position"] if axes[0] == "T" else None).tensor
        rest = {0: None if axes[0] == "T" else some["position"], axes.index(axes[-1]): some["dim"]}
        rest |= {1: some["head"]} if len(axes) == 3 else {}
    for axis, indices in rest.items():
        if indices is not None:
            size = tensor.shape[axis]
            if not all(0 <= i < size for i in indices):
                raise _wrong(f"{point}: an index of {indices} is out of range for an axis of length {size}")
            tensor = tensor.index_select(axis, torch.tensor(indices, device=tensor.device))
    return _plain(tensor)


def is_product(point: str) -> bool:
    """Return whether a point has queries and keys as axes."""
    return point.endswith((".scores", ".probs"))


def as_list(indices: int | Sequence[int]) -> list[int]:
    """Return one index or several as a list."""
    return [indices] if isinstance(indices, int) else list(indices)


def _first(indices: Indices, n_prompt: int) -> int:
    return min(n_prompt - 1 if i == -1 else i for i in as_list(0 if indices is None else indices))


def _spelled(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value

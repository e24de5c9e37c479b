"""Edits: changes to what flows through a model, as frozen data that is told apart by what it does.

    ablate   what is named becomes 0                  ablate("blocks.5.attn.z", head=3)
    scale    it is multiplied                         scale("blocks.2.mlp.out", 0.5, position=4)
    replace  it becomes a number or a vector          replace("blocks.1.attn.scores", 0.0, head=0, query=5, key=2)
    add      something is added to it                 add("blocks.8.resid_post", vector, scale=4.0, position=-1)
    patch    it becomes what it was in another text   patch("blocks.8.resid_mid", from_trace=other, position=4)
    knockout a query no longer sees a key             knockout("blocks.3.attn.scores", query=-1, key=2)

Positions, queries and keys count the tokens that the model sees, the one that begins a text included. -1 is every token
from which a new one is written: the last of the prompt, then each one written. What is not named is all of its axis.
`row` is the number of a continuation where several are written at once. Of a model that reads a source, keys of
"blocks.i.cross...." and of "rnn...." are the source's tokens, and so are all positions of "encoder....".
A tensor in an edit is named by its SHA-256, so that an edit is JSON: a `Store` has them by that name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from glassformer.errors import CapacityError, RequestError
from glassformer.inspect.trace.trace import Places, Trace

Op = Literal["ablate", "scale", "replace", "add", "patch", "knockout"]
TAKES = {  # beside the place: what must be given, and what may be
    "ablate": ((), ()),
    "scale": (("factor",), ()),
    "replace": ((), ("value", "vector")),
    "add": ((), ("value", "vector", "factor")),
    "patch": (("vector",), ("from_trace",)),
    "knockout": ((), ()),
}
WHERE = ("head", "position", "query", "key", "dim", "row")
NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
STORE = 256 << 20


@dataclass(frozen=True)
class Edit:
    """One change. Fields as in its JSON form; `tensor` is what `vector` names."""

    op: Op
    point: str
    head: Places = None
    position: Places = None
    query: Places = None
    key: Places = None
    dim: Places = None
    row: int | None = None
    factor: float | None = None
    value: float | None = None
    vector: str | None = None
    from_trace: str | None = field(default=None, compare=False)
    tensor: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        _check({one.name: getattr(self, one.name) for one in fields(self)})
        for name in WHERE:
            places = getattr(self, name)
            object.__setattr__(self, name, places if places is None or isinstance(places, int) else tuple(places))
        if (self.vector is None) != (self.tensor is None):
            raise _wrong(f"vector {self.vector!r} names a tensor that is not at hand: put it into the store first")

    @property
    def json(self) -> dict[str, Any]:
        """The edit as JSON values; what is not given is left out."""
        found = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and one.name != "tensor":
                found[one.name] = list(value) if isinstance(value, tuple) else _spelled(value)
        return found

    @property
    def hash(self) -> str:
        """SHA-256 of what it does: the same in every process."""
        does = {name: value for name, value in self.json.items() if name != "from_trace"}
        return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()

    def first(self, n_prompt: int) -> int:
        """The first position whose numbers it may change, after a prompt of so many tokens."""
        if self.point.startswith(("encoder.", "rnn.")) or ".cross." in self.point:
            return 0
        starts = [_first(places, n_prompt) for places in (self.position, self.query, self.key) if places is not None]
        return max(starts, default=0)


def edits_key(edits: Sequence[Edit], position: int, n_prompt: int) -> str:
    """Of the edits that touch a position or one before it: part of the name under which its keys may be kept."""
    touching = [edit.hash for edit in edits if edit.first(n_prompt) <= position]
    return hashlib.sha256("\n".join(touching).encode()).hexdigest() if touching else ""


# ---- making them


def ablate(point: str, **where: Any) -> Edit:
    """What is named becomes 0: a head on attn.z, before W_o, where heads are still apart."""
    return Edit("ablate", point, **_where(where))


def scale(point: str, factor: float, **where: Any) -> Edit:
    """What is named is multiplied by `factor`."""
    return Edit("scale", point, factor=factor, **_where(where))


def replace(point: str, value: float | Tensor | Sequence[float], **where: Any) -> Edit:
    """What is named becomes one number, or a vector of as many as are named."""
    return Edit("replace", point, **_number_or_vector(value), **_where(where))


def add(point: str, vector: float | Tensor | Sequence[float], *, scale: float | None = None, **where: Any) -> Edit:
    """`scale` times a number or a vector is added to what is named."""
    return Edit("add", point, factor=scale, **_number_or_vector(vector), **_where(where))


def patch(point: str, from_trace: Trace, *, name: str | None = None, **where: Any) -> Edit:
    """What is named becomes what it was in another text, at the same positions: those that it has.

    name: under which `from_trace` is told in the edit's JSON.
    """
    where = _where(where)
    taken = _taken(point, from_trace, where)
    return Edit("patch", point, vector=sha256(taken), tensor=taken, from_trace=name, **where)


def knockout(point: str, **where: Any) -> Edit:
    """The queries named no longer see the keys named: their scores become -inf, and the others share what they had."""
    return Edit("knockout", point, **_where(where))


def from_json(data: Any, store: Store | None = None, trace_of: Callable[[str], Trace] | None = None) -> Edit:
    """An edit from its JSON form. RequestError for a key or a value that it cannot have, or a vector not in `store`.

    trace_of: the trace of a name, for a patch `from_trace`.
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
            raise _wrong(f"there is no trace {source!r} here")
        where = {name: given[name] for name in WHERE if name in given}
        for name in given.keys() - {"op", "point", "from_trace", *where}:
            raise _wrong(f"{name} has no effect on patch")
        return patch(given["point"], trace_of(source), name=source, **where)
    _check(given)
    return Edit(**given)


# ---- tensors by name


class Store:
    """Tensors by their SHA-256, at most so many bytes of them."""

    def __init__(self, most: int = STORE):
        self.most, self.tensors = most, dict[str, Tensor]()

    def put(self, tensor: Tensor) -> str:
        """Keep a tensor, as float32; returns its name. CapacityError where there is no room."""
        tensor = _plain(tensor)
        name = sha256(tensor)
        if name not in self.tensors:
            held = sum(one.nbytes for one in self.tensors.values())
            if held + tensor.nbytes > self.most:
                raise CapacityError(f"a tensor of {tensor.nbytes} bytes does not fit: {held} of {self.most} are taken")
            self.tensors[name] = tensor
        return name

    def get(self, name: Any) -> Tensor:
        """The tensor of this name; RequestError where there is none."""
        if not isinstance(name, str) or name not in self.tensors:
            raise _wrong(f"no tensor has the SHA-256 {name!r}: put it into the store first")
        return self.tensors[name]


def sha256(tensor: Tensor) -> str:
    """Of a tensor's shape and its numbers as float32."""
    tensor = _plain(tensor)
    return hashlib.sha256(f"{list(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


# ---- what is given


def _wrong(message: str) -> RequestError:
    return RequestError(f"edit: {message}", param="edit")


def _where(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in WHERE:
            raise _wrong(f"unknown place {name!r}; known: {', '.join(WHERE)}")
    return given


def _check(given: Mapping[str, Any]) -> None:
    """RequestError unless these fields, None where not given, make an edit."""
    op, point = given.get("op"), given.get("point")
    if op not in TAKES:
        raise _wrong(f"op must be one of {', '.join(TAKES)}, got {op!r}")
    if not isinstance(point, str):
        raise _wrong(f"point must be the name of one, such as 'blocks.0.attn.z', got {point!r}")
    for name in WHERE:
        _check_places(name, given.get(name))
    for name in ("factor", "value"):
        number = given.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise _wrong(f"{name} must be a number, got {number!r}")
    must, may = TAKES[op]
    there = {name for name in ("factor", "value", "vector", "from_trace") if given.get(name) is not None}
    for name in sorted(there - {*must, *may}):
        raise _wrong(f"{name} has no effect on {op}")
    for name in must:
        if name not in there:
            raise _wrong(f"{op} needs {'a trace to take from (from_trace)' if name == 'vector' else name}")
    if op in ("replace", "add") and len(there & {"value", "vector"}) != 1:
        raise _wrong(f"{op} needs either a value, one number, or a vector")


def _check_places(name: str, given: Any) -> None:
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return
    some = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if name == "row" or not some or any(isinstance(i, bool) or not isinstance(i, int) for i in some):
        kind = "a whole number" if name == "row" else "a whole number, or some"
        raise _wrong(f"{name} must be {kind}, got {given!r:.100}")


def _number_or_vector(given: Any) -> dict[str, Any]:
    if isinstance(given, int | float) and not isinstance(given, bool):
        return {"value": given}
    try:
        tensor = _plain(given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float32))
    except (TypeError, ValueError, RuntimeError):
        raise _wrong(f"a vector is a tensor or numbers, got {given!r:.100}") from None
    return {"vector": sha256(tensor), "tensor": tensor}


def _taken(point: str, trace: Trace, where: Mapping[str, Any]) -> Tensor:
    """The named part of another text's point: its axes in the point's own order, 1 long where one place is named."""
    if not isinstance(trace, Trace):
        raise _wrong(f"from_trace must be a trace, as lm.trace returns it, got {trace!r:.100}")
    axes = trace.axes(point)
    some = {name: None if where.get(name) is None else listed(where[name]) for name in WHERE}
    if of_product(point):
        tensor = trace.rows(point, some["head"], some["query"]).tensor
        rest = {len(axes) - 1: some["key"]}
    else:
        tensor = trace.at(point, some["position"] if axes[0] == "T" else None).tensor
        rest = {0: None if axes[0] == "T" else some["position"], axes.index(axes[-1]): some["dim"]}
        rest |= {1: some["head"]} if len(axes) == 3 else {}
    for axis, places in rest.items():
        if places is not None:
            size = tensor.shape[axis]
            if not all(0 <= i < size for i in places):
                raise _wrong(f"{point} has no such place: {places} of {size}")
            tensor = tensor.index_select(axis, torch.tensor(places, device=tensor.device))
    return _plain(tensor)


def of_product(point: str) -> bool:
    """Whether a point has a query and a key."""
    return point.endswith((".scores", ".probs"))


def listed(places: int | Sequence[int]) -> list[int]:
    """One place or several, as several."""
    return [places] if isinstance(places, int) else list(places)


def _first(places: Places, n_prompt: int) -> int:
    return min(n_prompt - 1 if i == -1 else i for i in listed(0 if places is None else places))


def _spelled(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value

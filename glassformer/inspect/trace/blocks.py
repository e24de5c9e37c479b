"""Traces of models made of Transformer blocks: values that were not captured are recomputed block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.capture.derive import heads
from glassformer.inspect.capture.points import layer_of, sizes
from glassformer.inspect.trace.recompute import (
    ATTENDED,
    HIDDEN,
    Found,
    attend,
    block_at_token,
    block_points,
    final_norm,
    head,
    outer_points,
    run_block,
)
from glassformer.inspect.trace.trace import CAPTURED, Indices, Trace, is_one
from glassformer.inspect.trace.value import Value
from glassformer.kernels.packed_linear import rounding_of
from glassformer.nn.attention import Attention
from glassformer.nn.latent import LatentAttention

SUMMED = "max |sum of heads + bias - out|"


class BlockTrace(Trace):
    """The trace of a decoder, and the base of other traces of blocks."""

    kind = "decoder"

    @property
    def default_query(self) -> int:
        return self.n_prompt - 1

    def attention(self, layer: str) -> Attention | LatentAttention:
        return self.model.get_submodule(layer)

    def visible(self, layer: str, query: Indices = None) -> Tensor:
        at = self.indices("query", query)
        seen = self.captured.step(at, None, None).view(self.attention(layer).spec).visible()[0]
        return seen[0] if is_one(query) else seen

    def __getitem__(self, name: str) -> Value:
        self.point(name)
        if self.captured.get(name) is not None:
            return self.at(name)
        return self._value(name, self.cached(name, lambda: _found(self.at(name))))

    def values(self, names: Sequence[str], positions: Indices = None) -> dict[str, Value]:
        at = self.indices("position", positions)
        found: dict[str, Value] = {}
        missing: dict[int | None, list[str]] = {}
        for name in names:
            axes = self.axes(name)
            tensor = self.captured.get(name, at if axes[0] == "T" else None)
            if tensor is not None:
                found[name] = Value(name, tensor, axes, 0.0, CAPTURED)
            elif name.endswith((".scores", ".probs")):
                found[name] = self._attended(name, None, at)
            else:
                self.check_budget(name, len(self) if at is None else len(at))
                missing.setdefault(layer_of(name), []).append(name)
        for i, some in missing.items():
            live = [need for name in some for need in self._needs(name) if self.captured.get(need) is None]
            recomputed = outer_points(self.captured, live, at) if i is None else self._in_block(i, live, at)
            for name in some:
                derive = name.endswith(".heads") and name not in recomputed
                found[name] = self._heads(name, recomputed, at) if derive else self._value(name, recomputed)
        if is_one(positions):
            return {name: found[name].without("T") if "T" in found[name].axes else found[name] for name in names}
        return {name: found[name] for name in names}

    def rows(self, name: str, head: Indices = None, query: Indices = None) -> Value:
        if not name.endswith((".scores", ".probs")):
            raise RequestError(f"rows returns scores and probs, not {name!r}: use at(name, positions)", param="name")
        self.point(name)
        n_heads = sizes(self.config, name)["H"]
        some, at = self.indices("head", head, n_heads), self.indices("query", query)
        value = self._attended(name, None if some is None else some.tolist(), at)
        value = value.without("T") if is_one(query) else value
        return value.without("H") if is_one(head) else value

    def logits(self, positions: Tensor) -> Float[Tensor, "N V"]:
        last = self.captured.require(f"blocks.{self.config.n_layers - 1}.resid_post", positions)
        return head(self.captured, final_norm(self.captured, last, positions), positions)

    # ---- recomputation

    def _in_block(self, i: int, live: list[str], at: Tensor | None) -> Found:
        """Live points of a block. For a single token all of them are computed at once and cached."""
        if at is not None and len(at) == 1:
            found = self._token(i, at)
            if all(name in found for name in live):
                return found
        return block_points(self.captured, i, live, at)

    def _token(self, i: int, at: Tensor) -> Found:
        return self.cached((i, int(at)), lambda: block_at_token(self.captured, i, at))

    def _attended(self, name: str, some: list[int] | None, at: Tensor | None) -> Value:
        layer, end = name.rsplit(".", 1)
        n_heads = sizes(self.config, name)["H"] if some is None else len(some)
        self.check_budget(name, len(self) if at is None else len(at), n_heads)
        if at is None or len(at) > 1:
            values, error = attend(self.captured, layer, [end], some, at)
            return Value(name, values[end], self.axes(name), error, ATTENDED)
        key = (layer, None if some is None else tuple(some), int(at))
        return self._value(name, self.cached(key, lambda: self._query(layer, some, at)))

    def _query(self, layer: str, some: list[int] | None, at: Tensor) -> Found:
        """Scores and probabilities of one query."""
        i = layer_of(layer)
        assert i is not None
        values, error = attend(self.captured, layer, list(HIDDEN), some, at, self._token(i, at))
        return {f"{layer}.{end}": (value, error, ATTENDED) for end, value in values.items()}

    def _needs(self, name: str) -> list[str]:
        layer = name.removesuffix(".heads")
        edited = self.captured.editor is not None and self.captured.editor.wants(name)
        return [name] if layer == name or edited else [f"{layer}.z", f"{layer}.out"]

    def _heads(self, name: str, recomputed: Found, at: Tensor | None) -> Value:
        layer, editor = name.removesuffix(".heads"), self.captured.editor
        z, out = (
            recomputed[need][0] if need in recomputed else self.captured.require(need, at) for need in self._needs(name)
        )
        with torch.no_grad():
            if editor is not None and editor.wants(f"{layer}.out"):  # edited after the heads were summed
                i, end = layer_of(name), f"{layer}.out"
                assert i is not None
                out = run_block(self.captured, i, [end], at, end, before_edit=end)[end]
            o = self.attention(layer).o
            parts, error = heads(o, z[None], out[None])
        return Value(name, parts[0], self.axes(name), error, SUMMED + rounding_of(o))

    def _value(self, name: str, found: Found) -> Value:
        tensor, error, identity = found[name]
        return Value(name, tensor, self.axes(name), error, identity)


def _found(value: Value) -> Found:
    return {value.name: (value.tensor, value.error, value.identity)}

"""What has views, has them as methods: `t.cell(layer=5, head=3, query=7, key=2)`, `lm.embedding(token=17)`."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

T = TypeVar("T")

Kind = Literal["decoder", "encoder-decoder", "recurrent", "encoder"]


class Viewed:
    """`of` says whose views: see `views/registry.py`, which lists them all. `kind`: of which model, on which it depends
    what is served: see `views/refusals.py`.
    """

    of: ClassVar[str]
    kind: Kind

    def __getattr__(self, name: str) -> Any:
        view = None if name.startswith("_") else _views().get(name)
        if view is None or view.of != self.of:
            raise AttributeError(f"{type(self).__name__} has no {name!r}", name=name, obj=self)
        return partial(view.function, self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for name, view in _views().items() if view.of == self.of)]


def last(rows: Generator[Any, None, T]) -> T:
    """What a view comes to that is computed row by row."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            return end.value


def _views() -> dict[str, Any]:
    from glassformer.inspect.views.registry import VIEWS  # whose functions are about what has them

    return VIEWS

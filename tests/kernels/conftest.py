"""The native kernels at every level of this CPU. NATIVE_LIBRARY: another build of them, as `make sanitize` makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glassformer.kernels.native import library as native

if path := os.environ.get("NATIVE_LIBRARY"):
    native.LIBRARY = Path(path)
LIBRARY = native.load_library()
NUMBERS = {} if LIBRARY is None else native.usable_levels(LIBRARY)


@pytest.fixture
def levels() -> Iterator[list[Callable[[], None]]]:
    """Functions that each select one level for the rest of the test, in ascending order. Skips without a library."""
    if LIBRARY is None:
        pytest.skip(native.choose_library().because)
    yield [lambda number=number: LIBRARY.gf_set_level(number) for number in NUMBERS.values()]
    LIBRARY.gf_set_level(NUMBERS[native.choose_library().value.removeprefix("native ")])


@pytest.fixture(params=NUMBERS or ["no level"])
def isa(request: pytest.FixtureRequest, levels: list[Callable[[], None]]) -> str:
    """Run a test with the native kernels of each level; the value is its name. Skips without a library."""
    levels[list(NUMBERS).index(request.param)]()
    return request.param

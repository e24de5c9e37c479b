"""Fixtures of the native kernels: every level of this CPU. The library must be built: `make setup` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from glassformer.kernels.native import library


def native_levels() -> dict[str, int]:
    loaded = library.load_library()
    return {} if loaded is None else library.usable_levels(loaded)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", native_levels() or ["missing"], indirect=True)


@pytest.fixture
def levels() -> Iterator[list[Callable[[], None]]]:
    """Functions that each select one level for the rest of the test, in ascending order."""
    loaded = library.load_library()
    assert loaded is not None, library.choose_library().because
    numbers = library.usable_levels(loaded)
    yield [lambda number=number: loaded.gf_set_level(number) for number in numbers.values()]
    loaded.gf_set_level(list(numbers.values())[-1])


@pytest.fixture
def isa(request: pytest.FixtureRequest, levels: list[Callable[[], None]]) -> str:
    """Run the test at one level; its name."""
    levels[list(native_levels()).index(request.param)]()
    return request.param

"""Accept the numbers and index arrays of NumPy and torch wherever Python's own are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def plain_number(value: Any) -> Any:
    """Return a NumPy or torch number as a Python number; other values unchanged."""
    return value.tolist() if getattr(value, "ndim", None) == 0 and hasattr(value, "tolist") else value


def plain_indices(value: Any) -> Any:
    """Return several indices (a list, a range, an array or tensor with one axis) as a tuple; others as `plain_number`.

    The elements are not checked.
    """
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        return tuple(value.tolist())
    if isinstance(value, list | tuple | range):
        return tuple(map(plain_number, value))
    return plain_number(value)


def make_fields_plain(options: Any) -> None:
    """Replace the NumPy and torch numbers in the fields of a frozen dataclass, and in its mappings."""
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Mapping):
            value = {plain_number(key): plain_number(number) for key, number in value.items()}
        object.__setattr__(options, field.name, plain_number(value))

"""Compare JSON values from two processes: floats may differ by rounding, all else is equal."""

import math


def assert_json_close(found, expected, *, rel=1e-5, abs=1e-5, path="$") -> None:
    """Assert that two JSON values are equal, floats to a tolerance. CPU kernels differ in the last bits of a sum."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_json_close(found[key], expected[key], rel=rel, abs=abs, path=f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_json_close(a, b, rel=rel, abs=abs, path=f"{path}[{i}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=rel, abs_tol=abs), f"{path}: {found} is not {expected}"
    else:
        assert found == expected, path

"""The levels of the native kernels that this CPU has, for tests that compare them."""

import pytest
import torch

from glassformer.kernels.native.library import choose_library, load_library, usable_levels


def at_each_level(compute):
    """Return the results of `compute` at each level, on one and on two threads. Skips without a library."""
    library, threads = load_library(), torch.get_num_threads()
    if library is None:
        pytest.skip(choose_library().because)
    levels, results = usable_levels(library), []
    try:
        for level in levels.values():
            library.gf_set_level(level)
            for n in (1, 2):
                torch.set_num_threads(n)
                results.append(compute())
    finally:
        torch.set_num_threads(threads)
        library.gf_set_level(list(levels.values())[-1])
    return results


def same_bits(results):
    """Return the first result. Fails if another differs in a bit (of a number, or in where there is NaN)."""
    first, *others = results
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)
    return first

"""Load the native kernels: the library that native_build.py compiles, at the highest level that this CPU has.

A level is an instruction set that all kernels are compiled for; `scalar` is plain C. `GLASSFORMER_ISA` lowers the
level, for tests and comparisons: scalar, avx2, or none, which disables the library. Without it PyTorch computes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

import torch

from glassformer.errors import ConfigError
from glassformer.kernels.cpu import cpu_features
from glassformer.kernels.placement import Choice

LIBRARY = Path(__file__).parent / "lib" / ("kernels.dylib" if sys.platform == "darwin" else "kernels.so")
ABI = 3  # GF_ABI in src/op.h
FEATURES = {"scalar": frozenset(), "avx2": frozenset({"avx2", "fma", "f16c"})}  # of the CPU, for each level, ascending
OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


def load_library() -> ctypes.CDLL | None:
    """Return the native kernels, or None where PyTorch computes. Raises ConfigError for a wrong GLASSFORMER_ISA."""
    return _load()[0]


def choose_library() -> Choice:
    """Return which native kernels run, and why. Raises ConfigError for a wrong GLASSFORMER_ISA."""
    return _load()[1]


def is_fast() -> bool:
    """Whether the native kernels are faster than PyTorch: at a level with vectors, or at one that was requested."""
    value = choose_library().value
    return value != "torch" and (value != "native scalar" or requested_level() == "scalar")


def usable_levels(library: ctypes.CDLL) -> dict[str, int]:
    """Return the levels of a library that this CPU has, in ascending order, with the number that selects each."""
    names = [library.gf_level_name(i).decode() for i in range(library.gf_levels())]
    return {name: i for i, name in enumerate(names) if FEATURES[name] <= cpu_features()}


@cache
def _load() -> tuple[ctypes.CDLL | None, Choice]:
    wanted = requested_level()
    if wanted == "none":
        return None, Choice("kernels", "torch", "GLASSFORMER_ISA is none")
    try:
        library = open_library(LIBRARY)
    except (OSError, AttributeError) as error:  # AttributeError: the file is another library
        return None, Choice("kernels", "torch", f"the native kernels cannot be used: {error}")
    levels = usable_levels(library)
    if wanted is not None and wanted not in levels:
        raise ConfigError(f"GLASSFORMER_ISA is {wanted!r}; the native kernels here have {', '.join(levels)} and none")
    level = wanted or list(levels)[-1]
    library.gf_set_level(levels[level])
    because = "it is the highest level of this CPU" if wanted is None else f"GLASSFORMER_ISA is {wanted}"
    threads = "PyTorch's threads" if share_threads(library) else "one thread, because PyTorch has no OpenMP"
    return library, Choice("kernels", f"native {level}", f"{because}; they run on {threads}")


def requested_level() -> str | None:
    """Return the value of GLASSFORMER_ISA. Raises ConfigError if it is unknown, or higher than this CPU."""
    wanted = os.environ.get("GLASSFORMER_ISA") or None
    if wanted is None or wanted == "none":
        return wanted
    if wanted not in FEATURES:
        raise ConfigError(f"GLASSFORMER_ISA must be {', '.join(FEATURES)} or none, got {wanted!r}")
    if missing := FEATURES[wanted] - cpu_features():
        raise ConfigError(f"GLASSFORMER_ISA is {wanted!r}, and this CPU has no {', '.join(sorted(missing))}: unset it")
    return wanted


def open_library(path: Path) -> ctypes.CDLL:
    """Open a library and declare its functions.

    Raises OSError if it is absent, damaged or of another version, and AttributeError if it lacks a function.
    """
    if not path.exists():
        raise OSError("they are not built, run `make setup` with a C compiler")
    library = ctypes.CDLL(str(path))
    abi = library.gf_abi()
    if abi != ABI:
        raise OSError(f"{path} has version {abi}, and this package needs {ABI}: run `make setup`")
    library.gf_level_name.argtypes, library.gf_level_name.restype = (ctypes.c_int,), ctypes.c_char_p
    library.gf_set_level.argtypes, library.gf_set_level.restype = (ctypes.c_int,), None
    library.gf_counters.argtypes, library.gf_counters.restype = (), ctypes.POINTER(ctypes.c_int64)
    library.gf_set_parallel.argtypes, library.gf_set_parallel.restype = (ctypes.c_void_p,) * 3, None
    return library


def share_threads(library: ctypes.CDLL) -> bool:
    """Let a library run on the threads of the OpenMP runtime that PyTorch uses; return whether there is one.

    Two pools would compete: the workers of OpenMP spin for a while after each parallel region. A forked process has no
    workers, and OpenMP waits for them forever: there the library runs on one thread.
    """
    runtime = ctypes.CDLL(torch._C.__file__)  # a symbol is searched in all libraries that it links
    try:
        functions = [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in OPENMP]
    except AttributeError:
        return False
    library.gf_set_parallel(*functions)
    os.register_at_fork(after_in_child=lambda: library.gf_set_parallel(None, None, None))
    return True

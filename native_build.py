"""Build the native kernels: compile the C sources into a shared library if they have changed.

    python native_build.py             build the library; `make native` and hatchling do the same
    python native_build.py sanitize    build it with AddressSanitizer and UBSan, and run the kernel tests on that build
Uses the compiler CC, or cc, gcc or clang from the PATH, or the package ziglang. Without a compiler the package is
installed without the library and computes with PyTorch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent
NATIVE = ROOT / "glassformer" / "kernels" / "native"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
LIBRARY = NATIVE / "lib" / f"kernels{SUFFIX}"
X86 = {"scalar": ("-O2",), "avx2": ("-mavx2", "-mfma", "-mf16c")}  # scalar at -O3 takes three times as long to compile
LEVELS = {"x86_64": X86}.get(platform.machine().lower(), {"scalar": ()})  # kernels.c is compiled once for each
FLAGS = "-std=c11 -O3 -g0 -fPIC -ffp-contract=off -fno-math-errno -fvisibility=hidden -pthread -Wall -Wextra".split()
LINK = "-shared -pthread -lm".split()
SANITIZE = "-O1 -g -fno-inline -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all".split()
SANITIZED = ROOT / "build" / "sanitized" / LIBRARY.name
PRELOAD = ("libasan.so", "libstdc++.so")  # the second, so that AddressSanitizer finds the C++ exceptions of PyTorch
ZIG = "ziglang"  # a package with a C compiler, about 100 MB


class NativeBuildError(RuntimeError):
    """The native kernels cannot be built; the message says what to do."""


def build(library: Path = LIBRARY, extra: Sequence[str] = ()) -> str | None:
    """Build the library; return one line about it, or None if the existing build is up to date.

    Raises NativeBuildError, and removes an older library, if no compiler is found or it reports an error.
    """
    start, stamp = time.monotonic(), stamp_of(library)
    try:
        compiler = find_compiler()
        wanted = wanted_stamp(compiler, extra)
        if library.exists() and stamp.exists() and stamp.read_text() == wanted:
            return None
        compile_library(compiler, library, extra)
    except NativeBuildError:
        library.unlink(missing_ok=True)  # it does not belong to these sources
        raise
    stamp.write_text(wanted)
    levels, seconds = ", ".join(LEVELS), time.monotonic() - start
    return f"built {library.relative_to(ROOT)} ({levels}) with {shlex.join(compiler)} in {seconds:.0f} s"


def stamp_of(library: Path) -> Path:
    """Return the file with the fingerprint that a library was built from."""
    return library.with_name(".fingerprint")


def wanted_stamp(compiler: list[str], extra: Sequence[str] = ()) -> str:
    """Return the fingerprint of the sources, the flags and the version of the compiler."""
    version = run([*compiler, "--version"])
    return fingerprint_of(version, *FLAGS, *LINK, *extra, str(LEVELS), fingerprint(NATIVE, "src"))


def compile_library(compiler: list[str], library: Path, extra: Sequence[str]) -> None:
    """Compile kernels.c once for each level and the other sources once, and link them."""
    library.parent.mkdir(parents=True, exist_ok=True)
    has_levels = [f"-DGF_HAS_{level.upper()}" for level in LEVELS]
    with TemporaryDirectory(dir=library.parent) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = []
        for source in sorted((NATIVE / "src").glob("*.c")):
            for level, flags in LEVELS.items() if source.stem == "kernels" else [("once", has_levels)]:
                options = [*FLAGS, *flags, f"-DGF_ISA={level}", *extra]
                commands.append([*compiler, *options, "-c", str(source), "-o", f"{folder}/{source.stem}-{level}.o"])
        print(end="".join(pool.map(run, commands)))  # warnings
        built = Path(folder) / library.name
        run([*compiler, *extra, *(command[-1] for command in commands), *LINK, "-o", str(built)])
        built.replace(library)


def find_compiler() -> list[str]:
    """Return the command that runs the C compiler. Raises NativeBuildError if there is none."""
    if command := installed_compiler():
        return command
    if importlib.util.find_spec(ZIG):
        return [sys.executable, "-m", ZIG, "cc", "-mcpu=baseline"]  # without the option Zig compiles for this CPU only
    raise NativeBuildError(
        f"no C compiler was found: install gcc or clang, or `pip install {ZIG}`, then run `python native_build.py`"
    )


def installed_compiler() -> list[str] | None:
    """Return the command of CC or of a compiler on the PATH. Raises NativeBuildError if none can be used."""
    if sys.platform == "win32":
        raise NativeBuildError("they are built on Linux and macOS only")
    if named := os.environ.get("CC", "").split():
        if not shutil.which(named[0]):
            raise NativeBuildError(f"CC names {named[0]!r}, which is not a program on the PATH: correct or unset CC")
        return named
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def missing_packages() -> list[str]:
    """Return the packages that contain a compiler, if this machine has none: requirements of a build."""
    try:
        return [] if installed_compiler() else [ZIG]
    except NativeBuildError:
        return []


def run(command: list[str]) -> str:
    """Run a command and return its output. Raises NativeBuildError with the output if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        raise NativeBuildError(f"the compiler reports an error:\n$ {shlex.join(command)}\n{done.stdout}")
    return done.stdout


def fingerprint(folder: Path, *names: str) -> str:
    """Return the SHA-256 of the names and contents of these files; folders are read recursively."""
    parts: list[str | bytes] = []
    for name in names:
        top = folder / name
        for path in sorted(p for p in (top.rglob("*") if top.is_dir() else [top]) if p.is_file()):
            parts += path.relative_to(folder).as_posix(), path.read_bytes()
    return fingerprint_of(*parts)


def fingerprint_of(*parts: str | bytes) -> str:
    """Return the SHA-256 of these parts."""
    total = hashlib.sha256()
    for part in parts:
        total.update((part.encode() if isinstance(part, str) else part) + b"\0")
    return total.hexdigest()


def sanitize() -> None:
    """Build the library with AddressSanitizer and UBSan, and run the kernel tests on it; skipped without a compiler."""
    try:
        compiler = find_compiler()
        runtimes = [run([*compiler, f"-print-file-name={name}"]).strip() for name in PRELOAD]
    except NativeBuildError as error:
        return print(f"sanitize: skipped: {error}")
    if not all(Path(name).is_absolute() for name in runtimes):  # as printed for a file that does not exist
        return print(f"sanitize: skipped: {shlex.join(compiler)} has no {' or '.join(PRELOAD)}")
    print(build(SANITIZED, SANITIZE) or f"{SANITIZED.relative_to(ROOT)} is up to date")
    environment = {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python frees little at exit
        "NATIVE_LIBRARY": str(SANITIZED),
    }
    tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "kernels").glob("test_native*.py"))
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=os.environ | environment)
    sys.exit(done.returncode)


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["sanitize"]:
            sanitize()
        elif line := build():
            print(line)
    except NativeBuildError as error:
        if sys.argv[1:]:
            sys.exit(f"error: {error}")
        print(f"warning: the native kernels are not built, PyTorch computes instead: {error}", file=sys.stderr)

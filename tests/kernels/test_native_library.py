"""Build, choose and load the native kernels: levels, errors, threads, forks, and a machine without a compiler."""

import _ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import native_build
from glassformer.errors import ConfigError
from glassformer.kernels.native import library as native

ROOT = Path(__file__).parents[2]
OWN_BUILD = pytest.mark.skipif(native.LIBRARY != native_build.LIBRARY, reason="tests another build of the library")


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads the library anew for a value of GLASSFORMER_ISA."""

    def load(wanted: str = ""):
        monkeypatch.setenv("GLASSFORMER_ISA", wanted)
        return native._load.__wrapped__()

    return load


def python(code: str, *arguments: object, cwd: Path = ROOT, **environment: str) -> str:
    """Run code in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env=os.environ | {"PYTHONPATH": str(cwd)} | environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@OWN_BUILD
def test_library_is_built_from_these_sources_where_there_is_a_compiler(load):
    try:
        compiler = native_build.find_compiler()
    except native_build.NativeBuildError:
        assert load()[0] is None
        return
    assert native_build.LIBRARY.exists(), "run `make native`, and see the errors of the compiler"
    stamp = native_build.stamp_of(native_build.LIBRARY).read_text()
    assert stamp == native_build.wanted_stamp(compiler), "the sources have changed: run `make native`"
    assert load()[0] is not None


def test_levels_of_the_build_and_of_the_package_agree():
    assert native_build.LIBRARY.parent == native.LIBRARY.parent or os.environ.get("NATIVE_LIBRARY")
    assert list(native_build.X86) == list(native.FEATURES)
    library = native.load_library()
    if library is not None:
        names = [library.gf_level_name(i).decode() for i in range(library.gf_levels())]
        assert names == list(native_build.LEVELS)


def test_highest_level_of_the_cpu_is_chosen(isa, load, monkeypatch):
    usable = native.usable_levels(native.load_library())
    assert load()[1].value == f"native {list(usable)[-1]}"
    library, choice = load(isa)
    assert library is not None
    assert (choice.value, f"GLASSFORMER_ISA is {isa}" in choice.because) == (f"native {isa}", True)
    monkeypatch.setattr(native, "cpu_features", lambda: native.FEATURES[isa])
    assert load()[1].value == f"native {isa}"


def test_none_disables_the_library(load):
    library, choice = load("none")
    assert library is None
    assert choice.value == "torch"
    assert "GLASSFORMER_ISA" in choice.because


@pytest.mark.parametrize("wanted", ["avx", "AVX2", "native", "scalar,avx2", "0"])
def test_unknown_level_is_an_error(load, wanted):
    with pytest.raises(ConfigError, match=f"GLASSFORMER_ISA must be scalar, avx2 or none, got '{wanted}'"):
        load(wanted)


def test_level_above_the_cpu_is_an_error(load, monkeypatch):
    monkeypatch.setattr(native, "cpu_features", lambda: frozenset({"avx2", "fma"}))
    with pytest.raises(ConfigError, match="GLASSFORMER_ISA is 'avx2', and this CPU has no f16c"):
        load("avx2")
    assert load("scalar")[1].value in ("native scalar", "torch")


def test_absent_damaged_foreign_or_stale_library_is_not_used(load, monkeypatch, tmp_path):
    path = tmp_path / "kernels.so"
    monkeypatch.setattr(native, "LIBRARY", path)
    assert "make setup" in load()[1].because
    path.write_bytes(b"\x7fELF" + bytes(100))
    assert load()[0] is None
    if (original := native_build.LIBRARY).exists():
        monkeypatch.setattr(native, "LIBRARY", original)
        monkeypatch.setattr(native, "ABI", native.ABI + 1)
        library, choice = load()
        assert (library, choice.value) == (None, "torch")
        assert f"has version {native.ABI - 1}, and this package needs {native.ABI}: run `make setup`" in choice.because
    monkeypatch.setattr(native, "LIBRARY", Path(_ctypes.__file__))  # a library without the functions
    assert "gf_abi" in load()[1].because


THREADS = """
import ctypes, os, sys, torch
from glassformer.kernels.native.library import load_library
torch.set_num_threads(3)
x = torch.randn(600, 600)
(x @ x).sum().item(), (x + x).sum().item()
library, before = load_library(), len(os.listdir("/proc/self/task"))
for _ in range(10):
    assert library.gf_run(None, 0, 3) == 0
assert len(os.listdir("/proc/self/task")) == before, "another pool of threads was started"
assert before >= 3
child = os.fork()
if child == 0:
    os._exit(library.gf_run(None, 0, 3))  # would wait for the parent's threads
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
@pytest.mark.skipif(native.load_library() is None, reason="the library is not built")
def test_library_runs_on_the_threads_of_torch_and_alone_after_a_fork():
    python(THREADS)


BUILD_WITHOUT_COMPILER = """
import runpy, sys
sys.modules["ziglang"], sys.stderr = None, sys.stdout
runpy.run_path("native_build.py", run_name="__main__")
"""
GENERATE = """
import glassformer
print(glassformer.__file__, glassformer.load("stories").generate("The cat", max_tokens=5, temperature=0).text)
"""


@OWN_BUILD
def test_package_works_without_compiler(tmp_path):
    """Without CC, a PATH and the package ziglang: a warning, and PyTorch computes."""
    shutil.copy(ROOT / "native_build.py", tmp_path)
    built = shutil.ignore_patterns("lib", "__pycache__")
    shutil.copytree(ROOT / "glassformer", tmp_path / "glassformer", ignore=built)
    printed = python(BUILD_WITHOUT_COMPILER, cwd=tmp_path, PATH="", CC="")
    assert printed.startswith("warning: the native kernels are not built, PyTorch computes instead: no C compiler was")
    texts = [python(GENERATE, cwd=tmp_path, GLASSFORMER_ISA=wanted).split(maxsplit=1) for wanted in ("none", "")]
    assert texts[0] == texts[1]
    assert texts[0][0].startswith(str(tmp_path))
    assert len(texts[0][1]) > 5


@OWN_BUILD
def test_compiler_error_is_shown_and_removes_the_old_library(tmp_path, monkeypatch):
    monkeypatch.setattr(native_build, "NATIVE", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "run.c").write_text("int f(void) { return undeclared; }\n")
    library = tmp_path / "lib" / "kernels.so"
    library.parent.mkdir()
    library.write_bytes(b"of other sources")
    try:
        native_build.find_compiler()
    except native_build.NativeBuildError as error:
        pytest.skip(str(error))
    with pytest.raises(native_build.NativeBuildError, match=r"(?s)the compiler reports an error.*undeclared"):
        native_build.build(library)
    assert not list(library.parent.iterdir())


def test_compiler_of_the_environment(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(native_build.NativeBuildError, match="CC names 'no-such-compiler'"):
        native_build.find_compiler()
    monkeypatch.setenv("CC", f"{sys.executable} -m ziglang cc")
    assert native_build.find_compiler() == [sys.executable, "-m", "ziglang", "cc"]

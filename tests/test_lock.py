"""The lock files: one version and hashes for each package; the runtime lock is what running needs, and nothing more."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from runtime_lock import locked_packages, runtime_packages

ROOT = Path(__file__).parents[1]
LOCK, RUNTIME = (locked_packages((ROOT / f"requirements{kind}.lock").read_text()) for kind in ("", "-runtime"))


def test_every_locked_package_has_a_version_and_hashes():
    for name, block in LOCK.items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"[^\n=]+==[^\n=]+( \\\n +--hash=sha256:[0-9a-f]{64})+\n", block), block


def test_runtime_lock_is_up_to_date():
    assert set(RUNTIME) == runtime_packages(), "run `make lock`"
    assert {name: LOCK[name] for name in RUNTIME} == RUNTIME, "run `make lock`"
    assert not {"pytest", "ruff", "transformers", "playwright", "pillow", "torch"} & set(RUNTIME)


def test_every_package_imported_by_a_module_is_locked():
    """Extras are imported inside functions, everything else at the top of a module."""
    owners = metadata.packages_distributions()
    for path in (ROOT / "glassformer").rglob("*.py"):
        if path.name == "llama_cpp_child.py":  # runs in an interpreter of its own, which has llama-cpp-python
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - {"glassformer", *sys.stdlib_module_names}:
                packages = {canonicalize_name(one) for one in owners[name]}
                assert packages & {"torch", *RUNTIME}, f"{path} imports {name}"

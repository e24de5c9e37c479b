"""Find Chromium. As a script: install Debian's package if there is no browser and the user is root."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
ADVICE = "install Chromium (on Debian: apt-get install chromium), or set CHROMIUM=/path/to/chromium"


def find_browser() -> str | None:
    """Return the path of Chromium: the value of CHROMIUM, or the first known name on the PATH."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


def install() -> None:
    """Install Debian's Chromium. The output of apt-get is shown only if it fails."""
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
            sys.exit(f"error: the browser tests need Chromium: {ADVICE}")

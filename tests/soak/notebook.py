"""Test the notebook views in a real JupyterLab. Run by hand; requires a virtual environment with JupyterLab.

    python -m venv /tmp/lab && /tmp/lab/bin/pip install jupyterlab anywidget
    .venv/bin/python tests/soak/notebook.py /tmp/lab/bin FOLDER

A headless Chromium runs a notebook in JupyterLab and checks that the live view replaces the static image, shows the
values of the tensors and responds to input. Then nbconvert runs the notebook, whose HTML must hold the static image.
FOLDER receives the notebook, the screenshots and the HTML.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from e2e.conftest import FLAGS  # noqa: E402
from e2e.find_browser import find_browser  # noqa: E402
from e2e.pixels import FRACTION_BOUND, drawn_fractions  # noqa: E402

PORT, TOKEN = 18888, "glass"
CELLS = (
    "import glassformer\n"
    'lm = glassformer.load("stories", device="cpu")\n'
    't = lm.trace("Once Max got a key. Soon Ann found a shell. Max gave the key to Ann.")\n',
    't.show("cell", layer=1, head=3, query=13, key=2)',
    't.show("head_grid")',
)


def write_notebook(path: Path) -> None:
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": code, "outputs": [], "execution_count": None}
        for i, code in enumerate(CELLS)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))


def check_jupyterlab(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    import glassformer

    lm = glassformer.load("stories", device="cpu")
    t = lm.trace("Once Max got a key. Soon Ann found a shell. Max gave the key to Ann.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = chromium.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: print("script error:", error))
        page.goto(f"http://127.0.0.1:{PORT}/lab/tree/glass.ipynb?token={TOKEN}")
        page.locator(".jp-Notebook").wait_for()
        page.get_by_text("| Idle").wait_for()
        page.get_by_text("Run", exact=True).first.click()
        page.get_by_text("Run All Cells", exact=True).click()
        canvas = page.locator("gf-app gf-view-cell gf-matrix canvas").first
        try:
            canvas.wait_for()
        finally:
            page.wait_for_timeout(2000)
            page.screenshot(path=folder / "lab.png")
        drawn, real = drawn_fractions(canvas), t.rows("blocks.1.attn.probs", head=3).tensor.numpy()
        seen = real > 0
        assert abs(drawn - real)[seen].max() <= FRACTION_BOUND
        assert page.locator("img[id^=glassformer-]").count() == 0, "the static image was not replaced"
        page.locator("gf-app gf-view-cell gf-head-picker select").first.select_option("2")
        page.wait_for_timeout(2000)
        drawn, real = drawn_fractions(canvas), t.rows("blocks.2.attn.probs", head=3).tensor.numpy()
        assert abs(drawn - real)[seen].max() <= FRACTION_BOUND
        grid = page.locator("gf-view-grid")
        grid.scroll_into_view_if_needed()
        page.wait_for_timeout(2000)
        page.screenshot(path=folder / "lab-grid.png")
        print("JupyterLab: two live views with the tensors' values, no static image")
        chromium.close()


def check_nbconvert(binaries: Path, folder: Path, environment: dict[str, str]) -> None:
    command = [
        binaries / "jupyter",
        "nbconvert",
        "--execute",
        "--to",
        "html",
        folder / "glass.ipynb",
        "--output",
        "still",
    ]
    subprocess.run(command, check=True, env=environment, cwd=folder)
    images = re.findall(r"<img [^>]*id=\"glassformer-", (folder / "still.html").read_text())
    assert len(images) == 2, len(images)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = chromium.new_page(viewport={"width": 1280, "height": 1400})
        page.goto((folder / "still.html").as_uri(), wait_until="domcontentloaded")
        page.wait_for_timeout(2000)
        assert page.locator("img[id^=glassformer-]").first.is_visible()
        page.screenshot(path=folder / "still.png")
        chromium.close()
    print("nbconvert: two static images")


def main(binaries: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_notebook(folder / "glass.ipynb")
    paths = os.pathsep.join((str(ROOT), sysconfig.get_paths()["purelib"]))
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "OMP_NUM_THREADS": "1",
    }
    options = ["--no-browser", "--allow-root", f"--port={PORT}", f"--IdentityProvider.token={TOKEN}", "--ip=127.0.0.1"]
    with (folder / "lab.log").open("w") as log:
        command = [binaries / "jupyter-lab", *options, f"--ServerApp.root_dir={folder}"]
        lab = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            time.sleep(0.5)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api?token={TOKEN}").read()
                break
            except OSError:
                continue
        check_jupyterlab(folder)
    finally:
        lab.terminate()
        lab.wait(60)
    check_nbconvert(binaries, folder, environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())

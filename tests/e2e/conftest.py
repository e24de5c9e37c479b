"""A real browser for the tests of the page, and a real server on the loopback address."""

import os
import threading
import time
from pathlib import Path

import pytest
import uvicorn

import glassformer
from e2e.find_browser import ADVICE, find_browser
from glassformer.server.app import Settings, make_app
from glassformer.server.page import DIST
from glassformer.server.run import bind, server_url

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
PATIENCE = 60_000  # milliseconds: of a machine that does much else; what comes is not waited for


def missing(what: str):
    """A skip that says what is not here; under CI a failure, for there the page must have been tested."""
    if os.environ.get("CI"):
        pytest.fail(f"no test of the page ran, and under CI they must: {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, headless."""
    path = find_browser()
    if path is None:
        missing(f"a browser: {ADVICE}")
    if not (DIST / "index.html").is_file():
        missing("the page: `make page` builds it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


class Served:
    """A server that runs in a thread of this process: what it serves can be looked at, and changed, from the test."""

    def __init__(self, models: dict[str, glassformer.LanguageModel], **settings):
        self.models, self.settings = models, settings

    def __enter__(self) -> "Served":
        sock = bind("127.0.0.1", 0)
        self.url = server_url(sock)
        self.app = make_app(list(self.models.items()), Settings(**self.settings))
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [sock]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="session")
def served():
    """The model that ships with the package, served."""
    with Served({"stories": glassformer.load("stories", device="cpu")}) as one:
        yield one


@pytest.fixture(scope="session")
def lm(served):
    """The very model behind the page."""
    return served.models["stories"]


@pytest.fixture
def open_page(browser, request):
    """`open_page(url)`: a page of its own. At its end: no script error, nothing asked of any other machine."""
    contexts, wrong, asked = [], [], set()

    def opened(url: str, *, width: int = 1280, height: int = 800, dark: bool = False):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
        page.on("request", lambda one: asked.add(one.url.split("/")[2]) if one.url.startswith("http") else None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
    assert all(host.startswith("127.0.0.1:") for host in asked), asked


@pytest.fixture
def page(served, open_page):
    """The page as it opens, drawn."""
    opened = open_page(served.url)
    opened.locator("gf-view-cell gf-matrix canvas").wait_for()
    return opened

"""Fixtures: a Chromium browser, and servers on the loopback address."""

import threading
import time
from pathlib import Path
from typing import NoReturn

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
TIMEOUT = 60_000  # milliseconds; long because test machines may be busy


def fail_without(requirement: str) -> NoReturn:
    """Fail a test because a requirement is missing. Browser tests never pass silently without a browser."""
    pytest.fail(f"browser tests need {requirement}. To run the other tests: pytest --ignore=tests/e2e", pytrace=False)


def assert_accessible(page, variants=None) -> None:
    """Assert no serious axe violation and no horizontal scrolling: wide light, wide dark, and narrow.

    Args:
        page: The page, with all content loaded.
        variants: Buttons to click in turn; the page is checked after each click.
    """
    if not AXE.is_file():
        fail_without(f"{AXE}: run `make page`")
    page.evaluate(AXE.read_text())  # evaluated like console input, which the content security policy allows
    for width, height, scheme in ((1280, 800, "light"), (1280, 800, "dark"), (390, 844, "light")):
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        for button in [None] if variants is None else variants.all():
            if button is not None:
                button.click()
            result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            serious = [
                f"{one['id']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
                for one in result
                if one["impact"] in ("serious", "critical")
            ]
            assert not serious, f"{width}×{height}, {scheme}: {serious}"
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.fixture(scope="session")
def browser():
    """Launch the Chromium of the system, headless."""
    path = find_browser()
    if path is None:
        fail_without(f"a browser: {ADVICE}")
    if not (DIST / "index.html").is_file():
        fail_without("the built page: run `make page`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


class RunningServer:
    """A server in a thread of this process, so that tests can access and change its models."""

    def __init__(self, models: dict[str, glassformer.LanguageModel], **settings):
        self.models, self.settings = models, settings

    def __enter__(self) -> "RunningServer":
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
def server():
    """Serve the stories model of the package."""
    with RunningServer({"stories": glassformer.load("stories", device="cpu")}) as one:
        yield one


@pytest.fixture(scope="session")
def lm(server):
    """Return the model that `server` serves."""
    return server.models["stories"]


@pytest.fixture
def open_page(browser, request):
    """Return a function that opens a URL in a new page. Afterwards check for script errors and external requests."""
    contexts, wrong, asked = [], [], set()

    def opened(url: str, *, width: int = 1280, height: int = 800, dark: bool = False):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(TIMEOUT)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console", lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None
        )
        page.on("request", lambda one: asked.add(one.url.split("/")[2]) if one.url.startswith("http") else None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
    assert all(host.startswith("127.0.0.1:") for host in asked), asked


@pytest.fixture
def page(server, open_page):
    """Open the page with default settings, and wait until it is drawn."""
    opened = open_page(server.url)
    opened.locator("gf-view-cell gf-matrix canvas").wait_for()
    return opened

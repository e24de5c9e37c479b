"""A real browser for the tests of the page, a real server on the loopback address."""

import os

import pytest
from find_browser import ADVICE, find_browser

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, headless. None here: a skip that says so, and under CI a failure."""
    path = find_browser()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"no test of the page ran, and under CI they must: {ADVICE}")
        pytest.skip(f"needs a browser: {ADVICE}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()

"""Browser tests of the initial page for all kinds of models, narrow screens, and error messages."""

import re
import socket
import threading
from dataclasses import replace

import pytest
from inspect_subjects import subject, translator
from tiny import encoder_decoder_config

import glassformer
from e2e.conftest import RunningServer
from e2e.test_page import view_path
from glassformer.inspect.present import slices


@pytest.fixture(scope="module")
def kinds(lm):
    pair, encoder = subject("encoder-decoders", "pair")[0], subject("encoders", "bert")[0]
    with RunningServer({"stories": lm, "pair": pair, "encoder": encoder}) as one:
        yield one


def test_model_opens_with_its_default_text(open_page, kinds):
    page = open_page(f"{kinds.url}/#/?model=pair")
    page.locator("gf-view-alignment gf-alignment-matrix canvas").first.wait_for()
    box = page.locator("gf-header textarea")
    assert box.input_value() == "The cat sat on the mat because it was tired."
    assert "text=The" in page.url, "the address must contain the text"
    page.locator("gf-header select").select_option("encoder")
    page.locator("gf-view-grid canvas").first.wait_for()
    assert "cat" in box.input_value()
    assert page.locator("input[name=max_tokens]").count() == 0, "an encoder cannot generate"
    page.locator("gf-header select").select_option("stories")
    page.locator("gf-view-cell ol").wait_for()
    assert box.input_value().startswith("Once Max got a key.")
    box.fill("My own text.")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("prompt tokens, 10 generated").wait_for()
    page.locator("gf-header select").select_option("pair")
    page.locator("gf-view-alignment gf-alignment-matrix canvas").first.wait_for()
    assert box.input_value() == "My own text.", "text entered by the user must not change"


def test_translator_generates_at_most_its_context(open_page):
    config = encoder_decoder_config("pre")
    encoder = replace(config.encoder, context_length=48)
    with RunningServer({"short": translator(replace(config, context_length=48, encoder=encoder))}) as server:
        page = open_page(server.url)
        page.locator("gf-view-alignment gf-alignment-matrix canvas").first.wait_for()
        assert page.locator("input[name=max_tokens]").input_value() == "48"


def test_narrow_page_selects_views_by_menu(open_page, server):
    page = open_page(server.url + view_path("cell"), width=390, height=844)
    page.locator("gf-view-cell ol").wait_for()
    assert not page.get_by_role("link", name="Q, K, V").is_visible()
    page.get_by_role("combobox", name="View").select_option("qkv")
    page.locator("gf-view-qkv .three").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# ---- errors


@pytest.mark.parametrize("write", [0, 4])
def test_nan_shows_notice(open_page, server, write):
    edit = '[{"op":"scale","point":"blocks.1.resid_post","factor":1e38}]'
    page = open_page(server.url + view_path("cell", edits=edit, max_tokens=write, layer=2, head=0, query=5, key=3))
    page.locator("gf-view-cell").get_by_text("This attention weight is NaN").wait_for()
    page.locator("gf-sidebar").get_by_text("The logits after this token are NaN").wait_for()
    if write:
        page.get_by_text("Generation stopped because the logits are NaN").wait_for()
    page.get_by_role("button", name="Remove").click()
    page.locator("gf-view-cell ol").wait_for()


def test_too_large_slice_shows_error(open_page, server, monkeypatch):
    monkeypatch.setattr(slices, "MAX_NUMBERS", 100)
    page = open_page(server.url + view_path("cell", layer=0, head=0, query=9, key=3))
    page.locator("gf-view-cell gf-pattern gf-notice").get_by_text("at most 100 are allowed").wait_for()


def test_wrong_api_key_shows_error(open_page, lm):
    with RunningServer({"stories": lm}, key="s3cret") as server:
        page = open_page(server.url)
        page.get_by_label("API key", exact=True).fill("wrong")
        page.get_by_role("button", name="Continue").click()
        page.locator("gf-key-prompt [role=status]").get_by_text(re.compile("key", re.IGNORECASE)).wait_for()


class Proxy:
    """A TCP proxy in front of a server, whose connections a test can cut."""

    def __init__(self, url):
        self.to = (url.split("/")[2].split(":")[0], int(url.rsplit(":", 1)[1]))
        self.sock, self.open = socket.create_server(("127.0.0.1", 0)), []
        self.url = f"http://127.0.0.1:{self.sock.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                ours = self.sock.accept()[0]
            except OSError:
                return
            theirs = socket.create_connection(self.to)
            self.open += [ours, theirs]
            for a, b in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self.forward, args=(a, b), daemon=True).start()

    @staticmethod
    def forward(a, b):
        try:
            while data := a.recv(1 << 16):
                b.sendall(data)
        except OSError:
            pass

    def cut(self):
        self.sock.close()
        for one in self.open:
            one.shutdown(socket.SHUT_RDWR) if one.fileno() >= 0 else None
            one.close()


def test_lost_connection_shows_error(open_page):
    go = threading.Event()

    def slowly(ids, step):
        if ids.shape[-1] == 1:
            go.wait(0.05)  # slow down generation
        return hidden(ids, step)

    own = glassformer.load("stories", device="cpu")
    hidden = own.model.hidden
    own.model.hidden = slowly
    with RunningServer({"stories": own}) as server:
        wire = Proxy(server.url)
        page = open_page(
            wire.url + view_path("cell", text="One day Mia", max_tokens=150, layer=0, head=0, query=1, key=0)
        )
        page.get_by_text("tokens generated;").wait_for()
        wire.cut()
        page.get_by_text("The connection to the server was lost").wait_for()
        page.get_by_role("button", name="Try again").wait_for()
        go.set()

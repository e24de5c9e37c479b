"""What a page opens on, with models of every kind and on narrow screens; and what it says when something is wrong."""

import re
import socket
import threading

import pytest
from inspect_subjects import subject

import glassformer
from e2e.conftest import Served
from e2e.test_page import at
from glassformer.inspect.present import slices


@pytest.fixture(scope="module")
def kinds(lm):
    pair, encoder = subject("encoder-decoders", "pair")[0], subject("encoders", "bert")[0]
    with Served({"stories": lm, "pair": pair, "encoder": encoder}) as one:
        yield one


def test_a_model_opens_on_a_text_of_its_own_kind(open_page, kinds):
    page = open_page(f"{kinds.url}/#/?model=pair")
    page.locator("gf-view-alignment gf-aligned canvas").first.wait_for()
    box = page.locator("gf-header textarea")
    assert box.input_value() == "The cat sat on the mat because it was tired."
    assert "text=The" in page.url, "the address holds it"
    page.locator("gf-header select").select_option("encoder")
    page.locator("gf-view-grid canvas").first.wait_for()
    assert "cat" in box.input_value()
    assert page.locator("input[name=write]").count() == 0, "it writes nothing"
    page.locator("gf-header select").select_option("stories")
    page.locator("gf-view-cell ol").wait_for()
    assert box.input_value().startswith("Once Max got a key.")
    box.fill("A text of mine.")
    page.get_by_role("button", name="Read it").click()
    page.get_by_text("read, 10 written").wait_for()
    page.locator("gf-header select").select_option("pair")
    page.locator("gf-view-alignment gf-aligned canvas").first.wait_for()
    assert box.input_value() == "A text of mine.", "what a person wrote stays"


def test_a_narrow_page_has_a_chooser_of_pictures(open_page, served):
    page = open_page(served.url + at("cell"), width=390, height=844)
    page.locator("gf-view-cell ol").wait_for()
    assert not page.get_by_role("link", name="Q K V").is_visible()
    page.get_by_role("combobox", name="Picture").select_option("qkv")
    page.locator("gf-view-qkv .three").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# ---- what goes wrong


@pytest.mark.parametrize("write", [0, 4])
def test_an_edit_that_makes_no_numbers_is_told(open_page, served, write):
    edit = '[{"op":"scale","point":"blocks.1.resid_post","factor":1e38}]'
    page = open_page(served.url + at("cell", edits=edit, write=write, layer=2, head=0, query=5, key=3))
    page.locator("gf-view-cell").get_by_text("is no number (NaN)").wait_for()
    page.locator("gf-side").get_by_text("the scores are no numbers (NaN)").wait_for()
    if write:
        page.get_by_text("It stopped: its scores are no numbers any more").wait_for()
    page.get_by_role("button", name="Take back").click()
    page.locator("gf-view-cell ol").wait_for()


def test_a_slice_that_is_too_large_is_told(open_page, served, monkeypatch):
    monkeypatch.setattr(slices, "MOST", 100)
    page = open_page(served.url + at("cell", layer=0, head=0, query=9, key=3))
    page.locator("gf-view-cell gf-pattern gf-refused").get_by_text("at most 100 are sent").wait_for()


def test_a_wrong_key_is_said_to_be_wrong(open_page, lm):
    with Served({"stories": lm}, key="s3cret") as served:
        page = open_page(served.url)
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Open").click()
        page.locator("gf-key [role=status]").get_by_text(re.compile("key", re.IGNORECASE)).wait_for()


class Between:
    """A wire to a server that can be cut: a port that hands on what comes, both ways, until then."""

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
                threading.Thread(target=self.hand_on, args=(a, b), daemon=True).start()

    @staticmethod
    def hand_on(a, b):
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


def test_a_server_that_goes_in_the_middle_is_told(open_page):
    go = threading.Event()

    def slowly(ids, step):
        if ids.shape[-1] == 1:
            go.wait(0.05)  # a text takes its time
        return hidden(ids, step)

    own = glassformer.load("stories", device="cpu")
    hidden = own.model.hidden
    own.model.hidden = slowly
    with Served({"stories": own}) as served:
        wire = Between(served.url)
        page = open_page(wire.url + at("cell", text="One day Mia", write=150, layer=0, head=0, query=1, key=0))
        page.get_by_text("tokens written; the cache holds").wait_for()
        wire.cut()
        page.get_by_text("The server went away in the middle of its answer").wait_for()
        page.get_by_role("button", name="Try again").wait_for()
        go.set()

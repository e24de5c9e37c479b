"""Browser tests of keyboard use, links, generation, error messages and accessibility."""

import re

import pytest

from e2e.conftest import RunningServer, assert_accessible
from e2e.test_page import ASK, shown_text, view_path

VIEWS = ("map", "tokenizer", "embedding", "cell", "qkv", "grid", "roles", "heads", "block", "lens", "tracks", "cache")

OPTIONS = (  # views with changed options
    ("cell", {"_cell_stage": 4, "_unscaled": 1}),
    ("grid", {"_sort_heads": "duplicate", "_zoom": 16}),
    ("cache", {"_cache": "off"}),
    ("tracks", {"_measure": 1}),
    ("lens", {"_samples": 1000, "_temperature": 2}),
    ("tokenizer", {"_merge": 1}),
)


def address_fields(page) -> dict[str, str]:
    """Return the fields of the address."""
    return dict(re.findall(r"[?&](\w+)=([^&]*)", page.url))


def focused_label(page) -> str:
    """Return the label of the focused element, searching shadow roots."""
    return page.evaluate(
        "() => { let e = document.activeElement; while (e?.shadowRoot?.activeElement) e = e.shadowRoot.activeElement;"
        " return e?.getAttribute('aria-label') || e?.textContent.trim() || '' }"
    )


def tab_to(page, label: str) -> None:
    """Press Tab until the element with this label has the focus."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if focused_label(page).startswith(label):
            return
    pytest.fail(f"Tab does not reach {label!r}")


def test_keyboard_navigation(open_page, server):
    page = open_page(server.url + view_path("cell", layer=1, head=3, query=12, key=5))
    page.locator("gf-view-cell gf-matrix canvas").wait_for()
    tab_to(page, "Attention")
    page.keyboard.press("Enter")
    tab_to(page, "Attention of head") if page.locator("[aria-label^='Attention of head']").count() else tab_to(
        page, "Attention of block"
    )
    before, steps = address_fields(page), shown_text(page.locator("gf-view-cell ol"))
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    now = address_fields(page)
    assert "query" in now
    assert now != before
    inner = "['gf-view-cell', 'gf-attention-steps', 'ol'].reduce((at, one) => at.shadowRoot.querySelector(one), "
    page.wait_for_function(
        f"old => {inner}document.querySelector('gf-app')).innerText.replaceAll('−', '-') !== old", arg=steps
    )
    tab_to(page, "query")  # the strip of the query
    page.keyboard.press("ArrowRight")
    assert "[1]:" in shown_text(page.locator("gf-view-cell ol > li").first)

    page.evaluate("document.activeElement.blur()")
    tab_to(page, "Q, K, V")
    page.keyboard.press("Enter")
    page.locator("gf-view-qkv .three").wait_for()
    query, head = int(address_fields(page)["query"]), int(address_fields(page)["head"])
    page.keyboard.press("ArrowLeft")
    assert int(address_fields(page)["query"]) == query - 1
    page.keyboard.press("Shift+ArrowLeft")
    assert int(address_fields(page)["head"]) == head - 1
    layer = int(address_fields(page)["layer"])
    page.keyboard.press("Shift+ArrowDown")
    assert int(address_fields(page)["layer"]) == layer + 1
    page.locator("gf-view-qkv gf-strip [aria-label='residual stream before the block']").wait_for()
    page.get_by_text(f"input of block {layer + 1} for").wait_for()

    tab_to(page, "All heads")
    page.keyboard.press("Enter")
    page.locator("gf-grid-row button").first.wait_for()
    tab_to(page, "Block 0, head 2")
    page.keyboard.press("Enter")
    assert (address_fields(page)["layer"], address_fields(page)["head"]) == ("0", "2")
    page.get_by_role("heading", name="Block 0, head 2").wait_for()


def test_arrow_keys_stop_at_limits(page):
    page.locator("gf-view-cell gf-matrix .frame").focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowUp")
    assert address_fields(page)["layer"] == "0"
    for _ in range(9):
        page.keyboard.press("Shift+ArrowDown")
    assert address_fields(page)["layer"] == "3"
    page.locator("gf-view-cell ol").wait_for()


def test_link_restores_page(page, open_page):
    page.locator("gf-tokens button").nth(12).click()
    page.get_by_role("link", name="Q, K, V").click()
    page.locator("gf-view-qkv .three").wait_for()
    page.locator("gf-view-qkv gf-strip .frame").nth(2).focus()
    page.keyboard.press("ArrowRight")
    page.locator("gf-view-qkv").get_by_text("row 1 of W_q").wait_for()
    again = open_page(page.url)
    again.locator("gf-view-qkv .three").wait_for()
    again.locator("gf-view-qkv").get_by_text("row 1 of W_q").wait_for()
    assert shown_text(again.locator("gf-view-qkv .three")) == shown_text(page.locator("gf-view-qkv .three"))
    page.go_back()
    page.locator("gf-view-cell").wait_for()
    page.go_forward()
    page.locator("gf-view-qkv").wait_for()


def test_generation_equals_python_and_stops(page, lm):
    box = page.locator("gf-header textarea")
    box.fill("One day Mia")
    page.locator("input[name=max_tokens]").fill("12")
    page.locator("input[name=temperature]").fill("0.8")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("12 generated").wait_for()
    expected = lm.generate("One day Mia", max_tokens=12, temperature=0.8, seed=0)
    shown = page.locator("gf-tokens button.generated").all_inner_texts()
    assert "".join(shown).replace("·", " ").replace("⏎", "\n") == expected.text
    assert address_fields(page)["text"] == "One+day+Mia"

    shown_length = page.locator("gf-tokens button").count()
    page.locator("input[name=max_tokens]").fill("150")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    assert page.locator("gf-tokens button").count() == shown_length  # the previous text is still shown


def test_sidebar_shows_token_probability(page, trace_of):
    summary = trace_of(page)
    page.locator("gf-tokens button.generated").first.click()
    token = page.locator("gf-sidebar .token")
    chosen = summary.tokens[summary.n_prompt]
    token.get_by_text(f"Token {chosen.position}:").wait_for()
    assert f"{100 * chosen.prob:.1f}%" in shown_text(token)
    after = summary.tokens[summary.n_prompt + 1]
    assert token.locator("gf-bars tr").first.inner_text().split()[-1] == f"{100 * after.top[0].value:.1f}%"


@pytest.fixture
def trace_of(lm):
    def found(page):
        from glassformer.inspect.views.summary import summary

        return summary(lm.trace(page.locator("gf-header textarea").input_value(), max_tokens=10, temperature=0))

    return found


def test_tour_has_caption_for_every_step(page):
    titles = []
    for i in range(13):
        tour = page.locator("gf-sidebar .tour")
        tour.get_by_text(f"{i + 1} of 13").wait_for()
        tour.locator("gf-tour-caption p").first.wait_for()
        titles.append(tour.locator("h2").inner_text())
        text = " ".join(tour.locator("gf-tour-caption p").all_inner_texts())
        assert text
        assert not re.search(r"undefined|NaN|null", text), text
        if i < 12:
            tour.get_by_role("button", name="Next").click()
    assert len(set(titles)) == 13
    assert titles[0].startswith("Attention")
    assert titles[-1].startswith("Causal test")


# ---- errors


def test_text_longer_than_context_shows_error(open_page, server):
    page = open_page(server.url + view_path("cell", text="key " * 400, max_tokens=0))
    page.get_by_text("The model could not process this text").wait_for()
    page.get_by_text(re.compile("192")).wait_for()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (view_path("nowhere"), "Unknown view"),
        (view_path("cell", model="other"), "'other'"),
        (view_path("embedding", _token=999999), "999999|528|527"),
        (view_path("tokenizer", _word="two words"), "two words"),
        (view_path("cell", edits='[{"op":"melt","point":"blocks.0.attn.z"}]'), "melt"),
    ],
)
def test_invalid_address_shows_error(open_page, server, address, sentence):
    page = open_page(server.url + address)
    page.get_by_text(re.compile(sentence)).first.wait_for()
    page.locator("gf-notice").first.wait_for()


def test_edit_in_address_is_applied_and_listed(open_page, server, lm):
    edit = '[{"op":"ablate","point":"blocks.1.attn.z","head":3}]'
    page = open_page(server.url + view_path("cell", edits=edit))
    page.locator("gf-tokens button.generated").first.wait_for()
    from glassformer.inspect.edits.edit import ablate

    expected = lm.generate(ASK, max_tokens=4, temperature=0, edit=[ablate("blocks.1.attn.z", head=3)]).text
    written = "".join(page.locator("gf-tokens button.generated").all_inner_texts())
    assert written.replace("·", " ").replace("⏎", "\n") == expected
    page.get_by_role("button", name="Remove block 1, head 3 ablated").click()
    page.wait_for_function("() => !location.hash.includes('edits')")


def test_causal_test_shows_both_texts(open_page, server, lm):
    from glassformer.inspect.edits.edit import ablate, knockout

    def both(page, view):
        page.locator(f"gf-view-{view} gf-causal-test dl").wait_for()
        return [
            one.replace("·", " ").replace("⏎", "\n") for one in page.locator(f"gf-view-{view} dd").all_inner_texts()
        ]

    before = lm.generate(ASK, max_tokens=4, temperature=0).text
    last = len(lm.encode(ASK)) - 1
    page = open_page(server.url + view_path("heads", layer=1, head=3, query=last))
    page.get_by_role("button", name="Ablate head 3 of block 1").click()
    without = lm.generate(ASK, max_tokens=4, temperature=0, edit=[ablate("blocks.1.attn.z", head=3)]).text
    assert both(page, "heads") == [before, without]
    assert before != without
    hidden = lm.trace(ASK)["blocks.1.attn.probs"][3, last].argmax().item()
    page = open_page(server.url + view_path("cell", layer=1, head=3, query=last, key=hidden))
    page.get_by_role("button", name="Mask key").click()
    edit = knockout("blocks.1.attn.scores", head=3, query=last, key=hidden)
    assert both(page, "cell") == [before, lm.generate(ASK, max_tokens=4, temperature=0, edit=[edit]).text]
    page.get_by_role("button", name="Keep this edit").click()
    page.locator("gf-header .edits").get_by_text(f"head 3: key {hidden} masked for query {last}").wait_for()


def test_api_key_form(open_page, lm):
    with RunningServer({"stories": lm}, key="s3cret") as server:
        page = open_page(server.url)
        page.get_by_text("API key required").wait_for()
        page.get_by_label("API key", exact=True).fill("wrong")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("API key required").wait_for()
        page.get_by_label("API key", exact=True).fill("s3cret")
        page.get_by_role("button", name="Continue").click()
        page.locator("gf-view-cell gf-matrix canvas").wait_for()


def test_stopped_server_shows_error(open_page, lm):
    with RunningServer({"stories": lm}) as server:
        page = open_page(server.url)
        page.locator("gf-view-cell gf-matrix canvas").wait_for()
    page.get_by_role("link", name="Q, K, V").click()
    page.get_by_text("The server does not respond").first.wait_for()


def test_evicted_trace_is_recomputed(page, server):
    for one in page.request.get(f"{server.url}/v1/traces").json()["data"]:
        assert page.request.delete(f"{server.url}/v1/traces/{one['id']}").ok
    page.get_by_role("link", name="Block").click()
    page.locator("gf-view-block table").wait_for()


def test_two_tabs_are_independent(open_page, server):
    first, second = (
        open_page(server.url + view_path("cell", text=text, layer=1, head=0)) for text in (ASK, "One day Mia")
    )
    for page, words in ((first, "shell"), (second, "Mia")):
        page.locator("gf-view-cell ol").wait_for()
        assert words in shown_text(page.locator("gf-tokens .tokens"))
    first.get_by_role("link", name="Block").click()
    second.get_by_role("link", name="Cache").click()
    first.locator("gf-view-block table").wait_for()
    second.locator("gf-view-cache gf-matrix").wait_for()


# ---- accessibility


@pytest.mark.parametrize(("view", "more"), [*((view, {}) for view in VIEWS), *OPTIONS])
def test_accessibility_and_no_horizontal_scrolling(open_page, server, view, more):
    page = open_page(server.url + view_path(view, step=0, **more))
    page.locator(f"gf-view-{view} gf-receipt").first.wait_for()
    page.wait_for_load_state("networkidle")
    assert_accessible(page)

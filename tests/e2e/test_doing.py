"""Browser tests of interactions with the views: stepping, switching, sorting, sampling. Values equal Python's."""

import re
import threading

import numpy as np
import pytest
import torch
from tiny import tiny

import glassformer
from e2e.conftest import RunningServer
from e2e.pixels import FRACTION_BOUND, SIGNED_BOUND, drawn_fractions, drawn_values
from e2e.test_page import ASK, is_close, numbers_in, parse_numbers, shown_text, view_path
from e2e.test_using import address_fields
from glassformer.inspect.views import lens
from glassformer.inspect.views.registry import VIEWS


@pytest.fixture(scope="module")
def trace(lm):
    return lm.trace(ASK, max_tokens=4, temperature=0)


def raw_text(shown: str) -> str:
    """Return the text of a token from its display form."""
    return shown.replace("·", " ").replace("⏎", "\n")


# ---- attention view


def test_cell_stages_by_keys_and_buttons(open_page, server, trace):
    page = open_page(server.url + view_path("cell", layer=2, head=1, query=20, key=11))
    stages = page.locator("gf-attention-steps ol > li")
    stages.first.wait_for()
    assert stages.count() == 7
    current = page.locator("gf-attention-steps li[aria-current=step]")
    assert current.count() == 0
    cell = trace.cell(layer=2, head=1, query=20, key=11)
    last = {0: cell.products[0], 1: cell.sum, 3: cell.score, 4: cell.exp, 6: cell.z[0]}
    for i in range(7):
        if i % 2:
            page.get_by_role("button", name="next stage").click()
        else:
            page.keyboard.press(".")
        page.get_by_text(f"stage {i + 1} of 7").wait_for()
        assert current.count() == 1
        assert current.inner_text() == stages.nth(i).inner_text()
        if i in last:
            current_text = shown_text(current.locator("p.worked").first).split("(the row")[0]
            assert is_close(parse_numbers(current_text)[-1], last[i]), i
    assert int(current.locator(".num").first.evaluate("e => getComputedStyle(e).fontWeight")) >= 700
    page.keyboard.press(".")  # the last stage stays
    page.keyboard.press(",")
    page.get_by_text("stage 6 of 7").wait_for()
    assert address_fields(page)["_cell_stage"] == "5"
    page.keyboard.press("ArrowUp")  # arrow keys still move the query
    page.wait_for_function("() => location.hash.includes('query=19')")
    page.get_by_text("stage 6 of 7").wait_for()
    page.get_by_text("arrow keys: key, query").wait_for()
    page.get_by_text(", and . step through stages").wait_for()
    page.locator("gf-header textarea").press_sequentially(" .")
    page.get_by_text("stage 6 of 7").wait_for()


def test_unscaled_attention_values(open_page, server, trace):
    page = open_page(server.url + view_path("cell", layer=2, head=1, query=20, key=18))
    view = page.locator("gf-view-cell")
    view.locator("ol").wait_for()
    view.get_by_role("button", name="without the scale").click()
    q = trace["blocks.2.attn.q_rot"][20, 1].double().numpy()
    k, v = (trace[f"blocks.2.attn.{name}"][:21, 1].double().numpy() for name in ("k_rot", "v"))
    scores = k @ q
    exp = np.exp(scores - scores.max())
    probs = exp / exp.sum()
    lines = [shown_text(one) for one in view.locator("ol > li").all()]
    scaled = parse_numbers(lines[2])
    assert scaled[1] == 1
    assert is_close(scaled[0], scores[18])
    assert is_close(scaled[2], scores[18])
    assert is_close(parse_numbers(lines[3])[-1], scores[18])
    assert is_close(parse_numbers(lines[4])[1], scores.max())
    share = numbers_in(view.locator("ol > li").nth(5).locator("p.worked"))
    assert is_close(share[1], exp.sum())
    assert "<" in lines[5].split("=")[-1] or is_close(share[2], 100 * probs[18], 2)
    weighted = parse_numbers(lines[6].split("[0]:")[1])
    assert is_close(weighted[-1], probs @ v[:, 0])
    assert is_close(weighted[2], probs[18] * v[18, 0])
    strips = view.locator("ol gf-strip canvas")
    assert np.abs(drawn_fractions(strips.nth(3))[0][:21] - probs).max() <= FRACTION_BOUND
    top = np.abs(v[18]).max()
    drawn = drawn_values(strips.nth(6), "value", top)[0]
    assert np.abs(drawn - np.clip(probs @ v, -top, top)).max() <= SIGNED_BOUND * top
    largest = numbers_in(view.get_by_text("The largest weight changes from"))
    scale = np.exp(scores / np.sqrt(len(q)) - (scores / np.sqrt(len(q))).max())
    assert abs(largest[0] - 100 * (scale / scale.sum()).max()) <= 0.06
    assert abs(largest[1] - 100 * probs.max()) <= 0.06
    assert largest[1] > largest[0], "the softmax must saturate"


# ---- tokenizer and embedding views


def test_stepping_through_merges(open_page, server, lm):
    page = open_page(server.url + view_path("tokenizer", text="found", max_tokens=0, _word="found"))
    steps = [list(step.parts) for step in lm.merges(word="found").steps]
    rows = page.locator("gf-view-tokenizer .tree li")
    rows.nth(len(steps) - 1).wait_for()
    for left in range(len(steps) - 1, 0, -1):
        page.keyboard.press(",")
        page.wait_for_function(f"() => location.hash.includes('_merge={left - 1}')")
        rows.nth(left).wait_for(state="detached")
        assert [row.locator(".piece").all_inner_texts() for row in rows.all()] == steps[:left]
    page.get_by_role("button", name="next merge").click()
    rows.nth(1).wait_for()
    assert rows.nth(1).locator(".piece.new").inner_text() in steps[1]


def test_untied_embedding_tables(open_page, lm):
    model = tiny("qwen3", vocab_size=len(lm.model.embed.weight), context_length=64)
    assert model.head is not None
    with RunningServer({"untied": glassformer.LanguageModel(model, lm.tokenizer)}) as server:
        page = open_page(server.url + view_path("embedding", text="Once Max got a key.", max_tokens=0))
        view = page.locator("gf-view-embedding")
        find = view.get_by_label("Token to look up, by its text")
        find.fill(" Quito")
        find.press("Enter")
        token = lm.tokenizer.encode(" Quito", bare=True)[0]
        view.get_by_text(f"is row {token},").wait_for()
        view.get_by_text("Cosine similarity of the two rows").wait_for()
        row, other = (table[token].detach().double() for table in (model.embed.weight, model.head.weight))
        cosine = (row @ other / (row.norm() * other.norm())).item()
        assert abs(numbers_in(view.get_by_text("Cosine similarity of the two rows"))[0] - cosine) <= 6e-4
        top = other.abs().max().item()
        drawn = drawn_values(view.locator("gf-strip canvas").nth(1), "residual", top)[0]
        assert np.abs(drawn - other.numpy()).max() <= SIGNED_BOUND * top


# ---- residual stream view


def test_parallel_and_sequential_times(open_page, server):
    page = open_page(server.url + view_path("tracks", query=9))
    view = page.locator("gf-view-tracks")
    view.get_by_role("button", name="Measure").click()
    view.locator("gf-bars tr").nth(1).wait_for()
    n = page.locator("gf-tokens button").count() - 1
    together, alone = (numbers_in(row) for row in view.locator("gf-bars tr").all())
    assert together[0] == alone[0] == n
    assert together[-1] > 0
    assert abs(alone[-1] - n * alone[1]) <= n * 0.006


# ---- all heads view


def test_heads_sorted_by_role_score(open_page, server, trace):
    page = open_page(server.url + view_path("grid", layer=0, head=0, query=12, key=4))
    page.get_by_label("Order of the heads").select_option("duplicate")
    heads = page.locator("gf-sorted-grid button")
    heads.first.wait_for()
    scores = trace.roles().scores.duplicate
    order = scores.flatten().argsort(descending=True).tolist()
    assert heads.count() == len(order) == 16
    for place_, head in enumerate(order):
        layer, head = divmod(head, 4)
        label = heads.nth(place_).get_attribute("aria-label")
        assert label.endswith(f": block {layer}, head {head}")
        assert abs(parse_numbers(label)[1] - 100 * scores[layer, head]) <= 0.06
    best = divmod(order[0], 4)
    probs = trace[f"blocks.{best[0]}.attn.probs"][best[1]]
    small = torch.nn.functional.adaptive_max_pool2d(probs[None], min(48, len(probs)))[0].numpy()
    visible = np.tril(np.ones(small.shape, bool))
    drawn = drawn_fractions(heads.first.locator("canvas"))
    assert np.abs(drawn - small)[visible].max() <= FRACTION_BOUND + 0.5 / 255
    heads.first.click()
    page.get_by_role("heading", name=f"Block {best[0]}, head {best[1]}").wait_for()


def test_pattern_zoom_and_pan(open_page, server, trace):
    page = open_page(server.url + view_path("grid", layer=2, head=3, query=20, key=14))
    page.locator("gf-pattern canvas").wait_for()
    for _ in range(2):
        page.get_by_role("button", name="zoom in").click()
    piece = page.locator("gf-pattern gf-matrix.piece canvas")
    piece.wait_for()
    probs = trace["blocks.2.attn.probs"][3].numpy()
    heading = page.locator("gf-pattern h3")

    def seen():
        top, bottom, left, right = parse_numbers(shown_text(heading).replace("Queries", ""))
        real = probs[int(top) : int(bottom) + 1, int(left) : int(right) + 1].copy()
        rows, columns = np.indices(real.shape)
        real[columns + left > rows + top] = np.nan
        drawn = drawn_fractions(piece)
        assert drawn.shape == (16, 16)
        assert (np.isnan(drawn) == np.isnan(real)).all()
        assert np.nanmax(np.abs(drawn - real)) <= FRACTION_BOUND
        return int(top), int(left)

    top, left = seen()
    assert top <= 20 < top + 16
    assert left <= 14 < left + 16
    piece.scroll_into_view_if_needed()
    box = piece.bounding_box()
    field = box["width"] / 16
    page.mouse.move(box["x"] + 8.5 * field, box["y"] + 8.5 * field)
    page.mouse.down()
    page.mouse.move(box["x"] + 11.5 * field, box["y"] + 6.5 * field, steps=4)
    page.mouse.up()
    heading.filter(has_text=f"Queries {top + 2} to").wait_for()
    assert seen() == (top + 2, left - 3)
    assert (address_fields(page)["query"], address_fields(page)["key"]) == ("20", "14"), "a drag must not select a cell"
    page.locator("gf-pattern gf-matrix.piece .frame").focus()
    for _ in range(16):
        page.keyboard.press("ArrowDown")
    page.wait_for_function(f"() => location.hash.includes('query={min(36, len(probs) - 1)}')")
    assert seen()[0] > top + 2, "the tile must follow the cursor"


# ---- head roles view


def test_role_example_opens_attention_view(open_page, server, trace):
    page = open_page(server.url + view_path("roles", layer=0, head=0))
    view = page.locator("gf-view-roles")
    view.get_by_role("button", name="duplicate").click()
    view.locator("gf-bars button").first.click()
    scores, evidence = trace.roles().scores.duplicate, trace.roles().evidence["duplicate"]
    layer, head = divmod(int(scores.argmax()), 4)
    probs = trace[f"blocks.{layer}.attn.probs"][head].numpy()
    same = [(probs[q, k], q, k) for q in range(len(probs)) for k in range(q) if trace.ids[k] == trace.ids[q]]
    share, query, key = max(same)
    assert tuple(evidence[layer][head][:2]) == (query, key)
    shown = view.get_by_text(f"Block {layer}, head {head} scores highest at token {query}")
    shown.wait_for()
    assert f"{100 * share:.1f}%" in shown_text(shown)
    view.get_by_role("button", name="Open in attention view").click()
    page.locator("gf-view-cell ol").wait_for()
    where = {name: int(address_fields(page)[name]) for name in ("layer", "head", "query", "key")}
    assert where == {"layer": layer, "head": head, "query": query, "key": key}


# ---- next token view


def test_lens_grid_matches_lens_of_visible_tokens(open_page, server, lm, trace):
    page = open_page(server.url + view_path("lens", query=20))
    page.locator("gf-lens-grid [aria-busy=false]").wait_for()
    for query in (20, 22):
        if query != 20:
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowRight")
            page.wait_for_function("() => location.hash.includes('query=22')")
            page.locator("gf-lens-grid button[aria-pressed=true][title='token 22']").wait_for()
            page.locator("gf-lens-grid [aria-busy=false]").wait_for()
        near = list(range(query - 4, query + 5))
        real = trace.lens(top=1, position=tuple(near))
        page.locator("gf-lens-grid td.cell").nth(5 * 9 - 1).wait_for()
        for row, shown in zip(real.rows, page.locator("gf-lens-grid .grid tbody tr").all(), strict=True):
            cells = shown.locator("td.cell").all_inner_texts()
            words = [re.split(r"\s(?=[<\d])", one.replace("\u00a0", " "))[0].strip() for one in cells]
            assert [raw_text(word) for word in words] == [top[0].token for top in row.top]


def test_lens_streams_rows_and_disconnect_cancels(open_page, server, monkeypatch):
    row, rows, go = lens._row, [], threading.Event()

    def slowly(t, name, at, top):
        rows.append(name)
        if len(rows) > 1:
            go.wait()
        return row(t, name, at, top)

    monkeypatch.setattr(lens, "_row", slowly)
    page = open_page(server.url + view_path("lens", text="One day Mia found a bell.", query=4, layer=0, head=0, key=1))
    page.locator("gf-lens-grid td.cell").first.wait_for()
    while len(rows) < 2:
        page.wait_for_timeout(10)
    shown = page.locator("gf-lens-grid .grid tbody tr")
    assert [one.locator("td.cell").count() > 0 for one in shown.all()] == [True] + [False] * (shown.count() - 1)
    page.get_by_role("link", name="Tokenizer").click()
    queue = server.app.state.queue
    while not any(job.cancelled for job in queue._quick):
        page.wait_for_timeout(10)
    go.set()
    page.locator("gf-view-tokenizer .tree").wait_for()
    while queue.state["running"]:
        page.wait_for_timeout(10)
    assert len(rows) == 2


def test_sample_frequencies(open_page, server, trace):
    last = trace.n_prompt - 1
    page = open_page(server.url + view_path("lens", query=last, seed=3, _temperature=2))
    view = page.locator("gf-lens-sampling")
    view.get_by_role("button", name="Sample 1,000 times").click()
    drawn = view.locator(".stage").filter(has_text="sampled")
    drawn.locator("tr").first.wait_for()

    def check(seed):
        real = trace.sampling(position=last, temperature=2.0, top=12, draws=1000, seed=seed)
        shown = [numbers_in(row.locator("td.n"))[-1] for row in drawn.locator("tr").all()]
        assert shown == [pytest.approx(n / 10, abs=0.06) for n in real.draws]
        return shown

    first = check(3)
    view.get_by_role("button", name="Sample 1,000 times").click()
    page.wait_for_function("() => location.hash.includes('_sample_seed=1')")
    page.wait_for_load_state("networkidle")
    assert check(4) != first
    view.get_by_role("button", name="Sample once").click()
    view.get_by_text("sampled:").wait_for()
    real = trace.sampling(position=last, temperature=2.0, top=12, draws=1, seed=4)
    best = [token.text for token, n in zip(real.tokens, real.draws, strict=True) if n]
    assert best == [] or best[0] == raw_text(shown_text(view.get_by_text("sampled:").locator(".tok")))


# ---- cache view


def test_cache_off_and_stepping(open_page, server, lm, trace):
    page = open_page(server.url + view_path("cache", layer=1, head=0, query=5))
    view = page.locator("gf-view-cache")
    view.locator("gf-matrix canvas").wait_for()
    n, prompt = len(trace.ids), trace.n_prompt
    status = view.locator("p[role=status]").first
    assert [int(one) for one in numbers_in(status)][-1] == n
    view.get_by_role("button", name="cache off").click()
    view.get_by_text("Without a cache").wait_for()
    again = prompt + sum(range(prompt + 1, n + 1))
    assert again in numbers_in(status)
    page.keyboard.press(",")
    view.get_by_text(f"the {n - 1}", exact=False).first.wait_for()
    assert again - n in numbers_in(status)
    slots = [numbers_in(one)[-2] for one in view.locator(".layer").all()]
    assert slots == [n - 1] * lm.config.n_layers


# ---- guided tour

CAPTION = """old => {
  const side = document.querySelector('gf-app').shadowRoot.querySelector('gf-sidebar');
  const caption = side.shadowRoot.querySelector('gf-tour-caption');
  const now = caption?.shadowRoot.textContent ?? '';
  return now.trim() !== '' && now !== old;
}"""


def test_tour_captions_show_values_of_trace(open_page, server, lm, trace):
    query, layer, head = trace.n_prompt - 1, 1, 3
    key = int(trace["blocks.1.attn.probs"][3, query].argmax())
    page = open_page(server.url + view_path("cell", layer=layer, head=head, query=query, key=key, step=0))
    caption = page.locator("gf-sidebar gf-tour-caption")
    cell = trace.cell(layer=layer, head=head, query=query, key=key)
    qkv = trace.qkv(layer=layer, head=head, position=query, dim=0)
    heads = trace.heads(layer=layer, position=query)
    block, cache, summary = trace.block(layer=layer, position=query), trace.cache(layer=layer), trace.summary()
    tokens = lm.tokens(text=ASK)
    row = lm.embedding(token=trace.ids[query], n=12)
    expected = [
        [100 * cell.prob], [qkv.products["q"].value], [cell.sum, cell.scaled, cell.entropy, cell.unscaled.entropy],
        [lm.config.n_layers * 4], [100 * max(heads.shares)], [tokens.n_bytes, len(tokens.tokens)],
        [row.token.id, row.nearest[0].value], [block.norms["attn.add"], block.norms["mlp.add"], block.d_ff],
        [lm.config.n_layers],
        [100 * summary.tokens[query + 1].top[0].value], [len(trace.ids), lm.config.context_length],
        [cache.bytes / 1024],
    ]  # fmt: skip
    before = ""
    for i, real in enumerate(expected):
        page.locator("gf-sidebar .tour").get_by_text(f"{i + 1} of 13").wait_for()
        page.wait_for_function(CAPTION, arg=before)
        before = caption.evaluate("e => e.shadowRoot.textContent")
        words = " ".join(shown_text(one) for one in caption.locator("p").all())
        for value in map(float, real):
            assert any(is_close(one, value, 2) for one in parse_numbers(words)), (i, value, words)
        if i < 11:
            page.locator("gf-sidebar .tour").get_by_role("button", name="Next").click()


# ---- accessibility


def test_focused_strip_has_table(open_page, server, trace):
    page = open_page(server.url + view_path("cell", layer=2, head=1, query=20, key=11))
    strip = page.locator("gf-attention-steps gf-strip").first
    strip.wait_for()
    assert strip.locator("table").count() == 0
    strip.locator(".frame").focus()
    cells = strip.locator("table td").all_inner_texts()
    q = trace["blocks.2.attn.q_rot"][20, 1]
    assert len(cells) == len(q)
    assert all(is_close(parse_numbers(one.replace("−", "-"))[0], real) for one, real in zip(cells, q, strict=True))


def test_streamed_views_are_lens_and_roles():
    assert {name for name, view in VIEWS.items() if view.rows} == {"lens", "roles"}

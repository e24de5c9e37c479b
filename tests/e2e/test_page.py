"""Browser tests of the page: texts and drawn values equal those of Python."""

import json
import re
from itertools import pairwise
from urllib.parse import quote

import numpy as np
import pytest
import torch

import glassformer
from e2e.conftest import RunningServer
from e2e.pixels import FRACTION_BOUND, SIGNED_BOUND, drawn_fractions, drawn_values

STORY = "Once Max got a key. Soon Ann found a shell. Max gave the key to Ann. Later Ann left the shell in Quito."
ASK = f"{STORY}\nWhere is the shell?"


def view_path(view: str, text: str = ASK, **place) -> str:
    """Return the path and fragment of a view."""
    fields = {"text": text, "max_tokens": 4, "step": -1, **place}
    return f"/#/{view}?" + "&".join(f"{name}={quote(str(value))}" for name, value in fields.items())


@pytest.fixture(scope="module")
def trace(lm):
    return lm.trace(ASK, max_tokens=4, temperature=0)


def shown_text(locator) -> str:
    """Return the shown text, with minus signs replaced by hyphens."""
    return locator.inner_text().replace("−", "-")


def parse_numbers(text: str) -> list[float]:
    """Return the numbers in a text, including powers of ten such as 2.4 × 10⁻⁷."""
    powers = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    text = re.sub(r" × 10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", lambda found: f"e{found[1].translate(powers)}", text)
    return [float(one.replace(",", "")) for one in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)]


def numbers_in(locator) -> list[float]:
    """Return the numbers in the shown text of an element."""
    return parse_numbers(shown_text(locator))


def is_close(seen: float, real: float, digits: int = 3) -> bool:
    """Whether a shown number equals a value to the given number of digits."""
    return abs(seen - float(real)) <= 0.6 * 10**-digits * max(1.0, 10 ** np.ceil(np.log10(abs(float(real)) + 1e-30)))


# ---- initial page


def test_page_opens_with_tokens_map_and_focus(page, lm):
    text = page.locator("textarea").first.input_value()
    trace = lm.trace(text, max_tokens=10, temperature=0)
    shown = page.locator("gf-tokens button").all_inner_texts()
    assert [one.replace("·", " ").replace("⏎", "\n") for one in shown] == list(trace.tokens)
    assert page.locator("gf-tokens button.generated").all_inner_texts() == shown[trace.n_prompt :]
    assert page.locator("gf-model-map li.block").count() == lm.config.n_layers
    heads = torch.tensor(trace.attribution(position=trace.n_prompt - 1).heads)
    layer, head = divmod(int(heads.argmax()), heads.shape[1])
    assert page.locator("gf-view-cell gf-head-picker").evaluate(
        "e => [...e.shadowRoot.querySelectorAll('select')].map(s => +s.value)"
    ) == [layer, head]
    probs = trace[f"blocks.{layer}.attn.probs"][head].numpy()
    assert probs[trace.n_prompt - 1].max() > 0.5
    drawn = drawn_fractions(page.locator("gf-view-cell gf-matrix canvas"))
    visible = np.tril(np.ones_like(probs, bool))
    assert np.isnan(drawn[~visible]).all()
    assert np.abs(drawn - probs)[visible].max() <= FRACTION_BOUND


def test_changed_weights_change_view(open_page):
    own = glassformer.load("stories", device="cpu")
    with RunningServer({"stories": own}) as server:
        place = server.url + view_path("cell", layer=1, head=3, query=20, key=5)
        before = open_page(place)
        before.locator("gf-view-cell gf-matrix canvas").wait_for()
        first, words = (
            drawn_fractions(before.locator("gf-view-cell gf-matrix canvas")),
            shown_text(before.locator("gf-view-cell ol")),
        )
        with torch.no_grad():
            own.model.blocks[1].attn.q.weight += 0.1
        after = open_page(place)
        after.locator("gf-view-cell gf-matrix canvas").wait_for()
        second = drawn_fractions(after.locator("gf-view-cell gf-matrix canvas"))
        assert shown_text(after.locator("gf-view-cell ol")) != words
        real = own.trace(ASK, max_tokens=4, temperature=0)["blocks.1.attn.probs"][3].numpy()
        visible = np.tril(np.ones_like(real, bool))
        assert second.shape == real.shape
        assert np.abs(second - real)[visible].max() <= FRACTION_BOUND
        n = min(len(first), len(second))
        assert np.nanmax(np.abs(first[:n, :n] - second[:n, :n])) > 0.1


# ---- views


def test_cell(open_page, server, trace):
    page = open_page(server.url + view_path("cell", layer=2, head=1, query=20, key=11))
    view = page.locator("gf-view-cell")
    view.locator("ol").wait_for()
    q = trace["blocks.2.attn.q_rot"][20, 1].double()
    k, v = trace["blocks.2.attn.k_rot"][:, 1].double(), trace["blocks.2.attn.v"][:, 1].double()
    scores = (k @ q)[:21] / len(q) ** 0.5
    probs = scores.softmax(-1)
    lines = [shown_text(one) for one in view.locator("ol > li").all()]
    assert is_close(parse_numbers(lines[0].split("[0]:")[1])[2], q[0] * k[11, 0])
    assert is_close(parse_numbers(lines[1])[-1], q @ k[11])
    product = parse_numbers(lines[2])
    assert is_close(product[0], q @ k[11])
    assert is_close(product[2], scores[11])
    assert "is visible" in lines[3]
    exp = (scores - scores.max()).exp()
    assert is_close(parse_numbers(lines[4])[2], exp[11])
    share = numbers_in(view.locator("ol > li").nth(5).locator("p.worked"))
    assert is_close(share[0], exp[11])
    assert is_close(share[1], exp.sum())
    assert is_close(share[2], 100 * probs[11], 2)
    assert is_close(parse_numbers(lines[6])[-1], probs @ v[:21, 0])
    bars = {int(numbers_in(row)[0]): numbers_in(row)[-1] for row in view.locator("gf-bars tr").all()}
    assert len(bars) == 10
    assert 11 in bars
    assert all(abs(value - 100 * probs[key].item()) <= 0.11 for key, value in bars.items())
    strips = view.locator("ol gf-strip canvas").all()
    top = max(q.abs().max(), k[11].abs().max()).item()
    for canvas, real, meaning, size in (
        (strips[0], q, "query", top), (strips[1], k[11], "key", top),
        (strips[2], q * k[11], "plain", (q * k[11]).abs().max().item()),
        (strips[4], v[11], "value", v[11].abs().max().item()),
    ):  # fmt: skip
        assert np.abs(drawn_values(canvas, meaning, size)[0] - real.numpy()).max() <= SIGNED_BOUND * size
    row = drawn_fractions(strips[3])[0]
    assert np.abs(row[:21] - probs.numpy()).max() <= FRACTION_BOUND
    assert (row[21:] < 1e-3).all()

    view.get_by_role("button", name="without the scale").click()
    unscaled = (k @ q)[:21].softmax(-1)
    entropies = numbers_in(view.locator(".side .row"))
    assert is_close(entropies[0], torch.special.entr(probs).sum())
    assert is_close(entropies[1], torch.special.entr(unscaled).sum())
    assert (
        np.abs(drawn_fractions(view.locator("ol gf-strip canvas").nth(3))[0][:21] - unscaled.numpy()).max()
        <= FRACTION_BOUND
    )


def test_cell_of_masked_key(open_page, server):
    page = open_page(server.url + view_path("cell", layer=0, head=0, query=3, key=9))
    page.locator("gf-view-cell ol").wait_for()
    assert "is a later token and is masked" in shown_text(page.locator("gf-view-cell ol > li").nth(3))
    assert "0.00%" in shown_text(page.locator("gf-view-cell ol > li").nth(5))


def test_qkv(open_page, server, lm, trace):
    page = open_page(server.url + view_path("qkv", layer=1, head=2, query=7, _dim=5))
    view = page.locator("gf-view-qkv")
    view.locator(".three").wait_for()
    x = trace["blocks.1.attn.x"][7].double()
    attention = lm.model.blocks[1].attn
    for i, (name, meaning) in enumerate((("q", "query"), ("k", "key"), ("v", "value"))):
        weight = getattr(attention, name).weight.double().unflatten(0, (-1, 32))[2]
        made = (weight @ x).detach()
        one = view.locator(".one").nth(i)
        assert is_close(numbers_in(one.locator("gf-formula"))[-1], made[5])
        turned = trace[f"blocks.1.attn.{name}_rot"][7, 2] if name != "v" else made
        top = max(made.abs().max().item(), turned.abs().max().item())
        drawn = drawn_values(one.locator("gf-strip canvas").nth(0), meaning, top)[0]
        assert np.abs(drawn - made.numpy()).max() <= SIGNED_BOUND * top
        row = weight[5].detach()
        seen = drawn_values(one.locator("gf-strip canvas").nth(1), "plain", row.abs().max().item())[0]
        assert np.abs(seen - row.numpy()).max() <= SIGNED_BOUND * row.abs().max()


def test_grid(open_page, server, lm, trace):
    page = open_page(server.url + view_path("grid", layer=2, head=3, query=12, key=4))
    page.locator("gf-query-heads gf-matrix").wait_for()
    rows = page.locator("gf-grid-row")
    assert rows.count() == lm.config.n_layers
    for layer in range(lm.config.n_layers):
        rows.nth(layer).locator("canvas").nth(3).wait_for()
        probs = trace[f"blocks.{layer}.attn.probs"].tensor
        small = torch.nn.functional.adaptive_max_pool2d(probs, min(48, probs.shape[-1])).numpy()
        visible = np.tril(np.ones(small.shape[1:], bool))
        for head in range(4):
            drawn = drawn_fractions(rows.nth(layer).locator("canvas").nth(head))
            assert np.abs(drawn - small[head])[visible].max() <= FRACTION_BOUND + 0.5 / 255
            assert abs(drawn[visible].max() - probs[head].max().item()) <= FRACTION_BOUND + 0.5 / 255
    pinned = drawn_fractions(page.locator("gf-query-heads canvas"))[:, :13]
    assert np.abs(pinned - trace["blocks.2.attn.probs"][:, 12, :13].numpy()).max() <= FRACTION_BOUND
    page.locator("gf-pattern canvas").hover(position={"x": 40, "y": 300})
    shown = shown_text(page.locator("gf-pattern gf-matrix .say"))
    query, key = int(re.search(r"query\s+(\d+)", shown)[1]), int(re.search(r"key\s+(\d+)", shown)[1])
    exact = float(shown.rsplit("=", 1)[1])
    assert (query, key) != (12, 4)
    assert np.float32(exact) == trace["blocks.2.attn.probs"][3, query, key].numpy()


def test_heads(open_page, server, lm, trace):
    page = open_page(server.url + view_path("heads", layer=3, head=0, query=9))
    view = page.locator("gf-view-heads")
    view.locator("table").wait_for()
    weight, z = lm.model.blocks[3].attn.o.weight.detach().double(), trace["blocks.3.attn.z"][9].double()
    parts = torch.stack([weight[:, 32 * h : 32 * h + 32] @ z[h] for h in range(4)])
    out = parts.sum(0)
    top = max(parts.abs().max(), out.abs().max()).item()
    for h in range(4):
        row = view.locator("tbody tr").nth(h)
        length, share = numbers_in(row)[-2:]
        assert is_close(length, parts[h].norm())
        assert abs(share - 100 * (parts[h] @ out / (out @ out)).item()) <= 0.06
        assert (
            np.abs(drawn_values(row.locator("canvas").nth(1), "residual", top)[0] - parts[h].numpy()).max()
            <= 0.02 * top
        )
    view.get_by_role("button", name="exclude head 1").click()
    view.get_by_text("the output changes by").wait_for()
    left = out - parts[1]
    assert is_close(numbers_in(view.locator("tr.sum"))[-1], left.norm())
    drawn = drawn_values(view.locator("tr.sum canvas"), "residual", top)[0]
    assert np.abs(drawn - left.numpy()).max() <= SIGNED_BOUND * top


def test_block(open_page, server, lm, trace):
    page = open_page(server.url + view_path("block", layer=1, query=9))
    view = page.locator("gf-view-block")
    view.locator("table").wait_for()
    lengths = parse_numbers(" ".join(shown_text(one) for one in view.locator(".sum .n").all()))
    names = ("resid_pre", "attn.add", "mlp.add", "resid_post")
    vectors = [trace[f"blocks.1.{name}"][9].double() for name in names]
    assert all(is_close(seen, v.norm()) for seen, v in zip(lengths, vectors, strict=True))
    act, down = trace["blocks.1.mlp.act"][9].double(), lm.model.blocks[1].mlp.down.weight.detach().double()
    written = act.abs() * down.norm(dim=0)
    best = int(written.argmax())
    first = view.locator("tbody tr").first
    assert numbers_in(first)[0] == best
    assert is_close(numbers_in(first)[1], act[best])
    added = lm.model.norm.weight.detach().double() * down[:, best] * act[best]  # as the final norm scales it
    towards = (lm.model.head.weight.detach().double() @ added).topk(4).indices.tolist()
    words = [lm.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in towards]
    shown = first.locator("td").nth(2).locator(".tok").all_inner_texts()
    plain = [(one.replace("·", " "), word) for one, word in zip(shown, words, strict=True) if word.isprintable()]
    assert all(one == word for one, word in plain if "�" not in word)
    view.locator("input[type=checkbox]").nth(1).uncheck()
    view.get_by_text("output without unchecked parts").wait_for()
    assert is_close(numbers_in(view.locator(".sum .n").last)[0], (vectors[3] - vectors[2]).norm())


def test_next_token(open_page, server, lm, trace):
    last = trace.n_prompt - 1
    page = open_page(server.url + view_path("lens", query=last, _temperature=0.5, _top_p=0.9))
    page.locator("gf-lens-grid [aria-busy=false]").wait_for()
    page.locator("gf-lens-attribution gf-matrix").wait_for()
    page.locator("gf-lens-sampling .stage").nth(2).wait_for()
    norm, head = lm.model.norm, lm.model.head.weight.detach()
    for i, row in enumerate(page.locator("gf-lens-grid table.best tr").all()):
        name = f"blocks.{i}.resid_pre" if i < lm.config.n_layers else f"blocks.{i - 1}.resid_post"
        probs = (norm(trace[name][last]) @ head.T).softmax(-1).detach()
        best = probs.topk(5)
        words = [lm.tokenizer.token_bytes(j).decode("utf-8", "replace") for j in best.indices.tolist()]
        assert row.locator(".tok").first.inner_text().replace("·", " ").replace("⏎", "\n") == words[0]
        assert abs(float(re.findall(r"([\d.]+)%", shown_text(row))[0]) - 100 * best.values[0].item()) <= 0.11
    shares_of = trace.attribution(position=last)
    size = np.abs(np.array(shares_of.heads)).max()
    drawn = drawn_values(page.locator("gf-lens-attribution canvas"), "query", size)
    assert np.abs(drawn - np.array(shares_of.heads)).max() <= SIGNED_BOUND * size
    assert is_close(numbers_in(page.locator("gf-lens-attribution .row > span").nth(1))[0], shares_of.difference)
    logits = trace["final.logits"][last].double()[: lm.tokenizer.vocab_size]
    cold = (logits / 0.5).softmax(-1).sort(descending=True)
    stages = page.locator("gf-lens-sampling .stage")
    left = int((cold.values.cumsum(0) - cold.values < 0.9).sum())
    assert [numbers_in(one.locator("h3"))[-1] for one in stages.all()] == [
        len(logits),
        len(logits),
        left,
    ]
    assert abs(numbers_in(stages.nth(1).locator("tr").first)[-1] - 100 * cold.values[0].item()) <= 0.06


def test_roles(open_page, server, trace):
    page = open_page(server.url + view_path("roles", layer=0, head=0))
    page.locator("gf-view-roles gf-receipt").wait_for()  # all layers are received
    probs = torch.stack([trace[f"blocks.{i}.attn.probs"].tensor for i in range(4)]).double()  # [L, H, T, T]
    previous = probs.diagonal(-1, -2, -1).mean(-1)
    drawn = drawn_fractions(page.locator("gf-view-roles gf-matrix canvas").first)
    assert np.abs(drawn - previous.numpy()).max() <= FRACTION_BOUND
    itself = probs.diagonal(0, -2, -1).mean(-1)
    assert (
        np.abs(drawn_fractions(page.locator("gf-view-roles gf-matrix canvas").nth(4)) - itself.numpy()).max()
        <= FRACTION_BOUND
    )


def test_tokenizer(open_page, server, lm):
    page = open_page(server.url + view_path("tokenizer", text="Zoë found a snark.", max_tokens=0, _word="snark"))
    view = page.locator("gf-view-tokenizer")
    view.locator(".tree").wait_for()
    ids = lm.encode("Zoë found a snark.")
    rows = [one.locator("td").all_inner_texts() for one in view.locator("tbody tr").all()]
    assert [int(row[1]) for row in rows] == ids
    assert [bytes.fromhex(row[2]) for row in rows] == [lm.tokenizer.token_bytes(i) for i in ids]
    data = json.loads(lm.tokenizer.backend.json)["model"]
    ranks = {(m if isinstance(m, list) else m.split(" "))[0] + "\0" + (m if isinstance(m, list) else m.split(" "))[1]: r
             for r, m in enumerate(data["merges"])}  # fmt: skip
    parts, steps = list("snark"), [list("snark")]
    while pairs := [(ranks[a + "\0" + b], i) for i, (a, b) in enumerate(pairwise(parts))
                    if a + "\0" + b in ranks]:  # fmt: skip
        _, i = min(pairs)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
        steps.append(parts)
    assert [one.locator(".piece").all_inner_texts() for one in view.locator(".tree li").all()] == steps


def test_embedding(open_page, server, lm):
    token = lm.encode("Quito")[-1]
    page = open_page(server.url + view_path("embedding", _token=token))
    view = page.locator("gf-view-embedding")
    view.locator("svg").wait_for()
    table = lm.model.embed.weight.detach().double()
    cosine = (table @ table[token]) / (table.norm(dim=1) * table[token].norm())
    cosine[token] = -2
    best = cosine.topk(12)
    shown = [numbers_in(row)[-1] for row in view.locator("gf-bars tr").all()]
    assert np.abs(np.array(shown) - best.values.numpy()).max() <= 6e-4
    top = table[token].abs().max().item()
    drawn = drawn_values(view.locator("gf-strip canvas"), "residual", top)[0]
    assert np.abs(drawn - table[token].numpy()).max() <= SIGNED_BOUND * top


def test_tracks_and_replaced_token(open_page, server, lm, trace):
    page = open_page(server.url + view_path("tracks", layer=2, query=9))
    view = page.locator("gf-view-tracks")
    canvas = view.locator("gf-matrix canvas").first
    canvas.wait_for()
    last = lm.config.n_layers
    names = [*(f"blocks.{i}.resid_pre" for i in range(last)), f"blocks.{last - 1}.resid_post"]
    stream = [trace[name].tensor for name in names]
    norms = torch.stack(stream).norm(dim=-1).numpy()
    assert np.abs(drawn_values(canvas, "residual", norms.max()) - norms).max() <= SIGNED_BOUND * norms.max()
    view.locator("input[name=text]").fill(" bell")
    view.get_by_role("button", name="Compare").click()
    view.locator("gf-matrix").nth(1).wait_for()
    ids = list(trace.ids)
    ids[9] = lm.tokenizer.encode(" bell", bare=True)[0]
    other = lm.trace(ids)
    pairs = zip(stream, names, strict=True)
    apart = torch.stack([mine - other[name].tensor for mine, name in pairs]).norm(dim=-1).numpy()
    drawn = drawn_values(view.locator("gf-matrix canvas").nth(1), "key", apart.max())
    assert np.abs(drawn - apart).max() <= SIGNED_BOUND * apart.max()
    assert (drawn[:, :9] == 0).all()
    assert re.search(
        r"The texts differ from token 9 on\.\s+Tokens before 9 are unchanged", shown_text(view.locator("section"))
    )


def test_replaced_token_in_edited_trace(open_page, server):
    edits = [{"op": "ablate", "point": "blocks.1.mlp.out", "position": 4}]
    view = open_page(server.url + view_path("tracks", layer=2, query=9, edits=json.dumps(edits))).locator(
        "gf-view-tracks"
    )
    view.locator("gf-matrix canvas").first.wait_for()
    view.locator("input[name=text]").fill(" bell")
    view.get_by_role("button", name="Compare").click()
    line = view.get_by_text("The texts differ from token 9 on.")
    line.wait_for()
    assert "blocks.1.mlp.out affects token 4 from block 1 on. Tokens before 4 are unchanged" in " ".join(
        shown_text(line).split()
    )


def test_truncated_text_changes_no_cell(open_page, server, lm, trace):
    page = open_page(server.url + view_path("tracks", layer=2, query=3))
    view = page.locator("gf-view-tracks")
    view.locator("gf-matrix canvas").wait_for()
    view.get_by_label("number of tokens to keep").evaluate(
        "e => { e.value = 12; e.dispatchEvent(new Event('change')) }"
    )
    notice = view.get_by_text("The 12 remaining tokens are unchanged")
    notice.wait_for()
    names, short = [*(f"blocks.{i}.resid_pre" for i in range(4)), "blocks.3.resid_post"], lm.trace(trace.ids[:12])
    apart = max((trace[name][:12] - short[name].tensor).norm(dim=-1).max().item() for name in names)
    longest = max(trace[name].tensor.norm(dim=-1).max().item() for name in names)
    assert apart < 1e-5 * longest
    assert numbers_in(notice)[1] < 1e-5 * longest  # rounding depends on the threads
    drawn = drawn_values(view.locator("gf-matrix canvas").nth(1), "key", longest)
    assert drawn.shape == (5, 12)
    assert np.abs(drawn).max() < 1e-3 * longest


def test_cosine_of_two_embeddings(open_page, server, lm):
    one, two = (lm.encode(word)[-1] for word in (" Quito", " Rome"))
    page = open_page(server.url + view_path("embedding", _token=one, _token2=two))
    formula = page.locator("gf-view-embedding gf-formula")
    formula.wait_for()
    a, b = lm.model.embed.weight[[one, two]].detach().double()
    assert abs(numbers_in(formula)[-1] - (a @ b / (a.norm() * b.norm())).item()) <= 6e-4


def test_second_tokenizer(open_page, lm):
    from glassformer.text.train import train_tokenizer

    other = glassformer.LanguageModel(lm.model, train_tokenizer([ASK] * 20, vocab_size=300))
    with RunningServer({"stories": lm, "other": other}) as both:
        page = open_page(both.url + view_path("tokenizer", model="stories", _other_model="other"))
        second = page.locator("gf-view-tokenizer .second")
        second.wait_for()
        assert second.locator("span").count() == len(other.tokenizer.encode(ASK))
        assert second.locator("span").count() != len(lm.encode(ASK))


def test_cache(open_page, server, lm, trace):
    page = open_page(server.url + view_path("cache", layer=1, head=0, query=5))
    view = page.locator("gf-view-cache")
    view.locator("gf-matrix canvas").wait_for()
    mass = trace["blocks.1.attn.probs"].tensor.sum(1).numpy()
    drawn = drawn_values(view.locator("gf-matrix canvas"), "key", mass.max())
    assert np.abs(drawn - mass).max() <= SIGNED_BOUND * mass.max()
    n = len(trace.ids)
    assert [numbers_in(one)[-2:] for one in view.locator(".layer").all()] == [[n, lm.config.context_length]] * 4
    total = n * 4 * 2 * 4 * 32 * 4  # tokens, blocks, keys and values, heads, head_dim, bytes
    assert f"{total / 1024:.0f} KiB" in shown_text(view.locator("section"))
    view.get_by_text("the same logits").wait_for()


def test_map(open_page, server, lm, trace):
    page = open_page(server.url + view_path("map", query=trace.n_prompt - 1, _stage=lm.config.n_layers + 2))
    view = page.locator("gf-view-map")
    view.locator("table").first.wait_for()
    view.get_by_text("measured now").wait_for()
    total = sum(p.numel() for p in lm.model.parameters())
    assert f"{total:,}" in shown_text(view.locator("section"))
    parts = [numbers_in(row.locator("td").nth(1))[0] for row in view.locator(".wrap tbody tr").all()]
    assert sum(parts) == total
    view.locator("gf-flow gf-bars tr").first.wait_for()
    chosen = view.locator("gf-flow gf-bars tr.chosen th").inner_text().strip().replace("·", " ")
    assert chosen == lm.generate(ASK, max_tokens=1, temperature=0).text

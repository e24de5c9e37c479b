"""The page in a real browser: what it says and draws is what Python has."""

import json
import re
from itertools import pairwise
from urllib.parse import quote

import numpy as np
import pytest
import torch

import glassformer
from e2e.conftest import Served
from e2e.pixels import SHARE_BOUND, SIGNED_BOUND, shares, signed

STORY = "Once Max got a key. Soon Ann found a shell. Max gave the key to Ann. Later Ann left the shell in Quito."
ASK = f"{STORY}\nWhere is the shell?"


def at(view: str, text: str = ASK, **place) -> str:
    """An address of the page."""
    fields = {"text": text, "write": 4, "step": -1, **place}
    return f"/#/{view}?" + "&".join(f"{name}={quote(str(value))}" for name, value in fields.items())


@pytest.fixture(scope="module")
def trace(lm):
    return lm.trace(ASK, max_tokens=4, temperature=0)


def said(locator) -> str:
    """A text as the page shows it, its true minus signs as hyphens."""
    return locator.inner_text().replace("−", "-")


def numbers(text: str) -> list[float]:
    powers = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    text = re.sub(r" × 10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", lambda found: f"e{found[1].translate(powers)}", text)
    return [float(one.replace(",", "")) for one in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)]


def close(seen: float, real: float, digits: int = 3) -> bool:
    """Whether a number is shown as it is, to so many digits."""
    return abs(seen - float(real)) <= 0.6 * 10**-digits * max(1.0, 10 ** np.ceil(np.log10(abs(float(real)) + 1e-30)))


# ---- how it opens


def test_it_opens_with_a_story_its_tokens_the_map_and_a_head_that_does_something(page, lm):
    text = page.locator("textarea").first.input_value()
    trace = lm.trace(text, max_tokens=10, temperature=0)
    shown = page.locator("gf-tokens button").all_inner_texts()
    assert [one.replace("·", " ").replace("⏎", "\n") for one in shown] == list(trace.tokens)
    assert page.locator("gf-tokens button.written").all_inner_texts() == shown[trace.n_prompt :]
    assert page.locator("gf-map li.block").count() == lm.config.n_layers
    heads = torch.tensor(trace.attribution(position=trace.n_prompt - 1).heads)
    layer, head = divmod(int(heads.argmax()), heads.shape[1])
    assert page.locator("gf-view-cell gf-where").evaluate(
        "e => [...e.shadowRoot.querySelectorAll('select')].map(s => +s.value)"
    ) == [layer, head]
    probs = trace[f"blocks.{layer}.attn.probs"][head].numpy()
    assert probs[trace.n_prompt - 1].max() > 0.5
    drawn = shares(page.locator("gf-view-cell gf-matrix canvas"))
    visible = np.tril(np.ones_like(probs, bool))
    assert np.isnan(drawn[~visible]).all()
    assert np.abs(drawn - probs)[visible].max() <= SHARE_BOUND


def test_a_change_of_the_model_changes_the_picture(open_page):
    own = glassformer.load("stories", device="cpu")
    with Served({"stories": own}) as served:
        place = served.url + at("cell", layer=1, head=3, query=20, key=5)
        before = open_page(place)
        before.locator("gf-view-cell gf-matrix canvas").wait_for()
        first, words = shares(before.locator("gf-view-cell gf-matrix canvas")), said(before.locator("gf-view-cell ol"))
        with torch.no_grad():
            own.model.blocks[1].attn.q.weight += 0.1
        after = open_page(place)
        after.locator("gf-view-cell gf-matrix canvas").wait_for()
        second = shares(after.locator("gf-view-cell gf-matrix canvas"))
        assert said(after.locator("gf-view-cell ol")) != words
        real = own.trace(ASK, max_tokens=4, temperature=0)["blocks.1.attn.probs"][3].numpy()
        visible = np.tril(np.ones_like(real, bool))
        assert second.shape == real.shape
        assert np.abs(second - real)[visible].max() <= SHARE_BOUND
        n = min(len(first), len(second))
        assert np.nanmax(np.abs(first[:n, :n] - second[:n, :n])) > 0.1


# ---- each picture beside Python


def test_cell(open_page, served, trace):
    page = open_page(served.url + at("cell", layer=2, head=1, query=20, key=11))
    view = page.locator("gf-view-cell")
    view.locator("ol").wait_for()
    q = trace["blocks.2.attn.q_rot"][20, 1].double()
    k, v = trace["blocks.2.attn.k_rot"][:, 1].double(), trace["blocks.2.attn.v"][:, 1].double()
    scores = (k @ q)[:21] / len(q) ** 0.5
    probs = scores.softmax(-1)
    lines = [said(one) for one in view.locator("ol > li").all()]
    assert close(numbers(lines[0].split("[0]:")[1])[2], q[0] * k[11, 0])
    assert close(numbers(lines[1])[-1], q @ k[11])
    product = numbers(lines[2])
    assert close(product[0], q @ k[11])
    assert close(product[2], scores[11])
    assert "may be seen" in lines[3]
    exp = (scores - scores.max()).exp()
    assert close(numbers(lines[4])[2], exp[11])
    share = numbers(said(view.locator("ol > li").nth(5).locator("p.worked")))
    assert close(share[0], exp[11])
    assert close(share[1], exp.sum())
    assert close(share[2], 100 * probs[11], 2)
    assert close(numbers(lines[6])[-1], probs @ v[:21, 0])
    bars = {int(numbers(said(row))[0]): numbers(said(row))[-1] for row in view.locator("gf-bars tr").all()}
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
        assert np.abs(signed(canvas, meaning, size)[0] - real.numpy()).max() <= SIGNED_BOUND * size
    row = shares(strips[3])[0]
    assert np.abs(row[:21] - probs.numpy()).max() <= SHARE_BOUND
    assert (row[21:] < 1e-3).all()

    view.get_by_role("button", name="without the scale").click()
    unscaled = (k @ q)[:21].softmax(-1)
    entropies = numbers(said(view.locator(".side .row")))
    assert close(entropies[0], torch.special.entr(probs).sum())
    assert close(entropies[1], torch.special.entr(unscaled).sum())
    assert np.abs(shares(view.locator("ol gf-strip canvas").nth(3))[0][:21] - unscaled.numpy()).max() <= SHARE_BOUND


def test_cell_of_a_key_that_comes_later(open_page, served):
    page = open_page(served.url + at("cell", layer=0, head=0, query=3, key=9))
    page.locator("gf-view-cell ol").wait_for()
    assert "comes later and may not be seen" in said(page.locator("gf-view-cell ol > li").nth(3))
    assert "0.00%" in said(page.locator("gf-view-cell ol > li").nth(5))


def test_qkv(open_page, served, lm, trace):
    page = open_page(served.url + at("qkv", layer=1, head=2, query=7, _dim=5))
    view = page.locator("gf-view-qkv")
    view.locator(".three").wait_for()
    x = trace["blocks.1.attn.x"][7].double()
    attention = lm.model.blocks[1].attn
    for i, (name, meaning) in enumerate((("q", "query"), ("k", "key"), ("v", "value"))):
        weight = getattr(attention, name).weight.double().unflatten(0, (-1, 32))[2]
        made = (weight @ x).detach()
        one = view.locator(".one").nth(i)
        assert close(numbers(said(one.locator("gf-formula")))[-1], made[5])
        turned = trace[f"blocks.1.attn.{name}_rot"][7, 2] if name != "v" else made
        top = max(made.abs().max().item(), turned.abs().max().item())
        drawn = signed(one.locator("gf-strip canvas").nth(0), meaning, top)[0]
        assert np.abs(drawn - made.numpy()).max() <= SIGNED_BOUND * top
        row = weight[5].detach()
        seen = signed(one.locator("gf-strip canvas").nth(1), "plain", row.abs().max().item())[0]
        assert np.abs(seen - row.numpy()).max() <= SIGNED_BOUND * row.abs().max()


def test_grid(open_page, served, lm, trace):
    page = open_page(served.url + at("grid", layer=2, head=3, query=12, key=4))
    page.locator("gf-pinned gf-matrix").wait_for()
    rows = page.locator("gf-grid-row")
    assert rows.count() == lm.config.n_layers
    for layer in range(lm.config.n_layers):
        rows.nth(layer).locator("canvas").nth(3).wait_for()
        probs = trace[f"blocks.{layer}.attn.probs"].tensor
        small = torch.nn.functional.adaptive_max_pool2d(probs, min(48, probs.shape[-1])).numpy()
        visible = np.tril(np.ones(small.shape[1:], bool))
        for head in range(4):
            drawn = shares(rows.nth(layer).locator("canvas").nth(head))
            assert np.abs(drawn - small[head])[visible].max() <= SHARE_BOUND + 0.5 / 255
            assert abs(drawn[visible].max() - probs[head].max().item()) <= SHARE_BOUND + 0.5 / 255
    pinned = shares(page.locator("gf-pinned canvas"))[:, :13]
    assert np.abs(pinned - trace["blocks.2.attn.probs"][:, 12, :13].numpy()).max() <= SHARE_BOUND
    page.locator("gf-pattern canvas").hover(position={"x": 40, "y": 300})
    shown = said(page.locator("gf-pattern gf-matrix .say"))
    query, key = int(re.search(r"query\s+(\d+)", shown)[1]), int(re.search(r"key\s+(\d+)", shown)[1])
    exact = float(shown.rsplit(":", 1)[1])
    assert (query, key) != (12, 4)
    assert np.float32(exact) == trace["blocks.2.attn.probs"][3, query, key].numpy()


def test_heads(open_page, served, lm, trace):
    page = open_page(served.url + at("heads", layer=3, head=0, query=9))
    view = page.locator("gf-view-heads")
    view.locator("table").wait_for()
    weight, z = lm.model.blocks[3].attn.o.weight.detach().double(), trace["blocks.3.attn.z"][9].double()
    parts = torch.stack([weight[:, 32 * h : 32 * h + 32] @ z[h] for h in range(4)])
    out = parts.sum(0)
    top = max(parts.abs().max(), out.abs().max()).item()
    for h in range(4):
        row = view.locator("tbody tr").nth(h)
        length, share = numbers(said(row))[-2:]
        assert close(length, parts[h].norm())
        assert abs(share - 100 * (parts[h] @ out / (out @ out)).item()) <= 0.06
        assert np.abs(signed(row.locator("canvas").nth(1), "residual", top)[0] - parts[h].numpy()).max() <= 0.02 * top
    view.get_by_role("button", name="mute head 1").click()
    view.get_by_text("what is added changes by").wait_for()
    left = out - parts[1]
    assert close(numbers(said(view.locator("tr.sum")))[-1], left.norm())
    drawn = signed(view.locator("tr.sum canvas"), "residual", top)[0]
    assert np.abs(drawn - left.numpy()).max() <= SIGNED_BOUND * top


def test_block(open_page, served, lm, trace):
    page = open_page(served.url + at("block", layer=1, query=9))
    view = page.locator("gf-view-block")
    view.locator("table").wait_for()
    lengths = numbers(" ".join(said(one) for one in view.locator(".sum .n").all()))
    names = ("resid_pre", "attn.add", "mlp.add", "resid_post")
    vectors = [trace[f"blocks.1.{name}"][9].double() for name in names]
    assert all(close(seen, v.norm()) for seen, v in zip(lengths, vectors, strict=True))
    act, down = trace["blocks.1.mlp.act"][9].double(), lm.model.blocks[1].mlp.down.weight.detach().double()
    written = act.abs() * down.norm(dim=0)
    best = int(written.argmax())
    first = view.locator("tbody tr").first
    assert numbers(said(first))[0] == best
    assert close(numbers(said(first))[1], act[best])
    towards = (lm.model.head.weight.detach().double() @ down[:, best] * act[best]).topk(4).indices.tolist()
    words = [lm.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in towards]
    shown = first.locator("td").nth(2).locator(".tok").all_inner_texts()
    plain = [(one.replace("·", " "), word) for one, word in zip(shown, words, strict=True) if word.isprintable()]
    assert all(one == word for one, word in plain if "�" not in word)
    view.locator("input[type=checkbox]").nth(1).uncheck()
    view.get_by_text("after, without it").wait_for()
    assert close(numbers(said(view.locator(".sum .n").last))[0], (vectors[3] - vectors[2]).norm())


def test_next_token(open_page, served, lm, trace):
    last = trace.n_prompt - 1
    page = open_page(served.url + at("lens", query=last, _temperature=0.5, _top_p=0.9))
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
        assert abs(float(re.findall(r"([\d.]+)%", said(row))[0]) - 100 * best.values[0].item()) <= 0.11
    shares_of = trace.attribution(position=last)
    size = np.abs(np.array(shares_of.heads)).max()
    drawn = signed(page.locator("gf-lens-attribution canvas"), "query", size)
    assert np.abs(drawn - np.array(shares_of.heads)).max() <= SIGNED_BOUND * size
    assert close(numbers(said(page.locator("gf-lens-attribution .row > span").nth(1)))[0], shares_of.difference)
    logits = trace["final.logits"][last].double()[: lm.tokenizer.vocab_size]
    cold = (logits / 0.5).softmax(-1).sort(descending=True)
    stages = page.locator("gf-lens-sampling .stage")
    left = int((cold.values.cumsum(0) - cold.values < 0.9).sum())
    assert [numbers(said(one.locator("h3")))[-1] for one in stages.all()] == [len(logits), len(logits), left]
    assert abs(numbers(said(stages.nth(1).locator("tr").first))[-1] - 100 * cold.values[0].item()) <= 0.06


def test_roles(open_page, served, trace):
    page = open_page(served.url + at("roles", layer=0, head=0))
    page.locator("gf-view-roles gf-receipt").wait_for()  # all layers have come
    probs = torch.stack([trace[f"blocks.{i}.attn.probs"].tensor for i in range(4)]).double()  # [L, H, T, T]
    previous = probs.diagonal(-1, -2, -1).mean(-1)
    drawn = shares(page.locator("gf-view-roles gf-matrix canvas").first)
    assert np.abs(drawn - previous.numpy()).max() <= SHARE_BOUND
    itself = probs.diagonal(0, -2, -1).mean(-1)
    assert np.abs(shares(page.locator("gf-view-roles gf-matrix canvas").nth(4)) - itself.numpy()).max() <= SHARE_BOUND


def test_tokenizer(open_page, served, lm):
    page = open_page(served.url + at("tokenizer", text="Zoë found a snark.", write=0, _word="snark"))
    view = page.locator("gf-view-tokenizer")
    view.locator(".tree").wait_for()
    ids = lm.encode("Zoë found a snark.")
    rows = [one.locator("td").all_inner_texts() for one in view.locator("tbody tr").all()]
    assert [int(row[1]) for row in rows] == ids
    assert [bytes.fromhex(row[2]) for row in rows] == [lm.tokenizer.token_bytes(i) for i in ids]
    data = json.loads(lm.tokenizer.core.json)["model"]
    ranks = {(m if isinstance(m, list) else m.split(" "))[0] + "\0" + (m if isinstance(m, list) else m.split(" "))[1]: r
             for r, m in enumerate(data["merges"])}  # fmt: skip
    parts, steps = list("snark"), [list("snark")]
    while pairs := [(ranks[a + "\0" + b], i) for i, (a, b) in enumerate(pairwise(parts))
                    if a + "\0" + b in ranks]:  # fmt: skip
        _, i = min(pairs)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
        steps.append(parts)
    assert [one.locator(".piece").all_inner_texts() for one in view.locator(".tree li").all()] == steps


def test_embedding(open_page, served, lm):
    token = lm.encode("Quito")[-1]
    page = open_page(served.url + at("embedding", _token=token))
    view = page.locator("gf-view-embedding")
    view.locator("svg").wait_for()
    table = lm.model.embed.weight.detach().double()
    cosine = (table @ table[token]) / (table.norm(dim=1) * table[token].norm())
    cosine[token] = -2
    best = cosine.topk(12)
    shown = [numbers(said(row))[-1] for row in view.locator("gf-bars tr").all()]
    assert np.abs(np.array(shown) - best.values.numpy()).max() <= 6e-4
    top = table[token].abs().max().item()
    drawn = signed(view.locator("gf-strip canvas"), "residual", top)[0]
    assert np.abs(drawn - table[token].numpy()).max() <= SIGNED_BOUND * top


def test_tracks_and_a_changed_token(open_page, served, lm, trace):
    page = open_page(served.url + at("tracks", layer=2, query=9))
    view = page.locator("gf-view-tracks")
    canvas = view.locator("gf-matrix canvas").first
    canvas.wait_for()
    last = lm.config.n_layers
    names = [*(f"blocks.{i}.resid_pre" for i in range(last)), f"blocks.{last - 1}.resid_post"]
    stream = [trace[name].tensor for name in names]
    norms = torch.stack(stream).norm(dim=-1).numpy()
    assert np.abs(signed(canvas, "residual", norms.max()) - norms).max() <= SIGNED_BOUND * norms.max()
    view.locator("input[name=text]").fill(" bell")
    view.get_by_role("button", name="Read again").click()
    view.locator("gf-matrix").nth(1).wait_for()
    ids = list(trace.ids)
    ids[9] = lm.tokenizer.encode(" bell", bare=True)[0]
    other = lm.trace(ids)
    pairs = zip(stream, names, strict=True)
    apart = torch.stack([mine - other[name].tensor for mine, name in pairs]).norm(dim=-1).numpy()
    drawn = signed(view.locator("gf-matrix canvas").nth(1), "key", apart.max())
    assert np.abs(drawn - apart).max() <= SIGNED_BOUND * apart.max()
    assert (drawn[:, :9] == 0).all()
    assert re.search(r"The texts part at token 9\. Left of\s+token 9 nothing changes", said(view.locator("section")))


def test_a_changed_token_of_an_edited_text(open_page, served):
    edits = [{"op": "ablate", "point": "blocks.1.mlp.out", "position": 4}]
    view = open_page(served.url + at("tracks", layer=2, query=9, edits=json.dumps(edits))).locator("gf-view-tracks")
    view.locator("gf-matrix canvas").first.wait_for()
    view.locator("input[name=text]").fill(" bell")
    view.get_by_role("button", name="Read again").click()
    line = view.get_by_text("The texts part at token 9.")
    line.wait_for()
    assert "blocks.1.mlp.out reaches token 4, block 1. Left of token 4 nothing changes" in " ".join(said(line).split())


def test_a_text_that_ends_earlier_changes_no_cell(open_page, served, lm, trace):
    page = open_page(served.url + at("tracks", layer=2, query=3))
    view = page.locator("gf-view-tracks")
    view.locator("gf-matrix canvas").wait_for()
    view.get_by_label("where the text ends").evaluate("e => { e.value = 12; e.dispatchEvent(new Event('change')) }")
    said_so = view.get_by_text("Of the 12 tokens that both have")
    said_so.wait_for()
    names, short = [*(f"blocks.{i}.resid_pre" for i in range(4)), "blocks.3.resid_post"], lm.trace(trace.ids[:12])
    apart = max((trace[name][:12] - short[name].tensor).norm(dim=-1).max().item() for name in names)
    longest = max(trace[name].tensor.norm(dim=-1).max().item() for name in names)
    assert apart < 1e-5 * longest
    assert numbers(said(said_so))[1] < 1e-5 * longest  # a rounding, which is another on every run of other threads
    drawn = signed(view.locator("gf-matrix canvas").nth(1), "key", longest)
    assert drawn.shape == (5, 12)
    assert np.abs(drawn).max() < 1e-3 * longest


def test_two_rows_of_the_table(open_page, served, lm):
    one, two = (lm.encode(word)[-1] for word in (" Quito", " Rome"))
    page = open_page(served.url + at("embedding", _token=one, _with=two))
    formula = page.locator("gf-view-embedding gf-formula")
    formula.wait_for()
    a, b = lm.model.embed.weight[[one, two]].detach().double()
    assert abs(numbers(said(formula))[-1] - (a @ b / (a.norm() * b.norm())).item()) <= 6e-4


def test_a_second_tokenizer(open_page, lm):
    from glassformer.text.train import train_tokenizer

    other = glassformer.LanguageModel(lm.model, train_tokenizer([ASK] * 20, vocab_size=300))
    with Served({"stories": lm, "other": other}) as both:
        page = open_page(both.url + at("tokenizer", model="stories", _beside="other"))
        second = page.locator("gf-view-tokenizer .second")
        second.wait_for()
        assert second.locator("span").count() == len(other.tokenizer.encode(ASK))
        assert second.locator("span").count() != len(lm.encode(ASK))


def test_cache(open_page, served, lm, trace):
    page = open_page(served.url + at("cache", layer=1, head=0, query=5))
    view = page.locator("gf-view-cache")
    view.locator("gf-matrix canvas").wait_for()
    mass = trace["blocks.1.attn.probs"].tensor.sum(1).numpy()
    drawn = signed(view.locator("gf-matrix canvas"), "key", mass.max())
    assert np.abs(drawn - mass).max() <= SIGNED_BOUND * mass.max()
    n = len(trace.ids)
    assert [numbers(said(one))[-2:] for one in view.locator(".layer").all()] == [[n, lm.config.context_length]] * 4
    total = n * 4 * 2 * 4 * 32 * 4  # tokens, blocks, keys and values, heads, numbers, bytes
    assert f"{total / 1024:.0f} KiB" in said(view.locator("section"))
    view.get_by_text("the same logits").wait_for()


def test_map(open_page, served, lm, trace):
    page = open_page(served.url + at("map", query=trace.n_prompt - 1, _stage=lm.config.n_layers + 2))
    view = page.locator("gf-view-map")
    view.locator("table").first.wait_for()
    view.get_by_text("measured now").wait_for()
    total = sum(p.numel() for p in lm.model.parameters())
    assert f"{total:,}" in said(view.locator("section"))
    parts = [numbers(said(row.locator("td").nth(1)))[0] for row in view.locator(".wrap tbody tr").all()]
    assert sum(parts) == total
    view.locator("gf-flow gf-bars tr").first.wait_for()
    chosen = view.locator("gf-flow gf-bars tr.chosen th").inner_text().strip().replace("·", " ")
    assert chosen == lm.generate(ASK, max_tokens=1, temperature=0).text

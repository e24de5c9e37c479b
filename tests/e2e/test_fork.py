"""View 13 in a real browser: the two texts, the edits that make them differ, and sweeps; each against Python's own."""

import copy
import json
import re
from typing import Any
from urllib.parse import unquote_plus

import numpy as np
import pytest
import torch

import glassformer
from e2e.conftest import AXE, Served, missing
from e2e.pixels import SIGNED_BOUND, pixels, signed
from e2e.test_page import ASK, at, close, numbers, said
from e2e.test_using import place, tab_to
from glassformer.inspect.edits import edit as edits_module
from glassformer.inspect.edits.edit import ablate, add, knockout, replace, scale, sha256

CUT = {"op": "ablate", "point": "blocks.0.attn.z", "head": 0}
OTHER = ASK.replace("shell in Quito", "shell in Rome")


def opened(open_page, served, edits=(), **more):
    page = open_page(served.url + at("fork", **({"edits": json.dumps(edits)} if edits else {}), **more))
    page.locator("gf-edit-form form").wait_for()
    return page


def plain(shown: list[str]) -> str:
    return "".join(shown).replace("·", " ").replace("⏎", "\n")


def texts(page) -> list[str]:
    """What was written, as it was and under the edits, once both are there."""
    page.locator("gf-text-comparison gf-receipt").wait_for()
    both = page.locator("gf-text-comparison .text").all()
    return [plain(one.locator(".t.generated").all_inner_texts()) for one in both]


def written(trace) -> str:
    return "".join(trace.tokens[trace.n_prompt :])


def under(lm, *edit) -> str:
    """What the model writes under some edits."""
    return lm.generate(ASK, max_tokens=4, temperature=0, edit=edit).text


def python(page, lm, trace, element: str):
    """What the line of Python under a picture gives."""
    line = page.locator(f"{element} gf-receipt code").inner_text()
    known = {name: getattr(edits_module, name) for name in ("ablate", "add", "knockout", "patch", "replace", "scale")}
    return eval(line, known | {"lm": lm, "t": trace})


def drawn(page, fork) -> np.ndarray:
    """The strip of KLs as numbers, where the largest is known."""
    kls = np.array([one.kl for one in fork.steps if one.kl is not None])
    return signed(page.locator("gf-text-comparison gf-strip canvas"), "plain", kls.max())[0]


@pytest.fixture(scope="module")
def trace(lm):
    return lm.trace(ASK, max_tokens=4, temperature=0)


def swept(page, total: int):
    """The heat map of a sweep that has ended."""
    page.locator("gf-sweep .run").get_by_text(f"{total} of {total}").wait_for()
    return page.locator("gf-sweep gf-matrix canvas")


# ---- the two texts


def test_both_texts_and_how_far_apart_they_are(open_page, served, lm, trace):
    page = opened(open_page, served, [CUT], query=trace.n_prompt - 1)
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[ablate("blocks.0.attn.z", head=0)])
    fork = trace.fork(edited)
    assert fork.parts is not None
    assert texts(page) == [written(trace), written(edited)]
    assert texts(page)[1] == under(lm, ablate("blocks.0.attn.z", head=0))
    verdict = page.locator("gf-text-comparison .verdict")
    assert f"diverge at token {fork.parts}" in said(verdict)
    assert plain(verdict.locator(".tok").all_inner_texts()) == trace.tokens[fork.parts] + edited.tokens[fork.parts]
    kls = np.array([one.kl for one in fork.steps if one.kl is not None])
    assert len(kls) == fork.parts
    assert np.abs(drawn(page, fork) - kls).max() <= SIGNED_BOUND * kls.max()
    again = python(page, lm, trace, "gf-text-comparison")
    assert again == fork
    last = trace.n_prompt - 1
    assert close(numbers(said(page.locator("gf-text-comparison .kl")))[0], float(kls[last]), 4)
    for summary, bars in zip((trace, edited), page.locator("gf-text-comparison gf-bars").all(), strict=True):
        best = summary["final.logits"].tensor[last].softmax(-1).topk(5).values
        shown = [float(row.split()[-1].rstrip("%")) for row in bars.locator("tr").all_inner_texts() if "<" not in row]
        assert shown == [pytest.approx(100 * p.item(), abs=0.051) for p in best[: len(shown)]]
    page.locator("gf-text-comparison .text").nth(1).locator("button").nth(3).click()
    chosen = int(place(page)["query"])
    page.locator("gf-sidebar .token").get_by_text(f"Token {chosen}:").wait_for()
    assert chosen != last
    assert close(numbers(said(page.locator("gf-text-comparison .kl")))[0], float(kls[chosen]), 4)


def test_a_drawn_text_has_one_seed_on_both_sides(open_page, served, lm):
    page = opened(open_page, served, [CUT], text="One day Mia", max_tokens=12, temperature=0.9, seed=7)
    how = {"max_tokens": 12, "temperature": 0.9, "seed": 7}
    both = [lm.generate("One day Mia", edit=edit, **how).text for edit in ([], [ablate("blocks.0.attn.z", head=0)])]
    assert texts(page) == both
    assert both[0] != both[1]
    assert python(page, lm, lm.trace("One day Mia", **how), "gf-text-comparison").parts is not None


def test_an_edit_that_changes_nothing_says_so(open_page, served, trace):
    page = opened(open_page, served, [{"op": "scale", "point": "blocks.1.attn.z", "head": 3, "factor": 1}])
    assert texts(page) == [written(trace)] * 2
    assert f"No change: the same {len(trace)} tokens, and the KL divergence is exactly 0" in said(page.locator(".verdict"))
    assert (pixels(page.locator("gf-text-comparison gf-strip canvas"))[..., :3] == [250, 249, 246]).all()
    assert page.locator("gf-text-comparison .t.other").count() == 0


def test_numbers_that_an_edit_breaks_are_shown_as_that(open_page, served, lm):
    edit = {"op": "replace", "point": "blocks.3.mlp.out", "value": "NaN", "position": 20}
    page = opened(open_page, served, [edit], query=20)
    assert "The KL divergence is NaN" in said(page.locator("gf-text-comparison .verdict"))
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[replace("blocks.3.mlp.out", float("nan"), position=20)])
    kls = [one.kl for one in lm.trace(ASK, max_tokens=4, temperature=0).fork(edited).steps if one.kl is not None]
    odd = pixels(page.locator("gf-text-comparison gf-strip canvas"))[0, :, 3] == 0
    assert odd.tolist() == np.isnan(kls).tolist()
    assert 0 < odd.sum() < len(kls)
    assert said(page.locator("gf-text-comparison .kl")) == "NaN"
    assert "NaN" in said(page.locator("gf-text-comparison gf-strip .say"))


# ---- edits


def fill(page, name: str, value: object) -> None:
    page.locator(f"gf-edit-form [name={name}]").fill(str(value))


def make(page, kind: str, **fields: object) -> None:
    page.locator("gf-edit-form").get_by_role("button", name=kind, exact=True).click()
    for name, value in fields.items():
        if name in ("point", "position", "of"):
            page.locator(f"gf-edit-form select[aria-label={name}]").select_option(str(value))
        else:
            fill(page, name, value)
    page.get_by_role("button", name="Add edit").click()


def address(page) -> list[dict]:
    return json.loads(unquote_plus(place(page)["edits"]))


def wait_for_edit(page) -> None:
    page.wait_for_function("() => location.hash.includes('edits')")


def test_a_ablated_head_is_one_whose_columns_of_w_o_are_zero(open_page, served, lm, trace):
    page = opened(open_page, served, layer=0, head=0)
    make(page, "ablate")
    wait_for_edit(page)
    assert address(page) == [CUT]
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        model.blocks[0].attn.o.weight[:, :32] = 0
    without = glassformer.LanguageModel(model, lm.tokenizer)
    assert texts(page) == [written(trace), without.generate(ASK, max_tokens=4, temperature=0).text]
    other = without.trace(ASK, max_tokens=4, temperature=0)
    kls = np.array([one.kl for one in trace.fork(other).steps if one.kl is not None])
    assert np.abs(drawn(page, trace.fork(other)) - kls).max() <= SIGNED_BOUND * kls.max()


def test_a_patch_at_all_positions_is_the_source_run(open_page, served, lm, trace):
    assert len(lm.encode(OTHER)) == len(lm.encode(ASK))
    page = opened(open_page, served, layer=0)
    make(page, "patch", text=OTHER)
    wait_for_edit(page)
    source = lm.trace(OTHER, max_tokens=4, temperature=0)
    assert texts(page) == [written(trace), written(source)]
    assert written(source) != written(trace)
    fork = python(page, lm, trace, "gf-text-comparison")
    n = trace.n_prompt
    p, q = (one["final.logits"].tensor[:n].double().log_softmax(-1) for one in (trace, source))
    apart = (p.exp() * (p - q)).sum(-1).numpy()
    assert np.abs(drawn(page, fork)[:n] - apart).max() <= SIGNED_BOUND * apart.max()
    make(page, "patch", position="here", point="resid_post")
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('resid_post')")
    assert address(page)[1]["position"] == int(place(page)["query"])


@pytest.mark.parametrize("of", ["tokens", "texts"])
def test_a_vector_that_steers_is_pythons(open_page, served, lm, trace, of):
    plus, minus = (" Rome", " Quito") if of == "tokens" else (OTHER, ASK)
    page = opened(open_page, served, layer=2)
    make(page, "steer", of=of, plus=plus, minus=minus)
    wait_for_edit(page)
    strength = 80 if of == "tokens" else 2
    page.locator("gf-edit-form input[type=range]").evaluate(
        "(e, to) => { e.value = to; for (const what of ['input', 'change']) e.dispatchEvent(new Event(what)) }",
        strength,
    )
    page.wait_for_function('to => decodeURIComponent(location.hash).includes(`"factor":${to}`)', arg=strength)
    assert len(address(page)) == 1
    if of == "tokens":
        vector = lm.model.embed.weight[lm.encode(plus)[-1]] - lm.model.embed.weight[lm.encode(minus)[-1]]
        page.get_by_text("strength × (E[plus] − E[minus])").wait_for()
    else:
        vector = lm.trace(plus)["blocks.2.resid_post"][-1] - lm.trace(minus)["blocks.2.resid_post"][-1]
        page.get_by_text("the stream after this block at the last token of each text").wait_for()
    edit = add("blocks.2.resid_post", vector.detach(), scale=strength, position=-1)
    steered = lm.trace(ASK, max_tokens=4, temperature=0, edit=[edit])
    assert texts(page) == [written(trace), written(steered)]
    assert written(steered) != written(trace)
    assert python(page, lm, trace, "gf-text-comparison") == trace.fork(steered)
    kept = [one["edits"] for one in page.request.get(f"{served.url}/v1/traces").json()["data"]]
    assert [edit.json] in kept, "to the bit: a vector's name is its numbers'"
    assert edit.vector == sha256(vector)


def test_a_number_is_typed_into_a_cell_and_a_key_is_hidden(open_page, served, lm, trace):
    page = opened(open_page, served, layer=1, head=3, query=20, key=4)
    page.get_by_role("button", name="set a value").click()
    page.locator("gf-edit-form select[aria-label=point]").select_option("attn.scores")
    now = page.locator("gf-edit-form .now")
    now.wait_for()
    score = trace["blocks.1.attn.scores"][3, 20, 4]
    assert abs(float(said(now)) - score.item()) <= 1e-6 * abs(score.item())
    make(page, "set a value", point="attn.scores", value="25.5")
    wait_for_edit(page)
    first = replace("blocks.1.attn.scores", 25.5, head=3, query=20, key=4)
    assert texts(page)[1] == under(lm, first)
    make(page, "mask a key", key=7)
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('knockout')")
    second = knockout("blocks.1.attn.scores", head=3, query=20, key=7)
    texts(page)
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[first, second])
    assert python(page, lm, trace, "gf-text-comparison") == trace.fork(edited)
    make(page, "scale", factor="-2.5", point="mlp.add", position="here")
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('mlp.add')")
    third = scale("blocks.1.mlp.add", -2.5, position=20)
    texts(page)
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[first, second, third])
    assert python(page, lm, trace, "gf-text-comparison") == trace.fork(edited)


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("scale", {"factor": "much"}, "factor"),
        ("set a value", {"value": "x"}, "value"),
        ("set a value", {"point": "resid_mid", "value": "1", "dim": "128"}, "dim must be from 0 to 127, got 128"),
        ("mask a key", {"query": "3", "key": "9"}, "query 3 does not see key 9"),
        ("steer", {"of": "tokens", "plus": " Quito Rome", "minus": " Rome"}, "is 2 tokens, but exactly one is required"),
        ("patch", {"text": "key " * 300}, "192"),
    ],
)
def test_what_cannot_be_is_said_beside_the_field(open_page, served, kind, fields, sentence):
    page = opened(open_page, served, layer=1, head=2, query=20, key=4)
    make(page, kind, **fields)
    page.locator("gf-edit-form [role=alert]").filter(has_text=re.compile(re.escape(sentence))).wait_for()
    assert "edits" not in place(page)
    assert page.locator("gf-text-comparison .text").count() == 1, "what was there stands"


def test_edits_are_put_aside_and_back_and_taken_back(open_page, served, lm, trace):
    more = {"op": "ablate", "point": "blocks.1.attn.z", "head": 0}
    page = opened(open_page, served, [CUT, more])
    both = [ablate("blocks.0.attn.z", head=0), ablate("blocks.1.attn.z", head=0)]
    want = [under(lm, *edit) for edit in (both, both[:1])]
    assert want[0] != want[1]
    assert texts(page)[1] == want[0]
    page.get_by_role("button", name="block 1, head 0 ablated", exact=True).click()
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('off')")
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 1")
    assert texts(page)[1] == want[1]
    page.get_by_role("button", name="block 1, head 0 ablated", exact=True).click()
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 2")
    assert texts(page)[1] == want[0]
    page.get_by_role("button", name="remove all edits").click()
    page.get_by_text("No edits.").wait_for()
    assert "edits" not in place(page)
    assert plain(page.locator("gf-text-comparison .t.generated").all_inner_texts()) == written(trace)
    page.go_back()
    page.get_by_role("button", name="remove all edits").wait_for()
    assert texts(page)[1] == want[0]


def test_a_link_is_the_same_page_again_on_another_server(open_page, served, lm, trace):
    steer = {"op": "add", "point": "blocks.2.resid_post", "of": "tokens", "plus": " Rome", "minus": " Quito",
             "factor": 80, "position": -1}  # fmt: skip
    taken = {"op": "patch", "point": "blocks.1.resid_pre", "from_text": OTHER, "position": 12}
    page = opened(open_page, served, [steer, taken], query=12, _sweep="1", _over="layers")
    first = texts(page)
    page.get_by_text("8 of 8").wait_for()
    shown = said(page.locator("gf-text-comparison .all"))
    with Served({"stories": lm}) as another:
        again = open_page(another.url + page.url.removeprefix(served.url))
        again.get_by_text("8 of 8").wait_for()
        assert texts(again) == first
        assert said(again.locator("gf-text-comparison .all")) == shown
    assert first[0] == written(trace) != first[1]


def test_two_tabs_edit_at_once(open_page, served, lm):
    tabs = [opened(open_page, served, [{**CUT, "head": head}]) for head in (0, 3)]
    for head, page in zip((0, 3), tabs, strict=True):
        assert texts(page)[1] == under(lm, ablate("blocks.0.attn.z", head=head))
    for page, (layer, head) in zip(tabs, ((1, 0), (1, 2)), strict=True):
        page.locator("gf-edit-form gf-head-picker select").nth(0).select_option(str(layer))
        page.locator("gf-edit-form gf-head-picker select").nth(1).select_option(str(head))
        page.get_by_role("button", name="Add edit").click()
    for first, second, page in zip((0, 3), (0, 2), tabs, strict=True):
        page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 2")
        both = [ablate("blocks.0.attn.z", head=first), ablate("blocks.1.attn.z", head=second)]
        assert texts(page)[1] == under(lm, *both)


# ---- for everybody


def test_keys_alone_make_an_edit_and_run_a_sweep(open_page, served, lm):
    page = opened(open_page, served, layer=0, head=0)
    tab_to(page, "Add edit")
    page.keyboard.press("Enter")
    wait_for_edit(page)
    assert texts(page)[1] == under(lm, ablate("blocks.0.attn.z", head=0))
    tab_to(page, "Run")
    page.keyboard.press("Enter")
    swept(page, 16)
    tab_to(page, "Effect of each edit")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.locator("gf-sweep .picked").wait_for()
    assert (place(page)["layer"], place(page)["head"]) == ("1", "0")
    tab_to(page, "Keep this edit")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 2")
    assert [one["point"] for one in address(page)] == ["blocks.0.attn.z", "blocks.1.attn.z"]
    tab_to(page, "block 1, head 0 ablated")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 1")


def test_axe_finds_nothing_serious_and_nothing_is_scrolled_sideways(open_page, served):
    if not AXE.is_file():
        missing(f"{AXE}: `make page` brings it")
    page = opened(
        open_page, served, [CUT, {**CUT, "head": 3, "off": True}], step=12, _sweep="1", _op="patch", _metric="logits"
    )
    swept(page, 16)
    texts(page)
    page.evaluate(AXE.read_text())
    for width, height, scheme in ((1280, 800, "light"), (1280, 800, "dark"), (390, 844, "light")):
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        for kind in page.locator("gf-edit-form .ops button").all():
            kind.click()
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            told = "\n".join(f"{one['id']}: {[node['html'][:160] for node in one['nodes'][:3]]}" for one in serious)
            assert not serious, f"{width}×{height}, {scheme}: {told}"
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_walk_ends_with_a_cause(open_page, served, lm, trace):
    page = open_page(served.url + at("fork", step=12, layer=0, head=0, query=trace.n_prompt - 1, key=5))
    walk = page.locator("gf-sidebar .tour")
    walk.get_by_role("button", name="Ablate head 0 of block 0").click()
    fork = trace.fork(lm.trace(ASK, max_tokens=4, temperature=0, edit=[ablate("blocks.0.attn.z", head=0)]))
    kls = [one.kl for one in fork.steps if one.kl is not None]
    walk.get_by_text("change most after").wait_for()
    told = " ".join(said(one) for one in walk.locator("gf-tour-caption p").all())
    assert any(close(seen, max(kls)) for seen in numbers(told))
    assert f"diverge at token {fork.parts}" in told


def test_a_narrow_page_does_all_of_it(open_page, served, lm):
    page = open_page(served.url + at("fork", layer=0, head=0), width=390, height=844)
    page.locator("gf-edit-form form").wait_for()
    make(page, "ablate")
    wait_for_edit(page)
    assert texts(page)[1] == under(lm, ablate("blocks.0.attn.z", head=0))
    page.get_by_role("button", name="Run").click()
    swept(page, 16)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_server_says_which_models_are_not_edited(open_page):
    from inspect_subjects import subject

    encoder: Any = subject("encoders", "bert")[0]
    with Served({"encoder": encoder}) as served:
        page = open_page(served.url + at("fork", "a dog ate", model="encoder"))
        reason = page.request.get(f"{served.url}/v1/models/encoder/views/anatomy").json()["refused"]["fork"]
        page.locator("gf-notice").get_by_text(reason).wait_for()

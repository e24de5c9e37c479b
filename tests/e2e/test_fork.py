"""Browser tests of the edits view: comparison of texts, edits and sweeps. Values equal Python's."""

import copy
import json
import re
from typing import Any
from urllib.parse import unquote_plus

import numpy as np
import pytest
import torch

import glassformer
from e2e.conftest import RunningServer, assert_accessible
from e2e.pixels import SIGNED_BOUND, drawn_values, pixels
from e2e.test_page import ASK, is_close, numbers_in, parse_numbers, shown_text, view_path
from e2e.test_using import address_fields, tab_to
from glassformer.inspect.edits import edit as edits_module
from glassformer.inspect.edits.edit import ablate, add, knockout, replace, scale, sha256

CUT = {"op": "ablate", "point": "blocks.0.attn.z", "head": 0}
OTHER = ASK.replace("shell in Quito", "shell in Rome")


def open_view(open_page, server, edits=(), **more):
    page = open_page(server.url + view_path("fork", **({"edits": json.dumps(edits)} if edits else {}), **more))
    page.locator("gf-edit-form form").wait_for()
    return page


def raw_text(shown: list[str]) -> str:
    return "".join(shown).replace("·", " ").replace("⏎", "\n")


def both_texts(page) -> list[str]:
    """Wait for the comparison; return the original and the edited generated text."""
    page.locator("gf-text-comparison gf-receipt").wait_for()
    both = page.locator("gf-text-comparison .text").all()
    return [raw_text(one.locator(".t.generated").all_inner_texts()) for one in both]


def generated_text(trace) -> str:
    return "".join(trace.tokens[trace.n_prompt :])


def generate_with(lm, *edit) -> str:
    """Generate text under some edits."""
    return lm.generate(ASK, max_tokens=4, temperature=0, edit=edit).text


def evaluate_receipt(page, lm, trace, element: str):
    """Evaluate the Python expression shown below a view."""
    line = page.locator(f"{element} gf-receipt code").inner_text()
    known = {name: getattr(edits_module, name) for name in ("ablate", "add", "knockout", "patch", "replace", "scale")}
    return eval(line, known | {"lm": lm, "t": trace})


def drawn_kl(page, fork) -> np.ndarray:
    """Return the drawn KL divergences."""
    kls = np.array([one.kl for one in fork.steps if one.kl is not None])
    return drawn_values(page.locator("gf-text-comparison gf-strip canvas"), "plain", kls.max())[0]


@pytest.fixture(scope="module")
def trace(lm):
    return lm.trace(ASK, max_tokens=4, temperature=0)


def finished_sweep(page, total: int):
    """Wait for the end of a sweep; return the canvas of its heat map."""
    page.locator("gf-sweep .run").get_by_text(f"{total} of {total}").wait_for()
    return page.locator("gf-sweep gf-matrix canvas")


# ---- text comparison


def test_text_comparison_and_kl(open_page, server, lm, trace):
    page = open_view(open_page, server, [CUT], query=trace.n_prompt - 1)
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[ablate("blocks.0.attn.z", head=0)])
    fork = trace.fork(edited)
    assert fork.diverges_at is not None
    assert both_texts(page) == [generated_text(trace), generated_text(edited)]
    assert both_texts(page)[1] == generate_with(lm, ablate("blocks.0.attn.z", head=0))
    verdict = page.locator("gf-text-comparison .verdict")
    assert f"diverge at token {fork.diverges_at}" in shown_text(verdict)
    shown = raw_text(verdict.locator(".tok").all_inner_texts())
    assert shown == trace.tokens[fork.diverges_at] + edited.tokens[fork.diverges_at]
    kls = np.array([one.kl for one in fork.steps if one.kl is not None])
    assert len(kls) == fork.diverges_at
    assert np.abs(drawn_kl(page, fork) - kls).max() <= SIGNED_BOUND * kls.max()
    again = evaluate_receipt(page, lm, trace, "gf-text-comparison")
    assert again == fork
    last = trace.n_prompt - 1
    assert is_close(numbers_in(page.locator("gf-text-comparison .kl"))[0], float(kls[last]), 4)
    for summary, bars in zip((trace, edited), page.locator("gf-text-comparison gf-bars").all(), strict=True):
        best = summary["final.logits"].tensor[last].softmax(-1).topk(5).values
        shown = [float(row.split()[-1].rstrip("%")) for row in bars.locator("tr").all_inner_texts() if "<" not in row]
        assert shown == [pytest.approx(100 * p.item(), abs=0.051) for p in best[: len(shown)]]
    page.locator("gf-text-comparison .text").nth(1).locator("button").nth(3).click()
    chosen = int(address_fields(page)["query"])
    page.locator("gf-sidebar .token").get_by_text(f"Token {chosen}:").wait_for()
    assert chosen != last
    assert is_close(numbers_in(page.locator("gf-text-comparison .kl"))[0], float(kls[chosen]), 4)


def test_sampled_texts_use_same_seed(open_page, server, lm):
    page = open_view(open_page, server, [CUT], text="One day Mia", max_tokens=12, temperature=0.9, seed=7)
    options = {"max_tokens": 12, "temperature": 0.9, "seed": 7}
    both = [lm.generate("One day Mia", edit=edit, **options).text for edit in ([], [ablate("blocks.0.attn.z", head=0)])]
    assert both_texts(page) == both
    assert both[0] != both[1]
    assert evaluate_receipt(page, lm, lm.trace("One day Mia", **options), "gf-text-comparison").diverges_at is not None


def test_identity_edit_changes_nothing(open_page, server, trace):
    page = open_view(open_page, server, [{"op": "scale", "point": "blocks.1.attn.z", "head": 3, "factor": 1}])
    assert both_texts(page) == [generated_text(trace)] * 2
    assert f"No change: the same {len(trace)} tokens, and the KL divergence is exactly 0" in shown_text(
        page.locator(".verdict")
    )
    assert (pixels(page.locator("gf-text-comparison gf-strip canvas"))[..., :3] == [250, 249, 246]).all()
    assert page.locator("gf-text-comparison .t.other").count() == 0


def test_nan_from_edit_is_shown(open_page, server, lm):
    edit = {"op": "replace", "point": "blocks.3.mlp.out", "value": "NaN", "position": 20}
    page = open_view(open_page, server, [edit], query=20)
    assert "The KL divergence is NaN" in shown_text(page.locator("gf-text-comparison .verdict"))
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[replace("blocks.3.mlp.out", float("nan"), position=20)])
    kls = [one.kl for one in lm.trace(ASK, max_tokens=4, temperature=0).fork(edited).steps if one.kl is not None]
    odd = pixels(page.locator("gf-text-comparison gf-strip canvas"))[0, :, 3] == 0
    assert odd.tolist() == np.isnan(kls).tolist()
    assert 0 < odd.sum() < len(kls)
    assert shown_text(page.locator("gf-text-comparison .kl")) == "NaN"
    assert "NaN" in shown_text(page.locator("gf-text-comparison gf-strip .say"))


# ---- edits


def fill_field(page, name: str, value: object) -> None:
    page.locator(f"gf-edit-form [name={name}]").fill(str(value))


def add_edit(page, kind: str, **fields: object) -> None:
    page.locator("gf-edit-form").get_by_role("button", name=kind, exact=True).click()
    for name, value in fields.items():
        if name in ("point", "position", "of"):
            page.locator(f"gf-edit-form select[aria-label={name}]").select_option(str(value))
        else:
            fill_field(page, name, value)
    page.get_by_role("button", name="Add edit").click()


def address_edits(page) -> list[dict]:
    return json.loads(unquote_plus(address_fields(page)["edits"]))


def wait_for_edit(page) -> None:
    page.wait_for_function("() => location.hash.includes('edits')")


def test_ablated_head_equals_zeroed_w_o_columns(open_page, server, lm, trace):
    page = open_view(open_page, server, layer=0, head=0)
    add_edit(page, "ablate")
    wait_for_edit(page)
    assert address_edits(page) == [CUT]
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        model.blocks[0].attn.o.weight[:, :32] = 0
    without = glassformer.LanguageModel(model, lm.tokenizer)
    assert both_texts(page) == [generated_text(trace), without.generate(ASK, max_tokens=4, temperature=0).text]
    other = without.trace(ASK, max_tokens=4, temperature=0)
    kls = np.array([one.kl for one in trace.fork(other).steps if one.kl is not None])
    assert np.abs(drawn_kl(page, trace.fork(other)) - kls).max() <= SIGNED_BOUND * kls.max()


def test_patch_at_all_positions_equals_source(open_page, server, lm, trace):
    assert len(lm.encode(OTHER)) == len(lm.encode(ASK))
    page = open_view(open_page, server, layer=0)
    add_edit(page, "patch", text=OTHER)
    wait_for_edit(page)
    source = lm.trace(OTHER, max_tokens=4, temperature=0)
    assert both_texts(page) == [generated_text(trace), generated_text(source)]
    assert generated_text(source) != generated_text(trace)
    fork = evaluate_receipt(page, lm, trace, "gf-text-comparison")
    n = trace.n_prompt
    p, q = (one["final.logits"].tensor[:n].double().log_softmax(-1) for one in (trace, source))
    apart = (p.exp() * (p - q)).sum(-1).numpy()
    assert np.abs(drawn_kl(page, fork)[:n] - apart).max() <= SIGNED_BOUND * apart.max()
    add_edit(page, "patch", position="here", point="resid_post")
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('resid_post')")
    assert address_edits(page)[1]["position"] == int(address_fields(page)["query"])


@pytest.mark.parametrize("of", ["tokens", "texts"])
def test_steering_vector_equals_python(open_page, server, lm, trace, of):
    plus, minus = (" Rome", " Quito") if of == "tokens" else (OTHER, ASK)
    page = open_view(open_page, server, layer=2)
    add_edit(page, "steer", of=of, plus=plus, minus=minus)
    wait_for_edit(page)
    strength = 80 if of == "tokens" else 2
    page.locator("gf-edit-form input[type=range]").evaluate(
        "(e, to) => { e.value = to; for (const what of ['input', 'change']) e.dispatchEvent(new Event(what)) }",
        strength,
    )
    page.wait_for_function('to => decodeURIComponent(location.hash).includes(`"factor":${to}`)', arg=strength)
    assert len(address_edits(page)) == 1
    if of == "tokens":
        vector = lm.model.embed.weight[lm.encode(plus)[-1]] - lm.model.embed.weight[lm.encode(minus)[-1]]
        page.get_by_text("strength × (E[plus] − E[minus])").wait_for()
    else:
        vector = lm.trace(plus)["blocks.2.resid_post"][-1] - lm.trace(minus)["blocks.2.resid_post"][-1]
        page.get_by_text("the stream after this block at the last token of each text").wait_for()
    edit = add("blocks.2.resid_post", vector.detach(), scale=strength, position=-1)
    steered = lm.trace(ASK, max_tokens=4, temperature=0, edit=[edit])
    assert both_texts(page) == [generated_text(trace), generated_text(steered)]
    assert generated_text(steered) != generated_text(trace)
    assert evaluate_receipt(page, lm, trace, "gf-text-comparison") == trace.fork(steered)
    kept = [one["edits"] for one in page.request.get(f"{server.url}/v1/traces").json()["data"]]
    assert [edit.json] in kept, "the vector must be equal bit for bit"
    assert edit.vector == sha256(vector)


def test_set_value_mask_key_and_scale(open_page, server, lm, trace):
    page = open_view(open_page, server, layer=1, head=3, query=20, key=4)
    page.get_by_role("button", name="set a value").click()
    page.locator("gf-edit-form select[aria-label=point]").select_option("attn.scores")
    now = page.locator("gf-edit-form .now")
    now.wait_for()
    score = trace["blocks.1.attn.scores"][3, 20, 4]
    assert abs(float(shown_text(now)) - score.item()) <= 1e-6 * abs(score.item())
    add_edit(page, "set a value", point="attn.scores", value="25.5")
    wait_for_edit(page)
    first = replace("blocks.1.attn.scores", 25.5, head=3, query=20, key=4)
    assert both_texts(page)[1] == generate_with(lm, first)
    add_edit(page, "mask a key", key=7)
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('knockout')")
    second = knockout("blocks.1.attn.scores", head=3, query=20, key=7)
    both_texts(page)
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[first, second])
    assert evaluate_receipt(page, lm, trace, "gf-text-comparison") == trace.fork(edited)
    add_edit(page, "scale", factor="-2.5", point="mlp.add", position="here")
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('mlp.add')")
    third = scale("blocks.1.mlp.add", -2.5, position=20)
    both_texts(page)
    edited = lm.trace(ASK, max_tokens=4, temperature=0, edit=[first, second, third])
    assert evaluate_receipt(page, lm, trace, "gf-text-comparison") == trace.fork(edited)


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("scale", {"factor": "much"}, "factor"),
        ("set a value", {"value": "x"}, "value"),
        ("set a value", {"point": "resid_mid", "value": "1", "dim": "128"}, "dim must be from 0 to 127, got 128"),
        ("mask a key", {"query": "3", "key": "9"}, "query 3 does not see key 9"),
        (
            "steer",
            {"of": "tokens", "plus": " Quito Rome", "minus": " Rome"},
            "is 2 tokens, but exactly one is required",
        ),
        ("patch", {"text": "key " * 300}, "192"),
    ],
)
def test_invalid_edit_shows_error(open_page, server, kind, fields, sentence):
    page = open_view(open_page, server, layer=1, head=2, query=20, key=4)
    add_edit(page, kind, **fields)
    page.locator("gf-edit-form [role=alert]").filter(has_text=re.compile(re.escape(sentence))).wait_for()
    assert "edits" not in address_fields(page)
    assert page.locator("gf-text-comparison .text").count() == 1, "the previous text must still be shown"


def test_edits_are_disabled_enabled_and_removed(open_page, server, lm, trace):
    more = {"op": "ablate", "point": "blocks.1.attn.z", "head": 0}
    page = open_view(open_page, server, [CUT, more])
    both = [ablate("blocks.0.attn.z", head=0), ablate("blocks.1.attn.z", head=0)]
    want = [generate_with(lm, *edit) for edit in (both, both[:1])]
    assert want[0] != want[1]
    assert both_texts(page)[1] == want[0]
    page.get_by_role("button", name="block 1, head 0 ablated", exact=True).click()
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('off')")
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 1")
    assert both_texts(page)[1] == want[1]
    page.get_by_role("button", name="block 1, head 0 ablated", exact=True).click()
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 2")
    assert both_texts(page)[1] == want[0]
    page.get_by_role("button", name="remove all edits").click()
    page.get_by_text("No edits.").wait_for()
    assert "edits" not in address_fields(page)
    assert raw_text(page.locator("gf-text-comparison .t.generated").all_inner_texts()) == generated_text(trace)
    page.go_back()
    page.get_by_role("button", name="remove all edits").wait_for()
    assert both_texts(page)[1] == want[0]


def test_link_restores_page_on_another_server(open_page, server, lm, trace):
    steer = {"op": "add", "point": "blocks.2.resid_post", "of": "tokens", "plus": " Rome", "minus": " Quito",
             "factor": 80, "position": -1}  # fmt: skip
    taken = {"op": "patch", "point": "blocks.1.resid_pre", "from_text": OTHER, "position": 12}
    page = open_view(open_page, server, [steer, taken], query=12, _sweep="1", _over="layers")
    first = both_texts(page)
    page.get_by_text("8 of 8").wait_for()
    shown = shown_text(page.locator("gf-text-comparison .all"))
    with RunningServer({"stories": lm}) as another:
        again = open_page(another.url + page.url.removeprefix(server.url))
        again.get_by_text("8 of 8").wait_for()
        assert both_texts(again) == first
        assert shown_text(again.locator("gf-text-comparison .all")) == shown
    assert first[0] == generated_text(trace) != first[1]


def test_two_tabs_edit_independently(open_page, server, lm):
    tabs = [open_view(open_page, server, [{**CUT, "head": head}]) for head in (0, 3)]
    for head, page in zip((0, 3), tabs, strict=True):
        assert both_texts(page)[1] == generate_with(lm, ablate("blocks.0.attn.z", head=head))
    for page, (layer, head) in zip(tabs, ((1, 0), (1, 2)), strict=True):
        page.locator("gf-edit-form gf-head-picker select").nth(0).select_option(str(layer))
        page.locator("gf-edit-form gf-head-picker select").nth(1).select_option(str(head))
        page.get_by_role("button", name="Add edit").click()
    for first, second, page in zip((0, 3), (0, 2), tabs, strict=True):
        page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 2")
        both = [ablate("blocks.0.attn.z", head=first), ablate("blocks.1.attn.z", head=second)]
        assert both_texts(page)[1] == generate_with(lm, *both)


# ---- accessibility


def test_keyboard_adds_edit_and_runs_sweep(open_page, server, lm):
    page = open_view(open_page, server, layer=0, head=0)
    tab_to(page, "Add edit")
    page.keyboard.press("Enter")
    wait_for_edit(page)
    assert both_texts(page)[1] == generate_with(lm, ablate("blocks.0.attn.z", head=0))
    tab_to(page, "Run")
    page.keyboard.press("Enter")
    finished_sweep(page, 16)
    tab_to(page, "Effect of each edit")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.locator("gf-sweep .picked").wait_for()
    assert (address_fields(page)["layer"], address_fields(page)["head"]) == ("1", "0")
    tab_to(page, "Keep this edit")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 2")
    assert [one["point"] for one in address_edits(page)] == ["blocks.0.attn.z", "blocks.1.attn.z"]
    tab_to(page, "block 1, head 0 ablated")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('gf-app').session.trace.edits.length === 1")


def test_accessibility_and_no_horizontal_scrolling(open_page, server):
    page = open_view(
        open_page, server, [CUT, {**CUT, "head": 3, "off": True}], step=12, _sweep="1", _op="patch", _metric="logits"
    )
    finished_sweep(page, 16)
    both_texts(page)
    assert_accessible(page, variants=page.locator("gf-edit-form .ops button"))


def test_last_tour_step_ablates_head(open_page, server, lm, trace):
    page = open_page(server.url + view_path("fork", step=12, layer=0, head=0, query=trace.n_prompt - 1, key=5))
    tour = page.locator("gf-sidebar .tour")
    tour.get_by_role("button", name="Ablate head 0 of block 0").click()
    fork = trace.fork(lm.trace(ASK, max_tokens=4, temperature=0, edit=[ablate("blocks.0.attn.z", head=0)]))
    kls = [one.kl for one in fork.steps if one.kl is not None]
    tour.get_by_text("change most after").wait_for()
    caption_text = " ".join(shown_text(one) for one in tour.locator("gf-tour-caption p").all())
    assert any(is_close(seen, max(kls)) for seen in parse_numbers(caption_text))
    assert f"diverge at token {fork.diverges_at}" in caption_text


def test_edits_on_narrow_page(open_page, server, lm):
    page = open_page(server.url + view_path("fork", layer=0, head=0), width=390, height=844)
    page.locator("gf-edit-form form").wait_for()
    add_edit(page, "ablate")
    wait_for_edit(page)
    assert both_texts(page)[1] == generate_with(lm, ablate("blocks.0.attn.z", head=0))
    page.get_by_role("button", name="Run").click()
    finished_sweep(page, 16)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_encoder_shows_why_edits_are_unavailable(open_page):
    from inspect_subjects import subject

    encoder: Any = subject("encoders", "bert")[0]
    with RunningServer({"encoder": encoder}) as server:
        page = open_page(server.url + view_path("fork", "a dog ate", model="encoder"))
        reason = page.request.get(f"{server.url}/v1/models/encoder/views/anatomy").json()["unavailable"]["fork"]
        page.locator("gf-notice").get_by_text(reason).wait_for()

"""View 5 of latent attention in a real browser: the latents it draws, and what is made of them, are the trace's."""

import numpy as np
import pytest
from inspect_subjects import TEXT, subject

from e2e.conftest import Served
from e2e.pixels import SIGNED_BOUND, signed
from e2e.test_page import at, close, numbers, said

LAYER, HEAD, QUERY = 1, 2, 1


@pytest.fixture(scope="module")
def deepseek():
    lm = subject("decoders", "deepseek_v2")[0]
    with Served({"deepseek": lm}) as served:
        yield served, lm


def opened(open_page, served, dim):
    page = open_page(served.url + at("qkv", TEXT, max_tokens=0, layer=LAYER, head=HEAD, query=QUERY, _dim=dim))
    view = page.locator("gf-view-qkv")
    view.locator(".three").wait_for()
    return view


def drawn(strip, meaning, real, top):
    real = real.detach().double().numpy()
    assert np.abs(signed(strip.locator("canvas"), meaning, top)[0] - real).max() <= SIGNED_BOUND * top


def test_the_latents_and_what_is_made_of_them(open_page, deepseek):
    served, lm = deepseek
    t, attention = lm.trace(TEXT), lm.model.blocks[LAYER].attn
    view, name, shared, size = opened(open_page, served, 9), f"blocks.{LAYER}.attn", 8, 14
    c_kv = t[f"{name}.latent"][QUERY]
    drawn(view.get_by_label("latent of key and value, normalised"), "residual", c_kv, c_kv.abs().max().item())
    c_q = attention.q.norm(attention.q.reduce(t[f"{name}.x"][QUERY]))
    drawn(view.get_by_label("latent of the query, normalised"), "residual", c_q, c_q.abs().max().item())
    k, k_rot = t[f"{name}.k"][QUERY, HEAD], t[f"{name}.k_rot"][QUERY, HEAD]
    top = max(k.abs().max().item(), k_rot.abs().max().item())
    key = view.locator(".one").nth(1)
    assert "c_kv · W_uk" in said(key.locator("h3"))
    drawn(key.locator("gf-strip").nth(0), "key", k, top)
    drawn(key.locator("gf-strip").nth(3), "key", k_rot, top)
    row = attention.expand_k.weight[HEAD * (size - shared) + 9 - shared]
    drawn(key.locator("gf-strip").nth(1), "plain", row, row.abs().max().item())
    products = row * c_kv
    drawn(key.locator("gf-strip").nth(2), "plain", products, products.abs().max().item())
    assert close(numbers(said(key.locator("gf-formula")))[-1], products.sum().item())
    assert "first 8 dimensions" in said(view.locator("section > p"))


def test_a_part_of_the_key_that_all_heads_share_and_a_value_that_is_shorter(open_page, deepseek):
    served, lm = deepseek
    x, attention = lm.trace(TEXT)[f"blocks.{LAYER}.attn.x"][QUERY], lm.model.blocks[LAYER].attn
    key = opened(open_page, served, 3).locator(".one").nth(1)
    assert "W_kr, and its elementwise product with x" in said(key)
    assert close(numbers(said(key.locator("gf-formula")))[-1], attention.kv(x)[3].item())
    value = opened(open_page, served, 12).locator(".one").nth(2)
    assert "has only 10 dimensions, no index 12" in said(value)

"""Browser tests of the Q, K, V view with latent attention: drawn values equal those of the trace."""

import numpy as np
import pytest
from inspect_subjects import TEXT, subject

from e2e.conftest import RunningServer
from e2e.pixels import SIGNED_BOUND, drawn_values
from e2e.test_page import is_close, numbers_in, shown_text, view_path

LAYER, HEAD, QUERY = 1, 2, 1


@pytest.fixture(scope="module")
def deepseek():
    lm = subject("decoders", "deepseek_v2")[0]
    with RunningServer({"deepseek": lm}) as server:
        yield server, lm


def open_view(open_page, server, dim):
    page = open_page(server.url + view_path("qkv", TEXT, max_tokens=0, layer=LAYER, head=HEAD, query=QUERY, _dim=dim))
    view = page.locator("gf-view-qkv")
    view.locator(".three").wait_for()
    return view


def assert_drawn(strip, meaning, real, top):
    real = real.detach().double().numpy()
    assert np.abs(drawn_values(strip.locator("canvas"), meaning, top)[0] - real).max() <= SIGNED_BOUND * top


def test_latents_and_their_projections(open_page, deepseek):
    server, lm = deepseek
    t, attention = lm.trace(TEXT), lm.model.blocks[LAYER].attn
    view, name, shared, size = open_view(open_page, server, 9), f"blocks.{LAYER}.attn", 8, 14
    c_kv = t[f"{name}.latent"][QUERY]
    assert_drawn(view.get_by_label("latent of key and value, normalised"), "residual", c_kv, c_kv.abs().max().item())
    c_q = attention.q.norm(attention.q.reduce(t[f"{name}.x"][QUERY]))
    assert_drawn(view.get_by_label("latent of the query, normalised"), "residual", c_q, c_q.abs().max().item())
    k, k_rot = t[f"{name}.k"][QUERY, HEAD], t[f"{name}.k_rot"][QUERY, HEAD]
    top = max(k.abs().max().item(), k_rot.abs().max().item())
    key = view.locator(".one").nth(1)
    assert "c_kv · W_uk" in shown_text(key.locator("h3"))
    assert_drawn(key.locator("gf-strip").nth(0), "key", k, top)
    assert_drawn(key.locator("gf-strip").nth(3), "key", k_rot, top)
    row = attention.expand_k.weight[HEAD * (size - shared) + 9 - shared]
    assert_drawn(key.locator("gf-strip").nth(1), "plain", row, row.abs().max().item())
    products = row * c_kv
    assert_drawn(key.locator("gf-strip").nth(2), "plain", products, products.abs().max().item())
    assert is_close(numbers_in(key.locator("gf-formula"))[-1], products.sum().item())
    assert "first 8 dimensions" in shown_text(view.locator("section > p"))


def test_shared_key_part_and_shorter_value(open_page, deepseek):
    server, lm = deepseek
    x, attention = lm.trace(TEXT)[f"blocks.{LAYER}.attn.x"][QUERY], lm.model.blocks[LAYER].attn
    key = open_view(open_page, server, 3).locator(".one").nth(1)
    assert "W_kr, and its elementwise product with x" in shown_text(key)
    assert is_close(numbers_in(key.locator("gf-formula"))[-1], attention.kv(x)[3].item())
    value = open_view(open_page, server, 12).locator(".one").nth(2)
    assert "has only 10 dimensions, no index 12" in shown_text(value)

"""Measure the latency of the page in a browser, with a model of 124M parameters.

    .venv/bin/python bench/page.py [--tokens 128 1024] [--rounds 9]

Serves a random model with the shape of GPT-2 in a separate process. Each round presses a key that selects another token
or head, and measures the time until the frame after the new values are shown. Prints the median and the maximum of the
rounds, and the first contentful paint. For a sweep over all heads, measures the time until the first result.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from compare import table
from e2e.find_browser import ADVICE, find_browser

import glassformer
from glassformer.families import expand
from glassformer.families.common.shape import PRESETS
from glassformer.models.language_model import LanguageModel
from glassformer.nn.model import Decoder

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
# (view, label, key to press)
VIEWS = (
    ("qkv", "Q, K, V", "ArrowLeft"),
    ("cell", "Attention", "ArrowUp"),
    ("heads", "Head outputs", "ArrowLeft"),
    ("grid", "All heads, one head", "Shift+ArrowRight"),
    ("block", "Block", "ArrowLeft"),
)
PRESS = """([key, view, inner]) => new Promise(done => {
  const app = document.querySelector('gf-app');
  const find = (root, path) => path.reduce((at, one) => at && (at.shadowRoot ?? at).querySelector(one), root);
  const read = () => { const one = find(app, [view, ...inner]); return one?.data ?? one?.innerText; };
  const before = read(), [shift, name] = key.startsWith('Shift+') ? [true, key.slice(6)] : [false, key];
  const start = performance.now();
  window.dispatchEvent(new KeyboardEvent('keydown', {key: name, shiftKey: shift, bubbles: true, cancelable: true}));
  const finish = () => done(performance.now() - start);
  const wait = () => requestAnimationFrame(read() !== before ? finish : wait);
  wait();
})"""
SWEEP = """() => new Promise(done => {
  const find = (root, path) => path.reduce((at, one) => at && (at.shadowRoot ?? at).querySelector(one), root);
  const sweep = find(document.querySelector('gf-app'), ['gf-view-edits', 'gf-sweep']).shadowRoot;
  const press = name => [...sweep.querySelectorAll('button')].find(one => one.innerText === name).click();
  const start = performance.now(), rows = () => Number(sweep.querySelector('.run .num')?.innerText ?? 0);
  const finish = () => { done(performance.now() - start); press('Stop'); };
  const wait = () => requestAnimationFrame(rows() > 0 ? finish : wait);
  press('Run');
  requestAnimationFrame(wait); // the results of an earlier sweep are cleared by then
})"""
INNER = {
    "qkv": [".three"], "cell": ["gf-attention-steps", "ol"],
    "heads": ["table"], "grid": ["gf-pattern", "gf-matrix.all"], "block": [".sum"],
}  # fmt: skip

STREAM = """([query, total]) => new Promise(done => {
  const app = document.querySelector('gf-app'), start = performance.now();
  const cells = root => [...root.querySelectorAll('*')].reduce(
    (sum, one) => sum + (one.shadowRoot ? cells(one.shadowRoot) : 0), root.querySelectorAll('.cell').length);
  app.session.visit('lens', {query});
  let first = 0;
  const wait = () => requestAnimationFrame(() => {
    const grid = app.shadowRoot.querySelector('gf-view-lens')?.shadowRoot?.querySelector('gf-lens-grid')?.shadowRoot;
    const n = grid ? cells(grid) : 0;
    if (n && !first) first = performance.now() - start;
    if (n >= total) done([first, performance.now() - start]); else wait();
  });
  wait();
})"""


def write_model(folder: Path) -> None:
    """Save a random model with the shape of the smallest GPT-2, and the tokenizer of the stories model."""
    shape = replace(PRESETS["gpt2-small"], vocab_size=50_257)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Decoder(expand(shape))
    LanguageModel(model, glassformer.load("stories").tokenizer).save(folder)


def serve(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a server; return its process and URL."""
    command = [sys.executable, "-m", "glassformer", "serve", f"random={folder}", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"ready: (http\S+)", line):
            return server, found[1]
    sys.exit("error: the server did not start")


def text_of(tokens: int) -> str:
    """Return a text of about this number of tokens."""
    words = "Max got a key. Ann found a shell. Max gave the key to Ann. Leo left the bell in Rome. ".split(" ")
    lm, text = glassformer.load("stories"), ""
    while len(lm.encode(text + words[0])) < tokens:
        text += words[0] + " "
        words.append(words.pop(0))
    return text.strip()


def measure_lens(page, url: str, text: str, tokens: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return milliseconds until the first cells and until all cells of the logit lens, for uncached tokens."""
    page.goto("about:blank")
    page.goto(f"{url}/#/block?layer=5&query=1&step=-1&max_tokens=0&text={quote(text)}")
    page.locator("gf-view-block gf-receipt").first.wait_for()
    found = []
    for i in range(rounds):
        query = tokens - 8 - i * max(9, tokens // 16)
        found.append(page.evaluate(STREAM, [query, 13 * 9]))
        page.wait_for_load_state("networkidle")
        page.evaluate("document.querySelector('gf-app').session.visit('block')")
        page.locator("gf-view-block gf-receipt").first.wait_for()
        page.wait_for_load_state("networkidle")
    return [first for first, _ in found], [total for _, total in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    path = find_browser()
    if path is None:
        sys.exit(f"error: a browser is required: {ADVICE}")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_model(Path(folder))
        server, url = serve(Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(300_000)
            page.goto(url + "/#/map?text=Once&max_tokens=0")
            page.locator("gf-view-map").wait_for()
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            print(f"first contentful paint: {paint:.0f} ms\n")
            rows = []
            for tokens in args.tokens:
                text = text_of(tokens)
                for view, name, key in VIEWS:
                    page.goto("about:blank")
                    place = f"layer=5&head=2&query={tokens // 2}&key=3&step=-1&max_tokens=0"
                    page.goto(f"{url}/#/{view}?{place}&text={quote(text)}")
                    page.locator(f"gf-view-{view} gf-receipt").first.wait_for()
                    page.wait_for_load_state("networkidle")
                    took = [page.evaluate(PRESS, [key, f"gf-view-{view}", INNER[view]]) for _ in range(args.rounds)]
                    rows.append([tokens, name, f"{statistics.median(took):.0f}", f"{max(took):.0f}"])
                    print(f"  {tokens} tokens, {name}: {statistics.median(took):.0f} ms", file=sys.stderr)
                first, total = measure_lens(page, url, text, tokens, args.rounds)
                rows += [
                    [tokens, f"Logit lens, {label}", f"{statistics.median(took):.0f}", f"{max(took):.0f}"]
                    for label, took in (("first cells", first), ("all cells", total))
                ]
                page.goto("about:blank")
                page.goto(f"{url}/#/fork?step=-1&max_tokens=0&text={quote(text)}")
                page.locator("gf-edit-form form").wait_for()
                took = []
                for _ in range(args.rounds):
                    page.wait_for_load_state("networkidle")
                    took.append(page.evaluate(SWEEP))
                    page.get_by_text(", stopped").wait_for()
                rows.append([tokens, "Sweep, first result", f"{statistics.median(took):.0f}", f"{max(took):.0f}"])
            print(table(["tokens", "view", "median, ms", "maximum, ms"], rows))
            browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()

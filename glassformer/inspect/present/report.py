"""A text inside a model as one file: the page with its numbers inside, which opens without any server."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

from glassformer.atomic import replacing
from glassformer.errors import RequestError
from glassformer.inspect.present import report_data as baking
from glassformer.inspect.present.paths import DEFAULTS
from glassformer.inspect.present.report_data import RULE, Advance, bodies, prompt_of, target_of
from glassformer.inspect.present.router import LocalRouter
from glassformer.inspect.present.web_build import built, picture_of
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.focus import Focus, focus

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
)


def export_html(
    t: Trace,
    path: str | Path,
    *,
    view: str | None = None,
    place: Focus | None = None,
    before: Trace | None = None,
    text: str | None = None,
    name: str | None = None,
    bake: str = "chosen",
    advance: Advance | None = None,
) -> int:
    """Write the report of a trace; returns its size in bytes.

    view: the picture that it opens with. place: where, see `place.py`. before: the same text without edits, which the
    page goes back to when they are taken back. bake: what is in it, see `bake.py`. name: the model's.
    """
    if bake not in RULE:
        raise RequestError(f"bake must be one of {', '.join(RULE)}, got {bake!r}", param="bake")
    content = report(t, view, place, before, text, name, bake, advance).encode("utf-8", "surrogatepass")
    with replacing(Path(path)) as new:
        new.write_bytes(content)
    return len(content)


def report(
    t: Trace, view: str | None, place: Focus | None, before: Trace | None, text: str | None, name: str | None,
    how: str, advance: Advance | None,
) -> str:  # fmt: skip
    """The file's text."""
    page, picture = built(), picture_of(view or "cell")
    name = str(name or getattr(t.lm, "source", "") or "model")
    answers = LocalRouter(t.lm, name)
    ids = [answers.add(one) for one in (t, before) if one is not None]
    text = prompt_of(answers, ids[0]) if text is None else text
    place = place or focus(t)
    kept = baking.bake(answers, ids, place, how, text, advance)
    about = {
        "address": start(t, place, picture, text),
        "serve": f"glassformer serve {shlex.quote(name)}",
        "rule": RULE[how],
        "defaults": DEFAULTS,
        "traces": bodies(answers, ids, text),
    }
    return assembled(page.html, page.script, page.style, about, packed(kept, advance))


def packed(kept: dict[str, bytes], advance: Advance | None) -> str:
    """The answers as one JSON object, gzipped, in base64."""
    whole = io.BytesIO()
    with gzip.GzipFile(fileobj=whole, mode="wb", compresslevel=6, mtime=0) as file:
        for i, (key, answer) in enumerate(kept.items()):
            file.write((b"," if i else b"{") + json.dumps(key).encode() + b":" + answer)
            if advance:
                advance(i + 1, len(kept), "packing")
        file.write(b"}")
    return base64.b64encode(whole.getvalue()).decode()


def start(t: Trace, place: Focus, picture: str, text: str) -> dict[str, Any]:
    """Where the page opens, in its address's words."""
    given = t.source is not None and t.finish is None  # a target that the model did not write
    return {
        "view": picture, "text": text, "max_tokens": len(t) - t.n_prompt, "temperature": 0, "seed": 0,
        "layer": place.layer, "head": place.head, "query": place.query, "key": place.key,
        "edits": [edit.json for edit in t.edits], "tour_step": -1,
        "options": {"target": target_of(t)} if given else {},
    }  # fmt: skip


def assembled(page: str, script: str, style: str, about: dict[str, Any], packed: str) -> str:
    """index.html with everything in it."""
    assert "<script" not in script.lower(), "a script that would end up within its own text"
    script = script.replace("</script", "<\\/script")
    said = json.dumps(about, ensure_ascii=True).replace("<", "\\u003c")
    head = "\n".join((
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
        f"<style>{style}</style>",
        f'<script type="application/json" id="gf-report">{said}</script>',
        f'<script type="text/plain" id="gf-answers">{packed}</script>',
        f'<script type="module">{script}</script>',
    ))  # fmt: skip
    page = re.sub(r"<script[^>]*src=[^>]*></script>\s*|<link[^>]*stylesheet[^>]*>\s*", "", page)
    before, _, after = page.partition("</head>")
    return f"{before}{head}\n</head>{after}"

"""Write a trace as one HTML file: the page with its numbers, which opens without a server."""

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
from glassformer.inspect.present.paths import DEFAULTS
from glassformer.inspect.present.report_data import (
    RULE,
    Progress,
    collect_responses,
    prompt_text,
    target_text,
    trace_requests,
)
from glassformer.inspect.present.router import LocalRouter
from glassformer.inspect.present.web_build import WebBuild, load_build, picture_of
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.focus import Focus
from glassformer.inspect.views.focus import focus as find_focus

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
)


def export_html(
    t: Trace,
    path: str | Path,
    *,
    view: str | None = None,
    focus: Focus | None = None,
    before: Trace | None = None,
    text: str | None = None,
    name: str | None = None,
    bake: str = "chosen",
    advance: Progress | None = None,
) -> int:
    """Write the report of a trace; return its size in bytes.

    Args:
        view: The picture that it opens with.
        focus: The layer, head, query and key that it opens with; see `views/focus.py`.
        before: The trace without edits, which the page shows when the edits are removed.
        text: The prompt, as the page shows it; by default the decoded tokens.
        name: The name of the model.
        bake: What it contains; see `report_data.py`.
        advance: Called with (done, total, what) as the responses are computed and packed.

    Raises:
        RequestError: `bake` or `view` is unknown.
        CapacityError: The report would be too large for a browser.
    """
    if bake not in RULE:
        raise RequestError(f"bake must be one of {', '.join(RULE)}, got {bake!r}", param="bake")
    page, picture = load_build(), picture_of(view or "cell")
    name = str(name or getattr(t.lm, "path", "") or "model")
    router, focus = LocalRouter(t.lm, name), focus or find_focus(t)
    ids = [router.add(one) for one in (t, before) if one is not None]
    text = prompt_text(router, ids[0]) if text is None else text
    responses = collect_responses(router, ids, focus, bake, text, advance)
    about = {
        "address": initial_address(t, focus, picture, text),
        "serve": f"glassformer serve {shlex.quote(name)}",
        "rule": RULE[bake],
        "defaults": DEFAULTS,
        "traces": trace_requests(router, ids, text),
    }
    content = assemble(page, about, pack(responses, advance)).encode("utf-8", "surrogatepass")
    with replacing(Path(path)) as new:
        new.write_bytes(content)
    return len(content)


def pack(responses: dict[str, bytes], advance: Progress | None) -> str:
    """Return the responses as one JSON object, gzipped, in base64."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as file:
        for i, (key, response) in enumerate(responses.items()):
            file.write((b"," if i else b"{") + json.dumps(key).encode() + b":" + response)
            if advance:
                advance(i + 1, len(responses), "packing")
        file.write(b"}")
    return base64.b64encode(packed.getvalue()).decode()


def initial_address(t: Trace, focus: Focus, picture: str, text: str) -> dict[str, Any]:
    """Return the address that the page opens at, see web/src/lib/address.ts."""
    given = t.source is not None and t.finish is None  # a target that the model did not generate
    return {
        "view": picture, "text": text, "max_tokens": len(t) - t.n_prompt, "temperature": 0, "seed": 0,
        "layer": focus.layer, "head": focus.head, "query": focus.query, "key": focus.key,
        "edits": [edit.json for edit in t.edits], "tour_step": -1,
        "options": {"target": target_text(t)} if given else {},
    }  # fmt: skip


def assemble(page: WebBuild, about: dict[str, Any], packed: str) -> str:
    """Return index.html with the script, the style sheet and the data inside."""
    assert "<script" not in page.script.lower(), "the script would end inside its own text"
    script = page.script.replace("</script", "<\\/script")
    data = json.dumps(about, ensure_ascii=True).replace("<", "\\u003c")
    head = "\n".join((
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
        f"<style>{page.style}</style>",
        f'<script type="application/json" id="gf-report">{data}</script>',
        f'<script type="text/plain" id="gf-answers">{packed}</script>',
        f'<script type="module">{script}</script>',
    ))  # fmt: skip
    document = re.sub(r"<script[^>]*src=[^>]*></script>\s*|<link[^>]*stylesheet[^>]*>\s*", "", page.html)
    before, _, after = document.partition("</head>")
    return f"{before}{head}\n</head>{after}"

"""A trace in a notebook: a live picture of the page, which gets its numbers over the notebook's comm.

    page    -- {"id", "kind": "get" or "post", "path", "body"} -->   kernel
    page   <-- {"id", "event", "done", "error"}, response bytes --   kernel

It needs the packages of the extra `notebook`. The output has two parts: a static PNG, which nbconvert and viewers
without widgets show, and the live picture, which replaces it when the kernel answers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from typing import Any
from uuid import uuid4

from glassformer.errors import ConfigError, GlassformerError, RequestError
from glassformer.inspect.drawing import trace_panels
from glassformer.inspect.drawing.draw import draw
from glassformer.inspect.present.describe import describe_error, describe_text
from glassformer.inspect.present.report import initial_address
from glassformer.inspect.present.report_data import prompt_text, target_text
from glassformer.inspect.present.router import LocalRouter
from glassformer.inspect.present.web_build import ALIASES, load_build, picture_of
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.focus import Focus
from glassformer.inspect.views.focus import focus as find_focus
from glassformer.inspect.views.registry import VIEWS
from glassformer.inspect.views.result import dump

WIDGET = """
const script = %s, style = %s;
const load = () => customElements.get("gf-app") ? Promise.resolve() :
  (globalThis.__glassformer ??= import(URL.createObjectURL(new Blob([script], { type: "text/javascript" }))));
export default {
  async render({ model, el }) {
    await load();
    const root = el.attachShadow({ mode: "open" }), sheet = document.createElement("style");
    sheet.textContent = style;
    let answered = false;
    const port = {
      send: (content) => model.send(content),
      on: (event, receive) => model.on(event, (content, buffers) => {
        if (!answered) document.getElementById(model.get("still"))?.remove();
        answered = true;
        receive(content, buffers);
      }),
    };
    root.append(sheet, customElements.get("gf-app").embed(port, model.get("address")));
  },
};
"""


class NotebookChannel:
    """Answers the page's messages about one trace and the traces that the page requests from it."""

    def __init__(self, t: Trace):
        self.router = LocalRouter(t.lm, getattr(t.lm, "path", "") or "model")
        self.id = self.router.add(t)
        self.prompt = prompt_text(self.router, self.id)

    def answer(self, message: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        """Yield one reply, or one for each event, as (content, bytes). An error becomes a reply with its message."""
        id, path = message.get("id"), str(message.get("path"))
        try:
            if message.get("kind") == "get":
                yield {"id": id, "done": True}, self.router.get(path)
                return
            for event, data in self._events(path, message.get("body") or {}):
                yield {"id": id, "event": event, "done": False}, dump(data)
            yield {"id": id, "done": True}, None
        except GlassformerError as error:
            yield {"id": id, "done": True} | describe_error(error), None

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        if path == "/v1/traces":
            return self._trace(dict(body))
        if path == "/v1/sweeps":
            return self.router.sweep_events(body)
        if path == "/v1/vectors":
            return iter([("vector", self.router.store_vector(body.get("values", [])))])
        if events := self.router.open(path).events:
            return events()
        raise RequestError(f"{path[:100]} has no events: send the message with the kind 'get'")

    def _trace(self, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the notebook's own trace if the request describes it; otherwise compute a new one."""
        first = self.router.traces[self.id]
        prompt, n, target = body.pop("prompt", ""), body.pop("max_tokens", 0), body.pop("target", None)
        edits = body.pop("edits", [])
        options = {name: value for name, value in body.items() if name not in ("model", "stream")}
        same_target = target is None or target == target_text(first)
        same_edits = edits == [edit.json for edit in first.edits]
        if prompt == self.prompt and n == len(first) - first.n_prompt and same_edits and same_target:
            yield "trace", self.router.describe_all(self.id)
            return
        lm: Any = self.router.lm
        edit, n_prompt = self.router.edits.read(edits), 0
        if lm.kind == "decoder":
            n_prompt = len(lm.encode(prompt))
            items = lm.trace_stream(prompt, edit=edit, max_tokens=n, **(options if n else {}))
        else:
            options = {} if lm.kind == "encoder" else {"target": target, "max_tokens": n or None}
            items = [lm.trace(prompt, edit=edit, **options)]
        events = self.router.trace_events(self.router.name, lm, n_prompt, items)
        yield from (event for event in events if event is not None)


def show(t: Trace, view: str = "cell", **where: Any) -> Any:
    """Return a notebook widget with one picture of a trace.

    Args:
        view: A view or a picture of the page.
        where: layer, head, query and key; `focus` chooses those that are missing.

    Raises:
        RequestError: The picture is unknown, or a layer, head, query or key is out of range.
        ConfigError: The extra `notebook` is not installed.
    """
    picture = picture_of(view)
    for name in where:
        if name not in ("layer", "head", "query", "key"):
            raise RequestError(f"show takes layer, head, query and key, got {name!r}", param=name)
    focus, channel = find_focus(t, **where), NotebookChannel(t)
    address = initial_address(t, focus, picture, channel.prompt)
    return widget_class()(channel, address, still_picture(t, ALIASES.get(view, view), focus))


def still_picture(t: Trace, view: str, focus: Focus) -> bytes:
    """Return a PNG of a view, for viewers without widgets."""
    from glassformer.inspect.drawing.png import render_png  # needs Pillow

    name = {"map": "anatomy", "tokenizer": "tokens", "fork": "summary"}.get(view, view)
    if name not in VIEWS or "other" in VIEWS[name].parameters:
        raise RequestError(f"the view {view!r} needs a second trace: show the page's picture of it", param="view")
    spec = VIEWS[name]
    if name == "grid":
        grid = trace_panels.grid(t, spec.function(t, layer=focus.layer))
        return render_png(grid + trace_panels.pattern(t, focus.layer, focus.head))
    defaults: dict[str, Any] = {"layer": focus.layer, "head": focus.head, "query": focus.query, "key": focus.key}
    defaults |= {"position": focus.query, "token": t.ids[focus.query], "tokens": t.ids}
    defaults |= {"text": describe_text(t)["text"], "word": t.tokens[focus.query]}
    subject: Any = t.lm if spec.of == "model" else t
    options = {name: defaults[name] for name in spec.parameters if name in defaults}
    return render_png(draw(spec, subject, spec.function(subject, **options)))


@cache
def widget_class() -> type:
    """Return the widget class. It is defined on demand, so that only notebooks need anywidget."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise ConfigError("pictures in a notebook need anywidget: pip install 'glassformer[notebook]'") from None
    page = load_build()
    style = page.style.replace(":root", ":host")
    for tag in ("html", "body"):  # the widget must not style the notebook
        style = style.replace(f"{tag}{{", ":host{")
    esm = WIDGET % (json.dumps(page.script), json.dumps(style))

    class Glass(anywidget.AnyWidget):
        """One picture of a trace: the static PNG, and the live picture that replaces it."""

        _esm = esm
        address = traitlets.Dict().tag(sync=True)
        still = traitlets.Unicode().tag(sync=True)

        def __init__(self, channel: NotebookChannel, address: dict[str, Any], picture: bytes):
            super().__init__(address=address, still=f"glassformer-{uuid4().hex}")
            self.channel, self.picture = channel, picture
            self.on_msg(self._receive)

        def _receive(self, _: Any, message: dict[str, Any], buffers: Any = None) -> None:
            for content, data in self.channel.answer(message):
                self.send(content, buffers=[] if data is None else [data])

        def _ipython_display_(self) -> None:
            from IPython.display import display

            display(self.still_bundle(), raw=True)
            bundle: Any = self._repr_mimebundle_()
            data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
            display(data, raw=True, metadata=metadata)

        def still_bundle(self) -> dict[str, str]:
            """Return the static PNG as an image, and as HTML with an id by which the live picture removes it."""
            image = base64.b64encode(self.picture).decode()
            alt = escape(f"{self.address['view']} of {self.channel.prompt[:80]}", quote=True)
            html = f'<img id="{self.still}" alt="{alt}" style="max-width: 100%" src="data:image/png;base64,{image}">'
            return {"text/html": html, "image/png": image, "text/plain": alt}

    return Glass

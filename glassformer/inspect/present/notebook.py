"""A trace in a notebook: one picture of the page, live, its numbers through the notebook's own channel.

    the page's script  --  {"id", "kind": "get" or "post", "path", "body"}  -->  the kernel
                      <--  {"id", "event", "done", "error"} and the answer's bytes  --

It takes the packages of the extra `notebook`. What is displayed comes in two parts: a still picture, which nbconvert
and viewers without widgets show, and the live one, which takes its place as soon as the kernel answers it.
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
from glassformer.inspect.drawing import trace_panels as of_trace
from glassformer.inspect.drawing.draw import draw
from glassformer.inspect.drawing.png import png
from glassformer.inspect.present.describe import describe_error, describe_text
from glassformer.inspect.present.report import start
from glassformer.inspect.present.report_data import prompt_of, target_of
from glassformer.inspect.present.router import LocalRouter
from glassformer.inspect.present.web_build import ALSO, built, picture_of
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.focus import Focus, focus
from glassformer.inspect.views.registry import VIEWS
from glassformer.inspect.views.result import dump

GUEST = """
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
      on: (event, heard) => model.on(event, (content, buffers) => {
        if (!answered) document.getElementById(model.get("still"))?.remove();
        answered = true;
        heard(content, buffers);
      }),
    };
    root.append(sheet, customElements.get("gf-app").embed(port, model.get("address")));
  },
};
"""


class NotebookChannel:
    """Answers the page's messages about one trace, and about traces made from its text."""

    def __init__(self, t: Trace):
        self.router = LocalRouter(t.lm, getattr(t.lm, "source", "") or "model")
        self.id = self.router.add(t)
        self.prompt = prompt_of(self.router, self.id)

    def answer(self, message: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        """Yield one reply, or one for each event, as (content, bytes). An error is a reply that says what is wrong."""
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
        """Yield the notebook's own trace where the request describes it; otherwise make a new one."""
        first = self.router.traces[self.id]
        prompt, n, target = body.pop("prompt", ""), body.pop("max_tokens", 0), body.pop("target", None)
        given = body.pop("edits", [])
        options = {name: value for name, value in body.items() if name not in ("model", "stream")}
        same_target = target is None or target == target_of(first)
        same_edits = given == [edit.json for edit in first.edits]
        if prompt == self.prompt and n == len(first) - first.n_prompt and same_edits and same_target:
            yield "trace", self.router.describe_all(self.id)
            return
        lm: Any = self.router.lm
        edit, n_prompt = self.router.edits.read(given), 0
        if lm.kind == "decoder":
            n_prompt = len(lm.encode(prompt))
            made = lm.trace_stream(prompt, edit=edit, max_tokens=n, **(options if n else {}))
        else:
            how = {} if lm.kind == "encoder" else {"target": target, "max_tokens": n or None}
            made = [lm.trace(prompt, edit=edit, **how)]
        yield from self.router.trace_events(self.router.name, lm, n_prompt, made)


def show(t: Trace, view: str = "cell", **where: Any) -> Any:
    """What displays one picture of a trace in a notebook. `view`: a view's or a picture's name; `where`: layer, head,
    query, key (what is left out: of a head that plays a role on this text).

    RequestError for a name or place that there is not; ConfigError where the packages for it are missing.
    """
    picture = picture_of(view)
    for name in where:
        if name not in ("layer", "head", "query", "key"):
            raise RequestError(f"show takes layer, head, query and key, and not {name!r}", param=name)
    place = focus(t, **where)
    talk = NotebookChannel(t)
    return widget_class()(talk, start(t, place, picture, talk.prompt), still(t, ALSO.get(view, view), place))


def still(t: Trace, view: str, place: Focus) -> bytes:
    """A PNG of a view, for where nothing is live; of the cell's head where the view is of something else."""
    name = {"map": "anatomy", "tokenizer": "tokens", "fork": "summary"}.get(view, view)
    if name not in VIEWS or "other" in VIEWS[name].parameters:
        raise RequestError(f"{view!r} needs a second trace: show it of the page's own pictures", param="view")
    found = VIEWS[name]
    if name == "grid":
        return png(
            of_trace.grid(t, found.function(t, layer=place.layer)) + of_trace.pattern(t, place.layer, place.head)
        )
    usual: dict[str, Any] = {"layer": place.layer, "head": place.head, "query": place.query, "key": place.key}
    usual |= {"position": place.query, "token": t.ids[place.query], "tokens": t.ids}
    usual |= {"text": describe_text(t)["text"], "word": t.tokens[place.query]}
    subject: Any = t.lm if found.of == "model" else t
    return png(draw(found, subject, found.function(subject, **{n: usual[n] for n in found.parameters if n in usual})))


@cache
def widget_class() -> type:
    """Made when it is asked for, so that nothing but a notebook needs anywidget."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise ConfigError("pictures in a notebook need anywidget: pip install 'glassformer[notebook]'") from None
    page = built()
    style = page.style.replace(":root", ":host")
    for tag in ("html", "body"):  # the guest's rules are for itself, not for its host's page
        style = style.replace(f"{tag}{{", ":host{")
    esm = GUEST % (json.dumps(page.script), json.dumps(style))

    class Glass(anywidget.AnyWidget):
        """One picture of a trace: the still one, and the live one that takes its place."""

        _esm = esm
        address = traitlets.Dict().tag(sync=True)
        still = traitlets.Unicode().tag(sync=True)

        def __init__(self, talk: NotebookChannel, address: dict[str, Any], picture: bytes):
            super().__init__(address=address, still=f"glassformer-{uuid4().hex}")
            self.talk, self.picture = talk, picture
            self.on_msg(self._heard)

        def _heard(self, _: Any, message: dict[str, Any], buffers: Any = None) -> None:
            for said, data in self.talk.answer(message):
                self.send(said, buffers=[] if data is None else [data])

        def _ipython_display_(self) -> None:
            from IPython.display import display

            display(self.still_bundle(), raw=True)
            bundle: Any = self._repr_mimebundle_()
            data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
            display(data, raw=True, metadata=metadata)

        def still_bundle(self) -> dict[str, str]:
            """The still picture, as HTML that the live one can find, and as an image."""
            image = base64.b64encode(self.picture).decode()
            alt = escape(f"{self.address['view']} of {self.talk.prompt[:80]}", quote=True)
            html = f'<img id="{self.still}" alt="{alt}" style="max-width: 100%" src="data:image/png;base64,{image}">'
            return {"text/html": html, "image/png": image, "text/plain": alt}

    return Glass

"""`glassformer serve`: the page and the HTTP API."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from glassformer.cli.common import IgnoreKeys, Json, Machine, open_any, out, print_json, say
from glassformer.errors import ConfigError

if TYPE_CHECKING:
    from glassformer.server.models import AnyModel

KEY = "GLASSFORMER_API_KEY"
HOST, PORT = "127.0.0.1", 8000


def serve(
    model: tuple[str, ...] = (),
    /,
    *,
    host: str = HOST,
    port: int = PORT,
    api_key: Annotated[str | None, Parameter(env_var=KEY, show_env_var=True)] = None,
    allow_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    trace_memory: float = 1.0,
    cache_memory: float = 4.0,
    chat_template: str = "default",
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Serve one or several models: the page that shows their values, and an HTTP API.

    Decoders, encoder-decoders and encoders can be served. OpenAI's clients work with /v1/completions and
    /v1/chat/completions; /openapi.json describes all routes. Ctrl-C lets running requests finish; a second Ctrl-C
    cancels them.

    Parameters
    ----------
    model
        MODEL, or NAME=MODEL to choose the name in the API.
    host
        The address to listen on. Only this machine can connect to the default. Set an API key for others.
    port
        The port; 0 chooses a free one and prints it.
    api_key
        The key that every route requires, as `Authorization: Bearer KEY`. Prefer the environment variable: other users
        of this machine can read command-line arguments.
    allow_host
        An additional allowed host name, such as that of a proxy in front of the server.
    trace_memory
        Memory for stored traces in GiB; the least recently used are dropped first.
    cache_memory
        Memory for the keys and values of running requests in GiB; one request may use half of it. Without a token
        limit, an answer ends where it is full.
    chat_template
        The name of the chat template, for models that have several.
    """
    from glassformer.server.models import split_name

    if not model:
        raise ConfigError("MODEL is missing: give at least one, such as `stories`")
    names = [split_name(given) for given in model]
    if len({name for name, _ in names}) < len(names):
        raise ConfigError(f"two models have the same name: {', '.join(name for name, _ in names)}; give NAME=MODEL")

    def models() -> list[tuple[str, AnyModel]]:
        return [(name, open_any(one, machine, ignore_key, quiet=json)) for name, one in names]

    run(
        models, host=host, port=port, key=api_key, hosts=allow_host, trace_memory=trace_memory,
        cache_memory=cache_memory, chat_template=chat_template, json=json,
    )  # fmt: skip


def run(
    models: Callable[[], list[tuple[str, AnyModel]]],
    *,
    host: str = HOST,
    port: int = PORT,
    key: str | None = None,
    hosts: tuple[str, ...] = (),
    trace_memory: float = 1.0,
    cache_memory: float = 4.0,
    chat_template: str = "default",
    json: bool = False,
) -> None:
    """Bind the address, load the models, and serve until Ctrl-C. A second Ctrl-C raises KeyboardInterrupt."""
    from glassformer.server import run as server
    from glassformer.server.app import Settings, make_app

    names = (*hosts, *(() if host in ("0.0.0.0", "::") else (host,)))
    settings = Settings(
        key=key, hosts=names, trace_bytes=int(trace_memory * 2**30), cache_bytes=int(cache_memory * 2**30),
        chat_template=chat_template,
    )  # fmt: skip
    sock = server.bind(host, port)
    try:
        if not server.is_loopback(sock) and key is None:
            say(f"WARNING: other machines can connect to {host} without an API key, and use the server.")
            say(f"         Set a key in the environment ({KEY}=...), or leave out --host.")
        _log_to_stderr()
        app = make_app(models(), settings)
    except BaseException:
        sock.close()
        raise
    url = server.server_url(sock)

    def ready() -> None:
        if json:
            print_json({"url": url, "models": list(app.state.models.all), "page": app.state.page.built})
        else:
            if not app.state.page.built:
                say("the page is not built: run `make page`; the HTTP API works without it")
            out.print(f"ready: {url}    (Ctrl-C to stop)", markup=False)
            sys.stdout.flush()

    if not server.serve(app, sock, ready):
        raise KeyboardInterrupt


def _log_to_stderr() -> None:
    """Log a line for each request, and errors with their traceback, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("glassformer.server")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    theirs = logging.getLogger("uvicorn.error")
    theirs.handlers, theirs.propagate = [handler], False
    theirs.setLevel(logging.WARNING)

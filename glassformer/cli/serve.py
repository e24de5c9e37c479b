"""`glassformer serve`: the page, and the HTTP routes behind it."""

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
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Serve one or several models: a page in which every number is the model's own, and HTTP routes.

    A translator is served too (and an encoder): the page aligns what it writes with what it read.
    OpenAI's routes (/v1/completions, /v1/chat/completions) work with OpenAI's clients; /openapi.json describes all.
    Ctrl-C lets running requests end; a second one ends at once.

    Parameters
    ----------
    model
        MODEL, or NAME=MODEL to say under which name it is served.
    host
        The address to listen at. Other machines reach it only at another than 127.0.0.1; give a key then.
    port
        0 takes any that is free, and says which.
    api_key
        Every route needs it, as `Authorization: Bearer KEY`. Better in the environment than among the arguments, which
        other users of the machine can read.
    allow_host
        Another name by which this server may be asked, such as that of a proxy in front of it.
    trace_memory
        GiB that kept traces may hold; the least recently used go first.
    """
    from glassformer.server.models import split_name

    if not model:
        raise ConfigError("give at least one MODEL to serve, such as `stories`")
    names = [split_name(given) for given in model]
    if len({name for name, _ in names}) < len(names):
        raise ConfigError(f"two models have the same name: {', '.join(name for name, _ in names)}; give NAME=MODEL")

    def models() -> list[tuple[str, AnyModel]]:
        return [(name, open_any(one, machine, ignore_key, quiet=json)) for name, one in names]

    run(models, host=host, port=port, key=api_key, hosts=allow_host, trace_memory=trace_memory, json=json)


def run(
    models: Callable[[], list[tuple[str, AnyModel]]],
    *,
    host: str = HOST,
    port: int = PORT,
    key: str | None = None,
    hosts: tuple[str, ...] = (),
    trace_memory: float = 1.0,
    json: bool = False,
) -> None:
    """Take the address, load the models, and serve them until Ctrl-C. KeyboardInterrupt where it came twice."""
    from glassformer.server import run as server
    from glassformer.server.app import Settings, make_app

    names = (*hosts, *(() if host in ("0.0.0.0", "::") else (host,)))
    settings = Settings(key=key, hosts=names, trace_bytes=int(trace_memory * 2**30))
    sock = server.bind(host, port)
    try:
        if not server.is_loopback(sock) and key is None:
            say(f"WARNING: {host} is reached by other machines, and no API key is set: whoever reaches it can use it.")
            say(f"         Set one in the environment ({KEY}=...), or leave out --host.")
        _log_to_stderr()
        app = make_app(models(), settings)
    except BaseException:
        sock.close()
        raise
    url = server.url_of(sock)

    def ready() -> None:
        if json:
            print_json({"url": url, "models": list(app.state.models.all), "page": app.state.page.built})
        else:
            if not app.state.page.built:
                say("this copy has no built page: `make page` builds it; the routes work without it")
            out.print(f"ready: {url}    (Ctrl-C ends)", markup=False)
            sys.stdout.flush()

    if not server.serve(app, sock, ready):
        raise KeyboardInterrupt


def _log_to_stderr() -> None:
    """A plain line for each request, and whatever goes wrong with its traceback."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("glassformer.server")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    theirs = logging.getLogger("uvicorn.error")
    theirs.handlers, theirs.propagate = [handler], False
    theirs.setLevel(logging.WARNING)

"""Who may ask, and how much: keys on every route, names, origins, sizes, and bodies that mean harm."""

import json
import socket
import threading
import urllib.error
import urllib.request
from http import client as http_client

import httpx2
import pytest
from fastapi.routing import iter_route_contexts
from hypothesis import given
from hypothesis import strategies as st
from server.conftest import assert_error, serving, tiny_lm

from glassformer.errors import ConfigError
from glassformer.server.app import Settings, make_app
from glassformer.server.guard import MAX_BODY
from glassformer.server.page import BuiltPage

KEY = "sesame-7"


@pytest.fixture(scope="module")
def locked():
    with serving([("m", tiny_lm())], Settings(key=KEY)) as (url, app):
        yield url, app


def every_route(app):
    """(method, path) of all that the app serves, and a path that it does not."""
    found = [("GET", "/nothing"), ("OPTIONS", "/v1/models"), ("POST", "/"), ("PUT", "/v1/models")]
    for route in iter_route_contexts(app.routes):
        path = (
            route.path.replace("{model:path}", "m").replace("{id}", "x").replace("{name}", "x").replace("{view}", "x")
        )
        found += [(method, path) for method in route.methods]
    return found


def test_every_route_except_the_page_requires_the_key(locked):
    url, app = locked
    routes = every_route(app)
    paths = {path for _, path in routes}
    assert {"/health", "/openapi.json", "/v1/models", "/v1/completions", "/v1/traces/x/tensors/x"} <= paths
    assert len(paths) > 25
    page = {(method, path) for path in BuiltPage().files for method in ("GET", "HEAD")}
    with httpx2.Client(base_url=url, timeout=60) as http:
        for method, path in routes:
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": f"Basic {KEY}"},
                {"authorization": KEY},
            ):
                answer = http.request(method, path, headers=headers)
                if (method, path) in page:
                    assert answer.status_code == 200
                    continue
                assert answer.status_code == 401, (method, path, headers)
                assert answer.headers["www-authenticate"] == "Bearer"
                if method != "HEAD":
                    assert_error(answer, 401, "Authorization: Bearer KEY", code="invalid_api_key")
            with_key = http.request(method, path, headers={"authorization": f"Bearer {KEY}"})
            assert with_key.status_code != 401, (method, path)


def test_openai_with_a_key(locked):
    import openai

    url, _ = locked
    good, bad = (openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in (KEY, "wrong"))
    assert [model.id for model in good.models.list()] == ["m"]
    with pytest.raises(openai.AuthenticationError):
        bad.models.list()


@pytest.mark.parametrize("key", ["", " a", "naïve", "a\nb"])
def test_key_that_no_header_can_hold_is_rejected(key):
    with pytest.raises(ConfigError, match="key"):
        Settings(key=key)


def status(http, path="/v1/models", method="GET", **headers):
    return http.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_foreign_host_names_are_rejected(http, served):
    """DNS rebinding: a page gives its own name this machine's address, and then is of the same origin."""
    assert_error(status(http, host="evil.example"), 403, "'evil.example'", "--allow-host", code="host_not_allowed")
    assert_error(status(http, "/", host="evil.example:80"), 403)
    assert_error(status(http, host="localhost.evil.example"), 403)
    assert_error(status(http, host="[::1"), 403)
    port = served[0].rsplit(":", 1)[1]
    for name in ("localhost", "127.0.0.1", f"LOCALHOST:{port}", "[::1]:8000", "192.168.1.7"):
        assert status(http, host=name).status_code == 200, name
    with (
        serving([("m", tiny_lm())], Settings(hosts=("glass.example",))) as (url, _),
        httpx2.Client(base_url=url) as other,
    ):
        assert status(other, host="glass.example").status_code == 200
        assert status(other, host="Glass.Example:443").status_code == 200
        assert status(other, host="evil.example").status_code == 403


def test_requests_of_other_origins_are_rejected(http, served):
    url, host = served[0], served[0].removeprefix("http://")
    foreign = ("https://evil.example", "null", "http://localhost:1234", f"http://{host}.evil.example")
    invalid = ("http://[", "http://[::1", "//", "http://a]b[")
    for origin in (*foreign, *invalid):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("DELETE", "/v1/traces/x")):
            assert_error(status(http, path, method, origin=origin), 403, "another origin", code="origin_not_allowed")
        assert "access-control-allow-origin" not in status(http, "/health", origin=origin).headers
    assert status(http, origin=url).status_code == 200
    for site in ("cross-site", "same-site"):
        assert_error(status(http, sec_fetch_site=site), 403, site)
        assert status(http, "/", sec_fetch_site=site).status_code == 200, "a link to the page may stand anywhere"
    assert status(http, sec_fetch_site="same-origin").status_code == 200
    assert status(http, sec_fetch_site="none").status_code == 200
    form = http.post(
        "/v1/completions", content='{"model": "talker", "prompt": "a"}', headers={"content-type": "text/plain"}
    )
    assert_error(form, 400, "application/json")


def test_security_headers_of_every_response(http):
    for path in ("/", "/health", "/nothing"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
    assert http.get("/health").headers["cache-control"] == "no-store"


def raw(url, data, more=lambda _: None):
    """What a server answers to raw bytes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(data)
        more(sock)
        found = b""
        while b"\r\n\r\n" not in found or not found.endswith(b"}"):
            part = sock.recv(1 << 16)
            if not part:
                break
            found += part
    return found


def test_large_body_is_rejected_before_it_is_read(http, served):
    """The answer comes when only the head has been sent."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    found = raw(served[0], head + b"Content-Length: 104857600\r\n\r\n{")
    assert found.startswith(b"HTTP/1.1 413")
    assert b"104,857,600 bytes; the limit is 8,388,608" in found
    assert b"body_too_large" in found
    assert raw(served[0], head + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n").startswith(b"HTTP/1.1 4")


def test_clients_read_the_rejection_of_a_large_body(served):
    """Clients that read only after they sent the body: urllib, which asks to close the connection, and http.client."""
    body = b'{"prompt": "' + b"x" * (4 * MAX_BODY) + b'"}'
    for _ in range(3):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(f"{served[0]}/v1/completions", data=body), timeout=60)
        assert caught.value.code == 413
        assert json.load(caught.value)["error"]["code"] == "body_too_large"
        connection = http_client.HTTPConnection(served[0].removeprefix("http://"), timeout=60)
        for headers in ({}, {"Connection": "close"}):
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            assert answer.status == 413
            assert json.load(answer)["error"]["code"] == "body_too_large"
        connection.close()


def test_endless_body_is_rejected(http):
    sent = 0

    def parts():
        nonlocal sent
        for _ in range(100):
            sent += 1 << 20
            yield b" " * (1 << 20)

    answer = http.post("/v1/completions", content=parts(), headers={"content-type": "application/json"})
    assert_error(answer, 413, "the limit is", code="body_too_large")
    assert sent > MAX_BODY
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize("body", [b"[5]," * 1_500_000, b"{}" * 131_071, b"[" * 65_536 + b"{" * 65_535])
def test_body_with_many_lists_is_rejected_before_it_is_parsed(http, monkeypatch, body):
    """Also where they arrive in several parts; a text may have as many as the bound."""
    parsed = []
    loads = json.loads
    monkeypatch.setattr("starlette.requests.json.loads", lambda data: parsed.append(len(data)) or loads(data))
    data = b'{"model": "talker", "max_tokens": 1, "prompt": [' + body + b"]}"
    answer = http.post("/v1/completions", content=data, headers={"content-type": "application/json"})
    assert_error(answer, 413, "more than 131,072 brackets", code="body_too_large")
    text = {"model": "talker", "max_tokens": 1, "prompt": "[" * 131_000}
    assert_error(http.post("/v1/completions", json=text), 400, "characters")
    assert len([size for size in parsed if size > 1000]) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "talker", "prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"model": "talker", "prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
        b'{"model": "talker", "prompt": "a", "temperature": 1e999}',
        b'{"model": "talker", "prompt": "a", "temperature": NaN}',
        b'{"model": "talker", "prompt": "a", "logit_bias": {"1": Infinity}}',
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        b'{"model": "talker"',
        b'{"model": "talker", "prompt": ' + b'[["a"],' * 1000 + b"1" + b"]" * 1000 + b"}",
        b'{"\\ud800": 1}',
        json.dumps({"model": "talker", "prompt": ["x"] * 100_000}).encode(),
        json.dumps({"model": "talker", "prompt": [{}] * 100_000}).encode(),
        json.dumps({"model": "x" * 100_000, "prompt": "a"}).encode(),
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/traces", "/v1/sweeps", "/v1/vectors"])
def test_malformed_bodies_are_rejected(http, path, body):
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404), answer.text
    assert_error(answer, answer.status_code)
    assert len(answer.content) < 2000


MESSAGE = {"role": "user", "content": "a"}
PART = {"type": "text", "text": ""}
TOO_MANY = [
    ("/v1/completions", {"prompt": ["a"] * 129}, "prompt", "129 items; at most 128"),
    ("/v1/completions", {"prompt": [[5]] * 100_000}, "prompt", "100,000 items; at most 128"),
    ("/v1/completions", {"prompt": [5] * (2**20 + 1)}, "prompt", "1,048,577 items; at most 1,048,576"),
    ("/v1/completions", {"stop": ["a"] * 600_000}, "stop", "600,000 items; at most 64"),
    ("/v1/completions", {"stop": "a" * 1025}, "stop", "1,025 characters; at most 1,024"),
    ("/v1/completions", {"stop": ["a", "a" * 1025]}, "stop", "1,025 characters; at most 1,024"),
    ("/v1/completions", {"logit_bias": {str(i): 1 for i in range(2**14 + 1)}}, "logit_bias", "16,385 items"),
    ("/v1/completions", {"edits": [{"op": "ablate", "point": "a"}] * 257}, "edits", "257 items; at most 256"),
    ("/v1/completions", {"edits": [{"op": "ablate", "point": "a" * 513}]}, "edits[0].point", "513 characters"),
    ("/v1/completions", {"edits": [{"op": "ablate", "point": "a", "dim": [0] * 65_537}]}, "edits[0].dim", "65,537"),
    ("/v1/chat/completions", {"messages": [MESSAGE] * 4097}, "messages", "4,097 items; at most 4,096"),
    ("/v1/chat/completions", {"messages": [MESSAGE | {"content": [PART] * 257}]}, "messages[0].content", "257"),
    ("/v1/traces", {"capture": ["*"] * 100_000}, "capture", "100,000 items; at most 256"),
    ("/v1/traces", {"capture": ["*" * 513]}, "capture[0]", "513 characters"),
    ("/v1/vectors", {"values": [0] * (2**20 + 1)}, "values", "1,048,577 items"),
]


@pytest.mark.parametrize(("path", "change", "param", "words"), TOO_MANY, ids=[f"{p} {f}" for p, _, f, _ in TOO_MANY])
def test_every_list_and_text_is_bounded(http, path, change, param, words):
    assert_error(http.post(path, json=BASES[path] | change), 400, words, "are allowed", param=param)


def test_openapi_document_states_the_bounds(http):
    """Every list, mapping and string with a purpose other than text has a bound in the document."""
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    unbounded = []

    def visit(where, schema):
        kind, bound = schema.get("type"), {"array": "maxItems", "object": "maxProperties", "string": "maxLength"}
        if kind in bound and bound[kind] not in schema and not {"enum", "const", "properties"} & schema.keys():
            unbounded.append(where)
        for name, one in schema.get("properties", {}).items():
            visit(f"{where}.{name}", one)
        for one in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
            visit(where, one)

    for name, schema in schemas.items():
        if not name.startswith("Error"):
            visit(name, schema)
    texts = {"CompletionBody.prompt", "MessageBody.content", "TextPart.text", "TraceBody.prompt", "TraceBody.target"}
    texts |= {"MessageBody.reasoning", "MessageBody.reasoning_content"}
    assert set(unbounded) == texts


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/completions", "prompt", "a" * 4_000_000),
        ("/v1/completions", "prompt", ["a", "a" * 100_000]),
        ("/v1/chat/completions", "messages", [MESSAGE, MESSAGE | {"content": "a " * 1_000_000}]),
        ("/v1/chat/completions", "messages", [MESSAGE | {"content": "a" * 1000}] * 100),
        ("/v1/traces", "prompt", "a" * 4_000_000),
        ("/v1/traces", "messages", [MESSAGE | {"content": "a" * 100_000}]),
    ],
    ids=str,
)
def test_a_text_that_cannot_fit_is_rejected_before_it_is_encoded(http, lms, monkeypatch, path, field, value):
    backend, encoded = lms["talker"].tokenizer.backend, []
    for name in ("encode", "encode_continuations", "encode_offsets"):
        method = getattr(backend, name)
        monkeypatch.setattr(backend, name, lambda *a, f=method, **k: encoded.append(len(str(a))) or f(*a, **k))
    body = {key: one for key, one in BASES[path].items() if key != "prompt"} | {field: value}
    error = assert_error(http.post(path, json=body), 400, "characters", param=field, code="context_length_exceeded")
    assert f"at most {256 * lms['talker'].tokenizer.longest_token:,}" in error["message"]
    assert max(encoded, default=0) < 1000


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=8),
    st.lists(st.one_of(st.integers(-1, 300), st.text(max_size=3), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=2),
    st.sampled_from(["blocks.0.attn.z", "ablate", "patch", "heads", "cells", "\ud800", "talker"]),
    st.lists(st.fixed_dictionaries({"op": st.sampled_from(["ablate", "scale", "add"]), "point": st.sampled_from(
        ["blocks.0.attn.z", "blocks.0.attn.probs", "final.logits", "embed.out"])}, optional={
        "head": st.integers(-2, 5), "position": st.integers(-2, 5), "value": st.floats(), "factor": st.floats(),
        "query": st.integers(-2, 5), "dim": st.integers(-2, 50)}), max_size=2),
)  # fmt: skip
FIELDS = (
    "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty logit_bias seed stop edits n "
    "stream stream_options prompt messages max_tokens max_completion_tokens echo logprobs top_logprobs read top model "
    "trace over op target rival position source point factor values tools frob capture"
).split()
BASES = {
    "/v1/completions": {"model": "talker", "prompt": "the", "max_tokens": 2},
    "/v1/chat/completions": {"model": "talker", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/traces": {"model": "talker", "prompt": "the", "max_tokens": 2},
    "/v1/sweeps": {"over": "layers"},
    "/v1/vectors": {"values": [1.0]},
}


@pytest.fixture(scope="module")
def a_trace(http):
    return http.post("/v1/traces", json={"model": "talker", "prompt": "the cat"}).json()["id"]


@pytest.mark.parametrize("path", BASES)
def test_no_body_breaks_the_server(http, a_trace, path):
    accepted = 0

    @given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
    def check(change):
        nonlocal accepted
        base = BASES[path] | ({"trace": a_trace} if path == "/v1/sweeps" else {})
        answer = http.post(path, content=json.dumps(base | change), headers={"content-type": "application/json"})
        assert answer.status_code < 500, (base | change, answer.text)
        assert "internal error" not in answer.text, answer.text
        accepted += answer.status_code < 300
        if answer.status_code >= 300:
            assert_error(answer, answer.status_code)

    check()
    assert accepted, "the server must be reached beyond its checks"


def test_concurrent_edits_do_not_mix(http, lms):
    """Many threads, each with an edit of its own: nobody gets another's numbers."""
    found, lm = {}, lms["talker"]

    def tab(head):
        edits = [{"op": "ablate", "point": "blocks.0.attn.z", "head": head}]
        body = {"model": "talker", "prompt": "the cat", "max_tokens": 8, "seed": 1, "edits": edits}
        for _ in range(3):
            told = http.post("/v1/traces", json=body).json()
            found.setdefault(head, set()).add((told["text"], json.dumps(told["edits"])))

    tabs = [threading.Thread(target=tab, args=(head,)) for head in range(4)]
    for one in tabs:
        one.start()
    for one in tabs:
        one.join()
    from glassformer.inspect.edits.edit import ablate

    for head in range(4):
        edit = ablate("blocks.0.attn.z", head=head)
        text = lm.generate("the cat", max_tokens=8, seed=1, edit=[edit]).text
        assert found[head] == {("the cat" + text, json.dumps([edit.json]))}


def test_openapi_document_describes_every_route(http, locked):
    document = http.get("/openapi.json").json()
    app = locked[1]
    served = {
        (m.lower(), p.path)
        for p in iter_route_contexts(app.routes)
        for m in p.methods
        if getattr(p, "include_in_schema", False)
    }
    documented = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert {(m, p.replace("{model:path}", "{model}")) for m, p in served if m != "head"} == documented
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert "422" not in operation["responses"]
            assert {"400", "401", "404"} <= operation["responses"].keys()
            good = next(answer for code, answer in operation["responses"].items() if code[0] == "2")
            kinds = good["content"]
            assert all("example" in kind or "schema" in kind for kind in kinds.values()), (method, path)
    assert set(document["components"]["schemas"]["ErrorDetail"]["required"]) == {"message", "type", "param", "code"}
    assert "security" not in document
    with httpx2.Client(base_url=locked[0], headers={"authorization": f"Bearer {KEY}"}) as other:
        assert other.get("/openapi.json").json()["security"] == [{"key": []}]
    cell = document["paths"]["/v1/traces/{id}/views/cell"]["get"]["parameters"]
    assert {"layer", "head", "query", "key", "id"} <= {one["name"] for one in cell}


# ---- the page


def test_missing_page_names_make_page(http, tmp_path):
    assert not BuiltPage(tmp_path).built
    assert b"make page" in BuiltPage(tmp_path).files["/"].data


def test_a_built_page_is_served_with_its_headers(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><script type=module src=/assets/app-1a2b.js></script>")
    (tmp_path / "assets" / "app-1a2b.js").write_text("export const a = 1;\n" * 200)
    (tmp_path / "icon.svg").write_text("<svg/>")
    (tmp_path.parent / "secret.txt").write_text("secret")
    monkeypatch.setattr("glassformer.server.app.BuiltPage", lambda: BuiltPage(tmp_path))
    with serving([("m", tiny_lm())], Settings(key=KEY)) as (url, _), httpx2.Client(base_url=url) as http:
        index = http.get("/")
        assert index.text.startswith("<!doctype html><script")
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        policy = index.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert index.headers["cache-control"] == "no-cache"
        again = http.get("/", headers={"if-none-match": index.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        script = http.get("/assets/app-1a2b.js")
        assert script.text.startswith("export const a")
        assert "immutable" in script.headers["cache-control"]
        assert script.headers["content-encoding"] == "gzip"
        assert script.headers["content-type"].startswith(("text/javascript", "application/javascript"))
        plain = http.get("/assets/app-1a2b.js", headers={"accept-encoding": "identity"})
        assert plain.content == script.content
        assert "content-encoding" not in plain.headers
        assert http.head("/").headers["content-length"] == str(len(index.content))
        for path in ("/assets/../../secret.txt", "/assets/%2e%2e/%2e%2e/secret.txt", "/secret.txt", "/assets/x.js"):
            assert http.get(path).status_code == 401, "not a file of the page, so a route like any other"


def test_duplicate_model_names_are_rejected():
    lm = tiny_lm()
    with pytest.raises(ConfigError, match="two models have the name 'm'"):
        make_app([("m", lm), ("m", lm)])

"""Ways to specify MODEL: a folder, a file, or a hub name. The hub is a local test server."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from generate.scripted import make_tokenizer
from safetensors.torch import load_file
from tiny import tiny

import glassformer
from glassformer.errors import CheckpointError
from glassformer.formats.download import verify_download
from glassformer.formats.find import end_token_ids, find_model, tokenizer_of
from glassformer.formats.gguf.save import save_gguf
from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf
from glassformer.formats.hub import choose_files
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load
from glassformer.server.models import split_name

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lm():
    tokenizer = make_tokenizer()
    return LanguageModel(tiny("llama", vocab_size=tokenizer.vocab_size + 3), tokenizer)


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    lm.save(path)
    return path


def assert_same(found, lm):
    assert all(torch.equal(found.model.get_parameter(n), p) for n, p in lm.model.named_parameters())
    text = "the cat sat on 12 mats; 吾輩は猫である <|endoftext|>"
    assert found.encode(text) == lm.encode(text)
    assert found.end_ids == lm.end_ids
    assert found.tokenizer.special_tokens == lm.tokenizer.special_tokens
    greedy = {"max_tokens": 8, "temperature": 0.0}
    assert found.generate("the c", **greedy) == lm.generate("the c", **greedy)


def test_load_from_each_kind_of_file(lm, folder, tmp_path):
    assert_same(load(folder / "model.safetensors"), lm)
    save_gguf(lm.model, tmp_path / "a.gguf", "F32", extra=tokenizer_to_gguf(lm.tokenizer, lm.config.vocab_size))
    assert_same(load(tmp_path / "a.gguf"), lm)
    assert_same(load(tmp_path), lm)
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"several GGUF files: give the path of one of a\.gguf, b\.gguf"):
        load(tmp_path)
    shutil.copytree(folder, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pickled/pytorch_model.bin")
    (tmp_path / "pickled/model.safetensors").unlink()
    assert_same(load(tmp_path / "pickled"), lm)
    assert_same(load(tmp_path / "pickled/pytorch_model.bin"), lm)


def save_gguf_shards(folder, lm, count=3, **options):
    """Save a model as GGUF shards with the writer of the `gguf` package."""
    save_gguf(lm.model, folder / "unsplit", "F32", extra=tokenizer_to_gguf(lm.tokenizer, lm.config.vocab_size))
    reader = gguf.GGUFReader(folder / "unsplit")
    tensors = -(-len(reader.tensors) // (count - bool(options)))
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=tensors, **options)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "unsplit").unlink()
    return [folder / f"m-{no + 1:05}-of-{count:05}.gguf" for no in range(count)]


@pytest.mark.parametrize("options", [{}, {"small_first_shard": True}], ids=str)
def test_load_gguf_shards(lm, options, tmp_path):
    """The folder and any shard open the same model."""
    files = save_gguf_shards(tmp_path, lm, **options)
    assert sorted(tmp_path.iterdir()) == files
    for path in (tmp_path, *files):
        assert_same(load(path), lm)
        assert tokenizer_of(find_model(path)).encode("the cat") == lm.encode("the cat")
        assert {*end_token_ids(find_model(path))} == lm.end_ids
    (tmp_path / "config.json").write_text("{}")  # for example, of the source checkpoint
    assert find_model(tmp_path) == files[0]
    (tmp_path / "config.json").unlink()
    assert split_name(str(files[1])) == ("m", str(files[1]))
    shutil.copy(files[0], tmp_path / "n.gguf")
    with pytest.raises(
        CheckpointError, match=r"several GGUF files: give the path of one of m-00001-of-00003.gguf, n\.gguf"
    ):
        load(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"n.gguf is one of 3 shards: their names must be NAME-00001-of-00003.gguf"
    ):
        load(tmp_path / "n.gguf")


@pytest.mark.parametrize("missing", [[0], [1], [0, 2]])
def test_missing_gguf_shard_raises(lm, missing, tmp_path):
    files = save_gguf_shards(tmp_path, lm)
    for no in missing:
        files[no].unlink()
    message = rf"missing: {', '.join(files[no].name for no in missing)}"
    for path in (tmp_path, *(file for file in files if file.exists() or files[0].exists())):
        with pytest.raises(CheckpointError, match=message):
            load(path)


def test_shards_of_different_models_raise(lm, tmp_path):
    first, second, third = save_gguf_shards(tmp_path, lm)
    shutil.copy(second, third)
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003.gguf states number 1 of 3, expected 2 of 3"):
        load(first)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(save_gguf_shards(other, lm, count=3, small_first_shard=True)[2], third)
    with pytest.raises(CheckpointError, match=r"split.tensors.count is \d+, but its 3 files have \d+"):
        load(first)
    shutil.copy(second, first)
    with pytest.raises(CheckpointError, match=r"00001-of-00003.gguf states number 1 of 3, expected 0 of 3"):
        load(second)


def test_choose_sharded_gguf_files():
    files = [f"q4-{no:05}-of-00002.gguf" for no in (1, 2)]
    assert choose_files([*files, "README.md", "config.json"], "a/b") == ["config.json", *files]
    with pytest.raises(CheckpointError, match=r"download the one you want \(q4-00001-of-00002.gguf, q8.gguf\)"):
        choose_files([*files, "q8.gguf"], "a/b")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_applies_to_every_parameter(lm, dtype, tmp_path):
    """The file may mix types. Without `dtype`, a float16 file is loaded as float32 on a CPU."""
    save_gguf(lm.model, tmp_path / "a.gguf", "F16")
    loaded = load(tmp_path / "a.gguf", dtype=dtype)
    assert {p.dtype for p in loaded.model.parameters() if p.ndim > 1} == {getattr(torch, dtype)}
    assert loaded.tokenizer is None
    assert load(tmp_path / "a.gguf").model.embed.weight.dtype == torch.float32


# ---- the hub


class Hub(BaseHTTPRequestHandler):
    """Serves the files of one repository: only the routes that `huggingface_hub` requests."""

    protocol_version = "HTTP/1.1"
    repo, sha = "someone/tiny-model", "a" * 40
    files: dict[str, bytes]
    cut: set[str]  # files whose first response is truncated
    stop: threading.Event | None = None  # if set, only half of a large file is sent until the event
    refuse: tuple[int, dict[str, str]] | None = None  # (status, headers) of every response
    seen: list[tuple[str, str, str | None]]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path, ranged = self.path.partition("?")[0], self.headers.get("Range")
        self.seen.append((self.command, path, ranged))
        parts = path.strip("/").split("/")
        if self.refuse is not None:
            return self.send(self.refuse[0], b"{}", self.refuse[1], body)
        if path.startswith(f"/api/models/{self.repo}"):
            if "revision" in parts and parts[parts.index("revision") + 1] not in ("main", "v1", self.sha):
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            tree = "tree" in parts
            entries = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.files.items()]
            info = {"id": self.repo, "sha": self.sha, "siblings": [{"rfilename": n} for n in self.files], "tags": [],
                    "private": False, "downloads": 0, "likes": 0}  # fmt: skip
            return self.send(200, json.dumps(entries if tree else info).encode(), {}, body)
        name = "/".join(parts[4:])
        if "/".join(parts[:2]) != self.repo or parts[2:3] != ["resolve"] or name not in self.files:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        data = self.files[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": self.sha, "Accept-Ranges": "bytes"}
        first = int(ranged.removeprefix("bytes=").partition("-")[0]) if ranged else 0
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        return self.send(206 if first else 200, data[first:], headers, body, cut=body and name in self.cut)

    def send(self, status, data, headers, body, cut=False):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.stop is not None and len(data) > 1 << 24:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.stop.wait()
            self.close_connection = True
        elif cut:
            self.cut.clear()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
        elif body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(folder):
    handler = type("OneHub", (Hub,), {"seen": [], "cut": set()})
    handler.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    handler.files |= {"README.md": b"#", "onnx/model.onnx": b"x", "pytorch_model.bin": b"not asked for"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, handler
    server.shutdown()
    server.server_close()
    thread.join()


FETCH = """
import json, sys
from glassformer.errors import CheckpointError
from glassformer.formats.find import find_model
for name, offline in json.loads(sys.argv[1]):
    try:
        print(find_model(name, offline=offline))
    except CheckpointError as error:
        print(error)
"""


def fetch(server, home, *requests, **environment):
    """Resolve names in a child process, because `huggingface_hub` reads its settings at import."""
    host, port = server.server_address
    env = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": f"http://{host}:{port}", "HF_HUB_OFFLINE": "0",
           "PYTHONPATH": str(ROOT), **environment}  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", FETCH, json.dumps(requests)], capture_output=True, text=True, env=env, cwd=home.parent
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_hub_name_is_downloaded_then_cached(hub, lm, folder, tmp_path):
    """Found in the cache when offline by argument, by environment variable, or when the hub is unreachable."""
    server, handler = hub
    home, no_cache = tmp_path / "home", "is neither a folder nor a file here, and is not in the hub's cache: offline"
    first, out, *again, nowhere, never = fetch(
        server, home, *((Hub.repo, offline) for offline in (True, False, False, True)), ("nobody/nothing", False),
        (f"{Hub.repo}@v9", False),
    )  # fmt: skip
    assert first == f"{Hub.repo} {no_cache}"
    assert {path.name for path in Path(out).iterdir()} == {path.name for path in folder.iterdir()}
    assert_same(load(out), lm)
    assert nowhere.startswith("nobody/nothing cannot be downloaded from the hub: it does not exist, or it is private")
    assert never == f"{Hub.repo}@v9 cannot be downloaded from the hub: it has no revision 'v9' (404)"
    loaded = sorted(path.rpartition("/")[2] for get, path, _ in handler.seen if get == "GET" and "/resolve/" in path)
    assert loaded == sorted(path.name for path in folder.iterdir()), "a file was downloaded twice or not wanted"

    handler.seen.clear()
    more, other = fetch(server, home, (Hub.repo, False), ("nobody/nothing", False), HF_HUB_OFFLINE="1")
    assert other == f"nobody/nothing {no_cache}"
    assert not handler.seen
    gone, other = fetch(server, home, (Hub.repo, False), ("nobody/nothing", False), HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached" in other
    assert [*again, more, gone] == [out] * 4


def test_interrupted_download_resumes(hub, tmp_path):
    server, handler = hub
    whole = os.urandom(1 << 20) * 25  # longer than one download chunk
    handler.files["model.safetensors"], handler.cut = whole, {"model.safetensors"}
    (out,) = fetch(server, tmp_path / "home", (f"{Hub.repo}@v1", False))
    assert (Path(out) / "model.safetensors").read_bytes() == whole
    ranges = [
        ranged for command, path, ranged in handler.seen if command == "GET" and path.endswith("model.safetensors")
    ]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert 0 < int(ranges[1].removeprefix("bytes=").strip("-")) < len(whole) / 2


def test_download_resumes_after_the_process_is_killed(hub, tmp_path):
    server, handler = hub
    whole = os.urandom(1 << 20) * 20
    handler.files["model.safetensors"], handler.stop = whole, threading.Event()
    host, port = server.server_address
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"http://{host}:{port}",
           "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", FETCH, json.dumps([(Hub.repo, False)])], env=env)
    while not (parts := [p for p in tmp_path.rglob("*.part") if p.stat().st_size >= 1 << 20]):
        assert child.poll() is None
    child.kill()
    child.wait()
    handler.stop.set()
    handler.stop = None
    size, _ = parts[0].stat().st_size, handler.seen.clear()
    (out,) = fetch(server, tmp_path / "home", (Hub.repo, False))
    assert (Path(out) / "model.safetensors").read_bytes() == whole
    ranges = [ranged for get, path, ranged in handler.seen if get == "GET" and path.endswith("model.safetensors")]
    assert ranges == [f"bytes={size}-"]


def test_download_with_wrong_hash_or_size_is_deleted(tmp_path):
    part = tmp_path / "x.part"
    for data, etag, size in ((b"abc", hashlib.sha256(b"abd").hexdigest(), 3), (b"abc", "ab", 4)):
        part.write_bytes(data)
        with pytest.raises(CheckpointError, match="w was downloaded, but its size or hash is not the hub"):
            verify_download(part, "w", etag, size)
        assert not part.exists()
    part.write_bytes(b"abc")
    verify_download(part, "w", hashlib.sha256(b"abc").hexdigest(), 3)
    assert part.exists()


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, "it does not exist, or it is private and HF_TOKEN must be set"),
        (403, {"X-Error-Code": "GatedRepo"}, "access to it must be requested on its page"),
        (403, {}, r"the hub denies access: check HF_TOKEN \(403\)"),
    ],
)
def test_hub_errors_are_reported(hub, tmp_path, status, headers, message, monkeypatch):
    import huggingface_hub

    from glassformer.formats.hub import fetch as fetch_in_process

    server, handler = hub
    handler.refuse = (status, headers)
    api = huggingface_hub.HfApi(endpoint="http://{}:{}".format(*server.server_address))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match=f"{Hub.repo} cannot be downloaded from the hub: {message}"):
        fetch_in_process(Hub.repo)


def test_local_folder_has_priority_over_the_hub(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / Hub.repo)
    assert find_model(Hub.repo) == Path(Hub.repo)
    assert glassformer.load(Hub.repo).config == load(folder).config


def test_choose_files_of_a_repository():
    common = [
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "merges.txt",
        "tokenizer.model",
    ]
    safe = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    pickled = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "training_args.bin", "onnx/config.json"]
    assert sorted(choose_files(common + safe + pickled, "a/b")) == sorted(common + safe)
    assert sorted(choose_files(common + pickled, "a/b")) == sorted([*common, "pytorch_model.bin"])
    inside = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"]
    other = ["3_Dense/config.json", "3_Dense/pytorch_model.bin"]
    assert sorted(choose_files(safe + inside + other, "a/b")) == sorted(safe + inside[:3] + other)
    assert choose_files(["README.md", "a.gguf"], "a/b") == ["a.gguf"]
    with pytest.raises(CheckpointError, match=r"several GGUF files.*a\.gguf, b\.gguf"):
        choose_files(["b.gguf", "a.gguf"], "a/b")
    parts = ["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"]
    assert choose_files([*parts, "checklist.chk"], "a/b") == [*parts[::3], *parts[1:3]]
    with pytest.raises(CheckpointError, match="no supported weights"):
        choose_files(common, "a/b")

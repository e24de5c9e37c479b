"""`data check`, `train`, `eval` and `tokenizer train` read the same data in the same way, and say what they skip."""

import gzip
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from test_cli import run_error, run_ok

from glassformer.cli import _bind_dashes
from glassformer.errors import DataError
from glassformer.training.data.sources import Document

TEXTS = [f"a short text about number {i} and its friend {i * i}" for i in range(40)]
RECORDS = "".join(json.dumps({"story": text, "text": i}) + "\n" for i, text in enumerate(TEXTS))
STEP = "--steps 1 --context 16 --batch 2 --d-model 16 --n-layers 1 --n-heads 2 --threads 1".split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def index(run):
    return json.loads((run / "data" / "index.json").read_text())


CASES = {
    "field": ({"a.jsonl": RECORDS.encode()}, ["a.jsonl", "--text-field", "story"], 40),
    "separator": ({"a.txt": "\n---\n".join(TEXTS).encode()}, ["a.txt", "--separator", "---"], 40),
    "type": ({"d/a.py": b"x = 1\n" * 99, "d/b.txt": b"text", "d/c.jsonl": RECORDS.encode()}, ["d", "--ext", ".py"], 1),
    "encoding": ({"a.txt": "Zoë says ".encode("utf-16") * 99}, ["a.txt", "--encoding", "utf-16-le"], 1),
    "stdin": ({"-": RECORDS.encode()}, ["-", "--text-field", "story"], 40),
    "gz": ({"-": gzip.compress(RECORDS.encode())}, ["-", "--text-field", "story"], 40),
}


@pytest.mark.parametrize("case", CASES)
def test_every_command_reads_the_same_documents(folder, capfd, monkeypatch, case):
    files, arguments, n_documents = CASES[case]
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if name != "-":
            (folder / name).write_bytes(data)

    def run(*command):
        stdin(monkeypatch, files.get("-", b""))
        return run_ok(capfd, *command)

    made = json.loads(run("tokenizer", "train", *arguments, "--out", "tok", "--kind", "char", "--json").out)
    assert made["report"]["documents"] == n_documents
    checked = json.loads(run("data", "check", *arguments, "--tokenizer", "tok", "--json").out)
    assert checked["documents"] == n_documents
    assert made["skipped"] == checked["skipped"]
    run("train", *arguments, "--out", "run", "--tokenizer.path", "tok", *STEP)
    trained = index(folder / "run")
    assert (trained["train"], trained["held_out"]) == (checked["train"], checked["held_out"])
    assert trained["train"]["bytes"] + trained["held_out"]["bytes"] == checked["bytes"]
    assert (trained["skipped"], trained["notes"]) == (checked["skipped"], checked["notes"])
    assert sorted(p.name for p in (folder / "run").glob("stdin*")) == []
    evaluated = json.loads(run("eval", "run", *arguments, "--json").out)
    assert (evaluated["bytes"], evaluated["skipped"]) == (checked["bytes"], checked["skipped"])


def test_skipped_files_and_notes_are_printed_by_every_command(folder, capfd):
    (folder / "d").mkdir()
    (folder / "d/a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{broken\n")
    (folder / "d/latin.txt").write_bytes("naïve café\n".encode("cp1252"))
    (folder / "d/windows.txt").write_bytes(b"one\r\ntwo\r\n")
    (folder / "d/b\udcff.png").write_bytes(b"x")
    lines = run_ok(capfd, "data", "check", "d").out.splitlines()
    skipped = [line.split(maxsplit=1)[1] for line in lines if line.startswith("skipped")]
    assert skipped == [
        "1 of another type (d/b\\xff.png)",
        "1 not JSON (d/a.jsonl:41: Expecting property name enclosed in double quotes)",
        "1 not UTF-8 (d/latin.txt: byte 2, it looks like cp1252: give --encoding cp1252)",
    ]
    commands = (["train", "d", "--out", "run", *STEP], ["eval", "run", "d"], ["tokenizer", "train", "d", "--out", "t"])
    for command in commands:
        error = run_ok(capfd, *command).err
        shown = [line.removeprefix("skipped: ") for line in error.splitlines() if line.startswith("skipped: ")]
        assert shown == skipped
        assert "CRLF was replaced by LF in 1 file" in error
    assert "1 not JSON" not in run_ok(capfd, "train", "--out", "run", "--resume", "--steps", "2").err
    assert "d/a.jsonl:41: " in run_error(capfd, "train", "d", "--out", "new", "--strict", *STEP)


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        ("train - --out r", "train --out r -- -"),
        ("train a --held-out-data - --out r", "train a --held-out-data=- --out r"),
        ("train --no-shuffle - --json -", "train --no-shuffle --json -- - -"),
        ("data check a --separator ---", "data check a --separator=---"),
        ("data check a --strict -", "data check a --strict -- -"),
        ("generate m --prompt -", "generate m --prompt=-"),
        ("embed m -- - a", "embed m -- - a"),
        ("nothing --x -", "nothing --x -- -"),
        ("train a --lr -1 --out --steps 3", "train a --lr -1 --out --steps 3"),
    ],
)
def test_values_that_begin_with_a_dash(typed, parsed):
    assert _bind_dashes(typed.split()) == parsed.split()


def test_held_out_data_from_standard_input(folder, capfd, monkeypatch):
    (folder / "a.txt").write_text("\n".join(TEXTS))
    stdin(monkeypatch, b'{"text": "another text that is held out"}\n')
    run_ok(capfd, "train", "a.txt", "--out", "run", "--held-out-data", "-", *STEP)
    assert index(folder / "run")["held_out"]["bytes"] == len("another text that is held out")
    assert "cannot both be stdin" in run_error(capfd, "train", "-", "--out", "new", "--held-out-data", "-", *STEP)


ASCII = ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})


@pytest.mark.parametrize("environment", ASCII, ids=str)
def test_output_that_has_ascii_only(folder, environment):
    (folder / "zoë.txt").write_bytes("naïve “text” 🎈".encode())
    (folder / "bad\udcff.txt").write_bytes(b"\xff\xfe\xfd")
    command = [sys.executable, "-m", "glassformer", "data", "check", "."]
    plain, as_json, error = (
        subprocess.run([*command, *more], capture_output=True, env=os.environ | environment)
        for more in ([], ["--json"], ["nowhere-é"])
    )
    assert plain.returncode == as_json.returncode == 0
    assert plain.stdout.isascii()
    assert b"bad\\xff.txt: byte 0" in plain.stdout
    report = json.loads(as_json.stdout)
    assert as_json.stdout.isascii()
    assert "naïve “text” 🎈" in report["sample"]
    assert error.returncode == 1
    assert error.stderr.isascii()
    assert b"Traceback" not in error.stderr


def test_closed_standard_input_is_an_error(folder):
    command = f"{sys.executable} -m glassformer data check - <&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert "standard input is closed" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_file_names_of_data(shell):
    from glassformer.cli import app

    files = {"bash": "compgen -f", "zsh": "_files", "fish": "-F"}[shell]
    script = app.generate_completion(shell=shell)
    before = script.count(files)
    assert before > 0
    for verb in ("train", "eval", "data check", "tokenizer train"):
        assert _completes_files(app, verb.split()), verb


def _completes_files(app, path):
    from cyclopts.completion._base import CompletionAction, get_completion_action

    arguments = app.parse_commands(path)[1][-1].assemble_argument_collection(parse_docstring=False)
    return get_completion_action(next(a for a in arguments if a.name == "DATA").hint) is CompletionAction.FILES


class Nothing:
    """An iterable whose items are None."""

    def __iter__(self):
        return iter([None, None])


DOCUMENTS = {
    "text": "one text",
    "bytes": b"bytes",
    "number": 7,
    "path": Path("a.txt"),
    "mapping": {"a": 1},
    "function of nothing": lambda: None,
    "function of a text": lambda: "text",
    "numbers": [1, 2],
    "text and bytes": ["a", b"b"],
    "lists": [["a"]],
    "mixed": [Document("a", "x"), "b"],
    "iterable of nothing": Nothing(),
}


@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS)
def test_python_documents_that_are_no_texts_raise_data_error(folder, documents):
    import glassformer

    config = glassformer.TrainConfig(out="run", steps=1, threads=1)
    with pytest.raises(DataError, match="document"):
        glassformer.train(config, documents=documents)


@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS)
def test_python_examples_that_are_none_raise_data_error(folder, documents):
    import glassformer

    task = glassformer.Seq2SeqTaskConfig()
    config = glassformer.TrainConfig(out="run", steps=1, threads=1, task=task)
    with pytest.raises(DataError, match=r"example|Example"):
        glassformer.train(config, documents=documents)


@pytest.mark.parametrize("data", ["a.txt", "-"])
def test_no_temporary_folder_is_an_error_in_one_line(folder, data):
    (folder / "a.txt").write_text("text")
    code = (
        "import tempfile; tempfile._candidate_tempdir_list = lambda: ['nowhere']\n"
        f"from glassformer.cli import main; main(['data', 'check', {data!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], input="text", capture_output=True, text=True)
    assert done.returncode == 1
    assert "No usable temporary directory found" in done.stderr
    assert "Traceback" not in done.stderr

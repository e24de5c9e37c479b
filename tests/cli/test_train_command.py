"""`train` and `eval` in detail: what a command leaves behind, its exit status, and what it reports."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from test_cli import TEXT, run_error, run_ok

from glassformer.cli import main
from glassformer.families.common.shape import PRESETS

SMALL = "--d-model 32 --n-layers 1 --n-heads 2 --context 32 --batch 4 --steps 4 --threads 1".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT)
    return folder / "text.txt"


@pytest.fixture(scope="module")
def char_run(data):
    main(["train", str(data), "--out", str(data.parent / "char"), *SMALL, "--tokenizer.kind", "char"])
    return data.parent / "char"


@pytest.mark.parametrize("verb", [["train", "x.txt"], ["demo"], ["demo", "seq2seq"]])
def test_empty_out_is_rejected(capfd, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    assert "the name is empty" in run_error(capfd, *verb, "--out", "", status=2)
    assert list(tmp_path.iterdir()) == []


def test_unknown_tokens_have_no_bits_per_byte(capfd, char_run, tmp_path):
    (tmp_path / "zh.txt").write_text("今天天气很好。" * 40)
    (tmp_path / "mixed.txt").write_text("The cat sat on the mat. 天" * 40)
    found = run_ok(capfd, "eval", char_run, tmp_path / "zh.txt")
    assert "bits per byte" not in found.out
    assert "280 tokens (99.64%) are unknown to the tokenizer" in found.err  # the other one ends the text
    values = json.loads(run_ok(capfd, "eval", char_run, tmp_path / "mixed.txt", "--json").out)
    assert (values["unknown_tokens"], values["bits_per_byte"]) == (40, None)
    values = json.loads(run_ok(capfd, "eval", char_run, tmp_path.parent / char_run.parent / "text.txt", "--json").out)
    assert values["unknown_tokens"] == 0
    assert values["bits_per_byte"] > 0


def test_training_reports_the_share_of_unknown_held_out_tokens(capfd, data, tmp_path):
    (tmp_path / "held.txt").write_text("The cat sat on the mat. 天" * 40)
    out = tmp_path / "run"
    shown = run_ok(
        capfd, "train", data, "--out", out, *SMALL, "--tokenizer.kind", "char", "--held-out-data", tmp_path / "held.txt"
    ).err
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    record = next(r for r in records if "held_out_loss" in r)
    assert record["unknown"] == pytest.approx(40 / 1000, rel=0.01)
    assert "bits_per_byte" not in record
    assert "4.00% unknown tokens" in shown


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_has_the_exit_status_of_its_signal_and_says_how_to_resume(data, tmp_path, number, status):
    out = tmp_path / "my run"
    command = [sys.executable, "-m", "glassformer", "train", str(data), "--out", str(out), *SMALL]
    command[command.index("--steps") + 1] = "100000"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        shown = ""
        while "step 0: held-out" not in shown:
            line = process.stderr.readline()
            assert line, shown
            shown += line
        process.send_signal(number)
        shown += process.stderr.read()
    assert process.returncode == status, shown
    last = shown.strip().splitlines()[-1]
    assert last.startswith("stopped at step ")
    assert last.endswith(f" of 100000; resume with: glassformer train --out '{out}' --resume")


def test_help_of_train_states_meaning_and_default_of_every_option():
    command = [sys.executable, "-m", "glassformer", "train", "--help"]  # a process: the console keeps its first width
    shown = subprocess.run(
        command, env=os.environ | {"COLUMNS": "250"}, capture_output=True, text=True, check=True
    ).stdout
    for line in filter(re.compile(r"│ [* ]  --").match, shown.splitlines()):
        name, _, text = re.sub(r"^│ [* ]  |│$", "", line).strip().partition("  ")
        words = text.partition("[choices")[0].strip()
        assert len(words.partition("[default")[0].strip()) > 8, f"{name} has no meaning: {line}"
        is_flag = not re.search(r" (INT|FLOAT|STR|CHOICE|PATH)\b", name)
        stated = (
            "[default: ",
            "[required]",
            "default",
            "0 is",
            "0 chooses",
            "without",
            "instead",
            "existing",
            "Continue",
        )
        assert is_flag or any(word in words for word in stated), f"{name} has no default: {line}"
    for name, shape in PRESETS.items():
        assert re.search(
            rf"{name}: (\w+, )?{shape.d_model} wide, {shape.n_layers} layers, {shape.n_heads} heads", shown
        )
    assert "maximum global gradient norm; 0 disables clipping [default: 1.0]" in shown

"""The command line: verbs on a tiny training run, and errors for invalid input."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import glassformer
from glassformer.cli import VERBS, main
from glassformer.cli.common import print_json

TEXT = "The cat sat on the mat. The dog sat on the log. A bird sang to the cat, and the dog ran after the bird.\n" * 80


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of a few steps, trained through the command line."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT)
    sizes = "--d-model 32 --n-layers 2 --n-heads 2 --context 64 --batch 4 --steps 12 --tokenizer.vocab-size 300"
    main(["train", str(folder / "text.txt"), "--out", str(folder / "run"), *sizes.split(), "--threads", "1"])
    return folder / "run"


def run_ok(capfd, *arguments):
    """Run a command that succeeds; return stdout and stderr."""
    capfd.readouterr()
    main([str(argument) for argument in arguments])
    return capfd.readouterr()


def run_error(capfd, *arguments, status=1):
    """Run a command that fails; return stderr."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == status
    return capfd.readouterr().err


def test_help_and_import_load_no_torch():
    code = "import sys, glassformer.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'tokenizers', 'transformers'} & set(sys.modules), 'heavy imports'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in VERBS)
    done = subprocess.run(
        [sys.executable, "-c", "import sys, glassformer; assert 'torch' not in sys.modules; print(dir(glassformer))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "LanguageModel" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capfd, verb):
    shown = run_ok(capfd, verb, "--help").out
    assert "Usage: glassformer" in shown
    assert "ARGS" not in shown
    assert "--config FILE.toml" in shown


def test_transformers_opens_the_best_checkpoint(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert (run / "metrics.jsonl").exists()
    assert "<svg" in (run / "loss.svg").read_text()
    best = run / "checkpoints" / "best"
    assert AutoModelForCausalLM.from_pretrained(best).config.model_type == "qwen3"
    assert AutoTokenizer.from_pretrained(best)("The cat").input_ids


def test_generate_streams_prompt_and_continuation(capfd, run):
    shown = run_ok(capfd, "generate", run, "The cat", "--max-tokens", 5, "--seed", 3)
    assert shown.out.startswith("The cat")
    assert "step-0000" in shown.err, "the loaded checkpoint of a run is not reported"
    data = json.loads(run_ok(capfd, "generate", run, "The cat", "--max-tokens", 5, "--seed", 3, "--json").out)
    assert shown.out == "The cat" + data["continuations"][0]["text"] + "\n"
    assert data["seed"] == 3


def test_reported_seed_reproduces_the_text(capfd, run):
    shown = run_ok(capfd, "generate", run, "The dog", "--max-tokens", 8)
    seed = shown.err.rsplit("seed ", 1)[1].split()[0]
    assert run_ok(capfd, "generate", run, "The dog", "--max-tokens", 8, "--seed", seed).out == shown.out


def test_generate_from_ids_with_logprobs(capfd, run):
    data = json.loads(
        run_ok(capfd, "generate", run, "--ids", "5,6", "--max-tokens", 2, "--logprobs", 3, "--n", 2, "--json").out
    )
    assert data["prompt_ids"] == [5, 6]
    assert len(data["continuations"]) == 2
    assert all(len(token["top"]) == 3 for one in data["continuations"] for token in one["tokens"])


def test_generate_shows_the_end_token_with_its_logprob(capfd, run):
    """It ends the text, so that `ids` do not hold it."""
    lm = glassformer.load(run)
    end = lm.tokenizer.eos_id
    arguments = ("generate", run, "The", "--logprobs", 1, "--logit-bias", f"{end}=1000", "--temperature", 0)
    (one,) = json.loads(run_ok(capfd, *arguments, "--json").out)["continuations"]
    assert (one["text"], one["ids"], one["finish"]) == ("", [], "stop")
    (token,) = one["tokens"]
    assert token["id"] == end
    expected = lm.score([*lm.encode("The"), end]).tokens[-1].logprob
    assert token["logprob"] == pytest.approx(expected, abs=1e-4)
    assert lm.tokenizer.token_bytes(end).decode() in run_ok(capfd, *arguments).out


def test_eval_prints_json(capfd, run):
    data = json.loads(run_ok(capfd, "eval", run, run.parent / "text.txt", "--json").out)
    assert data["perplexity"] == pytest.approx(2.718281828 ** data["loss"], rel=1e-4)
    assert data["bytes"] <= len(TEXT)


@pytest.mark.parametrize("tensor", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
def test_weights_that_are_not_numbers_are_an_error(capfd, run, tmp_path, tensor):
    shutil.copytree(run / "checkpoints/best", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors[tensor].view(-1)[-1] = float("nan")
    save_file(tensors, tmp_path / "model/model.safetensors")
    for arguments in (["eval", run.parent / "text.txt"], ["generate", "The"], ["bench"]):
        verb, *rest = arguments
        assert "weights are NaN or infinite" in run_error(capfd, verb, tmp_path / "model", *rest)
        run_error(capfd, verb, tmp_path / "model", *rest, "--json")
        assert capfd.readouterr().out == ""


def test_json_output_has_no_nan(capfd):
    print_json({"loss": math.nan, "rows": [1.5, math.inf, (-math.inf, "a")], "path": Path("b")})
    found = json.loads(capfd.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert found == {"loss": "NaN", "rows": [1.5, "Infinity", ["-Infinity", "a"]], "path": "b"}


def test_tokenizer_verbs(capfd, run, tmp_path):
    ids = run_ok(capfd, "tokenizer", "encode", run, "The cat").out.split()
    assert run_ok(capfd, "tokenizer", "decode", run, *ids).out == "<|endoftext|>The cat\n"
    assert "'The'" in run_ok(capfd, "tokenizer", "show", run, "The").out
    run_ok(capfd, "tokenizer", "train", run.parent / "text.txt", "--out", tmp_path / "t", "--kind", "char")
    assert len(run_ok(capfd, "tokenizer", "encode", tmp_path / "t", "cat").out.split()) == 1 + 3


def test_hyphen_reads_stdin(capfd, run, monkeypatch):
    for arguments in (["-", "--max-tokens", 3, "--seed", 1], ["--max-tokens", 3, "--seed", 1, "--", "-"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("The cat"))
        assert run_ok(capfd, "generate", run, *arguments).out.startswith("The cat")
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat"))
    assert "'The'" in run_ok(capfd, "tokenizer", "show", run, "-").out
    assert "Unknown option" in run_error(capfd, "generate", run, "-", "--max-token", 3, status=2)


def test_data_check(capfd, run):
    (run.parent / "binary.txt").write_bytes(b"a\0b")
    shown = run_ok(capfd, "data", "check", run.parent / "text.txt", run.parent / "binary.txt", "--tokenizer", run).out
    assert "documents    1" in shown
    assert "binary" in shown


def test_chat_without_template_continues_the_text(capfd, run, monkeypatch):
    lines = iter(["The cat", "", "The dog"])

    def typed(prompt=""):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    shown = run_ok(capfd, "chat", run, "--max-tokens", 3, "--seed", 1)
    assert "a new text" in shown.err
    assert "tokens/s" in shown.err


TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{{ '<|end|>' }}"


def type_lines(monkeypatch, *lines):
    """Replace `input` by these lines, then Ctrl-D; an exception among them is raised."""
    given = iter([*lines, EOFError()])

    def typed(prompt=""):
        line = next(given)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)


def test_chat_with_template_sends_the_conversation(capfd, run, tmp_path, monkeypatch):
    import glassformer
    from glassformer.text.chat.chat_template import ChatTemplate

    lm = glassformer.load(run)
    lm.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TURNS)
    sent = []
    encode = ChatTemplate.encode
    monkeypatch.setattr(
        ChatTemplate,
        "encode",
        lambda self, messages, **f: sent.append(messages) or encode(self, messages, **f),
    )
    type_lines(monkeypatch, "The cat", KeyboardInterrupt(), "The dog", "", "A")
    shown = run_ok(capfd, "chat", tmp_path, "--max-tokens", 3, "--seed", 1, "--system", "Be brief.")
    assert "each line is a message" in shown.err
    assert shown.err.count("tokens/s") == 3
    assert "Ctrl-D ends" in shown.err
    roles = [[message["role"] for message in messages] for messages in sent]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert sent[1][2]["content"] in shown.out


def test_a_named_chat_template_is_chosen_by_name(capfd, run, tmp_path, monkeypatch):
    import glassformer
    from glassformer.text.chat.chat_template import ChatTemplate

    glassformer.load(run).save(tmp_path)
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "brief.jinja").write_text(TURNS)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('the default') }}")
    used = []
    encode = ChatTemplate.encode
    monkeypatch.setattr(ChatTemplate, "encode", lambda self, *a, **f: used.append(self.name) or encode(self, *a, **f))
    type_lines(monkeypatch, "The cat")
    run_ok(capfd, "chat", tmp_path, "--chat-template", "brief", "--max-tokens", 3)
    assert used == ["brief"]
    for verb in ("chat", "serve"):
        options = ["--port", 0] if verb == "serve" else []
        shown = run_error(capfd, verb, tmp_path, "--chat-template", "long", *options)
        assert "'long'" in shown
        assert "brief" in shown
        assert "default" in shown


def test_chat_reserves_at_most_half_of_the_context_for_an_answer(capfd, run, monkeypatch):
    type_lines(monkeypatch, "The cat sat on the mat.")
    assert "only the last" not in run_ok(capfd, "chat", run, "--seed", 1).err  # --max-tokens is above the context of 64


def test_chat_reports_a_missing_template(capfd, run, monkeypatch):
    type_lines(monkeypatch)
    assert "no chat template, so plain continuation" in run_ok(capfd, "chat", run).err
    assert "--system needs a chat template" in run_error(capfd, "chat", run, "--system", "Be brief.")


def test_ctrl_c_stops_only_the_answer(capfd, run, monkeypatch):
    from glassformer.models.language_model import LanguageModel

    stream, stopped = LanguageModel.stream, []

    def interrupted(self, *args, **options):
        events = stream(self, *args, **options)
        yield next(events)
        if not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        yield from events

    monkeypatch.setattr(LanguageModel, "stream", interrupted)
    type_lines(monkeypatch, "The cat", "The dog")
    shown = run_ok(capfd, "chat", run, "--max-tokens", 3)
    assert "1 token, " in shown.err
    assert shown.err.count("tokens/s") == 2


def test_flags_override_the_config_file(capfd, run, tmp_path):
    (tmp_path / "o.toml").write_text("max_tokens = 2\nseed = 4\n")
    config = ["--config", tmp_path / "o.toml"]
    data = json.loads(run_ok(capfd, "generate", run, "The", "--json", *config).out)
    assert (len(data["continuations"][0]["ids"]), data["seed"]) == (2, 4)
    data = json.loads(run_ok(capfd, "generate", run, "The", "--json", "--max-tokens", 3, *config).out)
    assert len(data["continuations"][0]["ids"]) == 3
    (tmp_path / "o.toml").write_text("max_token = 2\n")
    assert "max_token" in run_error(capfd, "generate", run, "The", *config, status=2) + capfd.readouterr().out


def test_resume_continues_training(capfd, run):
    shown = run_ok(capfd, "train", "--out", run, "--resume", "--steps", 14)
    assert "step 14" in shown.err


PAIRS = "".join(f"{i} plus one\t{i + 1}\n" for i in range(100)) + "no tab here\n"


@pytest.mark.parametrize("sizes", ["--n-heads 2 --norm-at pre", "--arch recurrent --attention none --cell lstm"])
def test_train_seq2seq(capfd, tmp_path, sizes):
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    common = "--task seq2seq --d-model 16 --n-layers 1 --context 32 --batch 8 --steps 4 --threads 1"
    arguments = ["train", tmp_path / "pairs.tsv", "--out", tmp_path / "run", *common.split(), *sizes.split()]
    data = run_ok(capfd, *arguments).err
    assert "% exact match" in data
    assert "1 no tab between source and target" in data
    assert "pairs.tsv:101" in data
    task = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["task"]
    assert task["kind"] == "seq2seq"
    assert task["model"].get("attention", 0) is (None if "none" in sizes else 0)
    assert "step 6" in run_ok(capfd, "train", "--out", tmp_path / "run", "--resume", "--steps", 6).err
    assert "pairs.tsv:101: no tab" in run_error(capfd, *arguments[:3], tmp_path / "b", *arguments[4:], "--strict")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["generate", "nowhere", "x"], "nowhere is not a folder"),
        (["generate", "RUN", "x", "--temperature", "-1"], "temperature must be"),
        (["generate", "RUN", "x", "--temperature", "0", "--top-k", "3"], "--top-k has no effect"),
        (["generate", "RUN", "x", "--max-tokens", "500"], "context holds 64"),
        (["generate", "RUN", "x", "--device", "abacus"], "device 'abacus'"),
        (["generate", "RUN", "--ids", "1,x"], "--ids must be whole numbers"),
        (["train", "--out", "NEW"], "DATA is missing"),
        (["train", "nothing-here.txt", "--out", "NEW"], "nothing-here.txt"),
        (["train", "TEXT", "--out", "RUN"], "holds a run already"),
        (["train", "TEXT", "--out", "NEW", "--d-model", "30", "--n-heads", "4"], "multiple of --n-heads"),
        (["train", "--task", "seq2seq", "--out", "NEW"], "DATA is missing: give files, folders, globs"),
        (["train", "TEXT", "--task", "seq2seq", "--out", "NEW"], "no example could be read"),
        (["train", "TEXT", "--out", "NEW", "--cell", "gru"], "--cell is an option of --task seq2seq --arch recurrent"),
        (["train", "TEXT", "--out", "NEW", "--arch", "recurrent"], "--arch is an option of --task seq2seq"),
        (["train", "TEXT", "--task", "seq2seq", "--out", "NEW", "--rope-theta", "5"], "--rope-theta is an option of"),
        (["train", "TEXT", "--task", "seq2seq", "--out", "NEW", "--preset", "tiny"], "--preset is an option of"),
        (
            ["train", "TEXT", "--out", "NEW", "--label-smoothing", "0.1"],
            "--label-smoothing is an option of --task seq2seq",
        ),
        (["train", "TEXT", "--out", "NEW", "--optim.embed-lr", "-1"], "--optim.embed-lr must be above 0"),
        (
            ["train", "TEXT", "--out", "NEW", "--n-heads", "3"],
            "--d-model must be a multiple of --n-heads",
        ),
        (["train", "TEXT", "--out", "NEW", "--init.std", "1e99"], "--init.std must be above 0 and at most 1,000"),
        (["generate", "RUN", "x", "--max-tokens", "0"], "--max-tokens must be a whole number from 1, got 0"),
        (["chat", "RUN", "--max-tokens", "0"], "--max-tokens must be a whole number from 1, got 0"),
        (["serve", "RUN", "--port", "99999"], "--port must be from 0"),
        (["eval", "RUN"], "DATA is missing"),
        (["eval", "RUN", "TEXT", "--batch", "-1"], "--batch must be at least 1, got -1"),
        (["eval", "RUN", "TEXT", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["eval", "RUN", "TEXT", "--overlap", "-1"], "--overlap must be at least 0, got -1"),
        (["eval", "RUN", "TEXT", "--overlap", "64"], "overlap must be from 0 to 63, got 64"),
        (["eval", "RUN", "TEXT", "--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
        (["train", "TEXT", "--out", "NEW", "--seconds", "inf"], "seconds must be a finite number or None, got inf"),
        (["train", "TEXT", "--out", "NEW", "--optim.lr", "nan"], "optim.lr must be a finite number or None, got nan"),
        (["demo", "--out", "NEW", "--seconds", "inf"], "seconds must be a finite number or None, got inf"),
        (["demo", "--out", "NEW", "--seconds", "-1"], "seconds must be above 0, got -1"),
        (["tokenizer", "decode", "RUN", "99999"], "99999"),
        (["bench", "RUN", "--rounds", "0"], "rounds must be"),
    ],
)
def test_invalid_input_raises_error_that_names_it(capfd, run, tmp_path, arguments, what):
    paths = {"RUN": str(run), "TEXT": str(run.parent / "text.txt"), "NEW": str(tmp_path / "new")}
    assert what in run_error(capfd, *(paths.get(argument, argument) for argument in arguments))


def test_unknown_option_exits_with_status_2(capfd, run):
    assert (
        "temprature" in run_error(capfd, "generate", run, "x", "--temprature", "1", status=2) + capfd.readouterr().out
    )


def test_closed_pipe_is_not_an_error(run):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    (run.parent / "long.txt").write_text("the cat sat " * 20_000)
    command = [sys.executable, "-m", "glassformer", "tokenizer", "show", str(run), "-"]
    pipe = subprocess.PIPE
    with (
        open(run.parent / "long.txt") as text,
        subprocess.Popen(command, stdin=text, stdout=pipe, stderr=pipe, env=environment) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()

"""Every option of `train --task seq2seq` changes the configuration or raises an error that names it."""

import json
from dataclasses import fields, replace

import pytest
from test_cli import run_error, run_ok

from glassformer.cli.train import (
    InitOptions,
    ModelOptions,
    OptimOptions,
    ReadingOptions,
    RunOptions,
    ScheduleOptions,
    TaskOptions,
    TokenizerOptions,
)
from glassformer.errors import ConfigError
from glassformer.training.config import TrainConfig, config_dict, flatten
from glassformer.training.run.run_file import RESUME_MAY_CHANGE, RunFile, check_resume

EXAMPLES = "".join(f"{i} plus one\t{i + 1}\n" for i in range(60))
SMALL = "--task seq2seq --d-model 16 --n-layers 1 --context 32 --batch 8 --steps 2 --threads 1".split()
SMALL += ["--exact-match-examples", "4"]
VALUES = {  # option: (argument, or the flag itself; resulting value, or None if it is an error for seq2seq)
    "family": ("llama", None), "d_model": ("24", 24), "n_layers": ("2", 2), "n_heads": ("2", 2),
    "n_kv_heads": ("1", None), "head_dim": ("8", None), "d_ff": ("48", 48), "context": ("24", 24),
    "tied_head": ("--no-tied-head", False), "rope_theta": ("9.0", None), "arch": ("recurrent", ...),
    "source_context": ("40", 40), "norm_at": ("pre", "pre"), "positions": ("learned", "learned"),
    "shared_embedding": ("--no-shared-embedding", False), "d_hidden": ("20", 20), "cell": ("lstm", "lstm"),
    "bidirectional": ("--no-bidirectional", False), "attention": ("dot", "dot"),
    "input_feeding": ("--input-feeding", True), "preset": ("tiny", None),
    "seconds": ("9.0", 9.0), "steps": ("7", 7), "tokens": ("700", 700), "batch": ("4", 4), "accumulate": ("3", 3),
    "eval_every": ("5", 5), "eval_tokens": ("999", 999), "save_every": ("5", 5), "keep_last": ("4", 4),
    "sample_every": ("5", 5),
    "sample_prompt": ("1 plus", "1 plus"), "sample_tokens": ("9", 9), "held_out": ("0.2", 0.2),
    "text_field": ("story", None), "separator": ("<|end|>", None), "ext": (".py", (".py",)),
    "encoding": ("utf-16", "utf-16"),
    "held_out_data": ("some.tsv", ("some.tsv",)), "label_smoothing": ("0.1", 0.1), "exact_match_examples": ("3", 3),
    "strict": ("--strict", True), "shuffle": ("--no-shuffle", None), "seed": ("3", 3), "compile": ("--compile", None),
    "tensorboard": ("--tensorboard", True), "wandb": ("--wandb", True), "dtype": ("float32", "float32"),
    "device": ("cpu", "cpu"), "threads": ("2", 2),
    "tokenizer.path": ("somewhere", "somewhere"), "tokenizer.kind": ("word", "word"),
    "tokenizer.vocab_size": ("99", 99), "init.std": ("0.1", None), "init.out_std": ("0.1", None),
    "init.qk_gain": ("2.0", None), "init.look_back": ("2.0", None), "optim.name": ("adamw", "adamw"),
    "optim.lr": ("0.003", 0.003), "optim.embed_lr": ("0.003", 0.003), "optim.scalar_lr": ("0.003", 0.003),
    "optim.betas": ("0.8 0.9", (0.8, 0.9)), "optim.eps": ("1e-6", 1e-6), "optim.weight_decay": ("0.2", 0.2),
    "optim.clip": ("2.0", 2.0), "optim.momentum": ("0.9", 0.9), "optim.nesterov": ("--optim.no-nesterov", False),
    "optim.muon_scale": ("rms", "rms"), "optim.muon_dtype": ("float32", "float32"),
    "schedule.kind": ("cosine", "cosine"), "schedule.warmup": ("9", 9), "schedule.min_ratio": ("0.1", 0.1),
    "schedule.decay": ("0.4", 0.4),
}  # fmt: skip
GROUPS = {"tokenizer": TokenizerOptions, "init": InitOptions, "optim": OptimOptions, "schedule": ScheduleOptions}
RECURRENT_ONLY = {"d_hidden", "cell", "bidirectional", "attention", "input_feeding"}
VALUES["tokenizer.digits_apart"] = ("--tokenizer.digits-apart", True)
REQUIRED_OPTIONS = {
    "tokenizer.digits_apart": ["--tokenizer.kind", "bpe"],
    "input_feeding": ["--attention", "dot"],
    "sample_every": ["--sample-prompt", "1 plus"],
}


def command_arguments(name):
    value = VALUES[name][0]
    dashed = f"--{name.replace('_', '-')}"
    return [value] if value.startswith("--") else [dashed, *(value.split() if "betas" in name else [value])]


class TrainCalled(Exception):
    """Raised instead of training, with the TrainConfig."""


@pytest.fixture
def parse_config(monkeypatch, tmp_path):
    """Return a function from arguments to the TrainConfig that the command gives to `glassformer.train`."""
    import glassformer
    from glassformer.cli import main

    def stop(config, **_):
        raise TrainCalled(config)

    monkeypatch.setattr(glassformer, "train", stop, raising=False)

    def parse(*arguments) -> TrainConfig:
        with pytest.raises(TrainCalled) as stopped:
            main(["train", *map(str, arguments)])
        return stopped.value.args[0]

    return parse


def test_values_cover_every_option():
    groups = (ModelOptions, TaskOptions, ReadingOptions, RunOptions)
    options = {f.name for group in groups for f in fields(group)} | {"preset", "arch"}
    options |= {f"{group}.{f.name}" for group, kind in GROUPS.items() for f in fields(kind)}
    assert set(VALUES) == options


def config_key(name, flat) -> str:
    return next(key for key in (name, f"read.{name}", f"task.{name}", f"task.model.{name}") if key in flat)


@pytest.mark.parametrize("name", VALUES)
def test_option_changes_config_or_raises_error_that_names_it(name, parse_config, capfd):
    base = ["p.tsv", "--task", "seq2seq", "--out", "new", *REQUIRED_OPTIONS.get(name, [])]
    base += ["--arch", "recurrent"] if name in RECURRENT_ONLY else []
    expected = VALUES[name][1]
    if expected is None:
        error = run_error(capfd, "train", *base, *command_arguments(name))
        group = name.split(".")[0]
        assert group in error or group.replace("_", "-") in error
        assert "task lm" in error
        return
    before, after = (parse_config(*base, *arguments) for arguments in ((), command_arguments(name)))
    if expected is ...:
        assert type(before.task.model) is not type(after.task.model)
        return
    a, b = (flatten(config_dict(config)) for config in (before, after))
    changed = {key: b[key] for key in b if a.get(key) != b[key]}
    assert changed == {config_key(name, b): list(expected) if isinstance(expected, tuple) else expected}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from glassformer.cli import main

    folder = tmp_path_factory.mktemp("options")
    (folder / "p.tsv").write_text(EXAMPLES)
    main(["train", str(folder / "p.tsv"), "--out", str(folder / "run"), *SMALL])
    return folder / "run"


@pytest.mark.parametrize("name", VALUES)
def test_option_with_resume_changes_config_or_raises_error(name, parse_config, capfd, run):
    """An option on the command line counts even if its value is the default."""
    recorded = RunFile.read(run)
    needs = REQUIRED_OPTIONS.get(name, []) if name == "sample_every" else []
    arguments = ["--out", run, "--resume", *needs, *command_arguments(name)]
    try:
        config = parse_config(*arguments)
    except SystemExit:
        error = capfd.readouterr().err
        assert name.split(".")[0] in error or name.replace("_", "-") in error
        return
    flat, expected = flatten(config_dict(config)), VALUES[name][1]
    assert expected is not None
    assert flat[config_key(name, flat)] == (list(expected) if isinstance(expected, tuple) else expected)
    assert name in RESUME_MAY_CHANGE or name in resume_message(recorded, config), "neither an error nor a warning"


def resume_message(recorded, config) -> str:
    """Return the warning or the error of resuming with this configuration."""
    try:
        return "; ".join(check_resume(recorded, config))
    except ConfigError as error:
        return str(error)


def test_recorded_value_is_the_default_with_resume(parse_config, run):
    assert parse_config("--out", run, "--resume").batch == 8
    assert parse_config("--out", run, "--resume", "--batch", 32).batch == 32


def test_given_defaults_replace_recorded_values_with_resume(parse_config, run, tmp_path):
    changed = [
        ("optim.clip", "0", "1.0", 1.0), ("optim.weight_decay", "0.2", "0.01", 0.01), ("seconds", "9", "120", 120.0),
        ("schedule.warmup", "9", "50", 50), ("keep_last", "4", "2", 2), ("label_smoothing", "0.1", "0", 0.0),
    ]  # fmt: skip
    others = [word for name, other, *_ in changed for word in (dash(name), other)]
    defaults = [word for name, _, default, _ in changed for word in (dash(name), default)]
    first = parse_config("p.tsv", "--task", "seq2seq", "--out", tmp_path, *others)
    RunFile(first, {}).write(tmp_path)
    flat = flatten(config_dict(parse_config("--out", tmp_path, "--resume", *defaults)))
    assert {name: flat[config_key(name, flat)] for name, *_ in changed} == {name: value for name, *_, value in changed}
    assert parse_config("--out", tmp_path, "--resume") == replace(first, resume=True)


def dash(name):
    return f"--{name.replace('_', '-')}"


def test_resume_with_option_of_another_run_raises_error(capfd, run):
    common = ("train", "--out", run, "--resume")
    assert "is a run of --task seq2seq, got --task lm" in run_error(capfd, *common, "--task", "lm")
    assert "was started with the data" in run_error(capfd, *common, "other.tsv")
    assert "--arch cannot be given with --resume" in run_error(capfd, *common, "--arch", "recurrent")
    assert "--preset cannot be given with --resume" in run_error(capfd, *common, "--preset", "tiny")
    assert "task.model.d_model was 16, now 32" in run_error(capfd, *common, "--d-model", 32)
    assert "optim.name was 'muon', now 'adamw'" in run_error(capfd, *common, "--optim.name", "adamw")
    assert "from_model was None, now 'x'" in run_error(capfd, *common, "--from", "x")
    assert "tokenizer.kind was 'auto', now 'word'" in run_error(capfd, *common, "--tokenizer.kind", "word")
    assert "task.strict was False, now True" in run_error(capfd, *common, "--strict")
    assert "--held-out-data was" in run_error(capfd, *common, "--held-out-data", "x.tsv")


def test_from_a_translator(capfd, run, tmp_path):
    data, held_out = run.parent / "p.tsv", tmp_path / "h.tsv"
    held_out.write_text("61 plus one\t62\n")
    common = ["train", data, "--task", "seq2seq", "--from", run, "--out", tmp_path / "b"]
    assert "leave out --arch, --d-model" in run_error(capfd, *common, "--d-model", 8, "--arch", "recurrent")
    assert "leave out --preset" in run_error(capfd, *common, "--preset", "tiny")
    assert "context is 99, more than the 32" in run_error(capfd, *common, "--context", 99)
    assert "tokenizer.kind applies to a newly trained" in run_error(capfd, *common, "--tokenizer.kind", "word")
    assert "language model" in run_error(capfd, *common[:5], "stories", *common[6:])
    run_ok(
        capfd,
        *common,
        "--steps",
        1,
        "--context",
        20,
        "--held-out-data",
        held_out,
        "--exact-match-examples",
        2,
        "--batch",
        1,
    )
    model = json.loads((tmp_path / "b" / "run.json").read_text())["config"]["task"]["model"]
    assert (model["d_model"], model["context"], model["source_context"]) == (16, 20, 32)


def test_unusable_examples_are_skipped_or_raise_error(capfd, tmp_path):
    (tmp_path / "p.tsv").write_text(EXAMPLES + "no tab\n\tno source\nno target\t\n" + "x" * 33 + "\ty\n")
    common = ["train", tmp_path / "p.tsv", "--out", tmp_path / "run", *SMALL]
    assert "p.tsv:61: no tab between source and target" in run_error(capfd, *common, "--strict")
    errors = run_ok(capfd, *common).err  # the same folder: the failed run created nothing in it
    for reason in (
        "1 no tab between source and target", "1 empty source", "1 empty target", "1 source of more than 32 tokens",
    ):  # fmt: skip
        assert f"skipped: {reason} ({tmp_path}/p.tsv:6" in errors
    assert "57 training examples, 3 held out" in errors
    assert 'Choose from: "lm", "seq2seq"' in run_error(
        capfd, "train", "x", "--out", tmp_path / "c", "--task", "translation", status=2
    )


def test_data_check_of_examples(capfd, run, tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text(EXAMPLES + "no tab\n" + "x" * 33 + "\ty\n")
    check = ["data", "check", path, "--task", "seq2seq"]
    output = run_ok(capfd, *check, "--tokenizer", run, "--context", 32).out
    assert "examples     61, of which 60 are usable" in output
    assert f"skipped      1 source of more than 32 tokens ({path}:62: 33 tokens)" in output
    output = json.loads(run_ok(capfd, *check, "--json").out)
    assert (output["train"] + output["held_out"], output["skipped"].keys()) == (
        61,
        {"no tab between source and target"},
    )
    assert "p.tsv:61: no tab" in run_error(capfd, *check, "--strict")
    assert "separator is an option of task lm" in run_error(capfd, *check, "--separator", "x")
    assert "--text-field is an option of task lm" in run_error(capfd, *check, "--text-field", "x")
    assert "context must be at least 2" in run_error(capfd, *check, "--context", 0)
    assert "--source-context is an option of --task seq2seq" in run_error(capfd, *check[:3], "--source-context", 9)

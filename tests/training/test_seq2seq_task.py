"""Training on seq2seq examples: learning, micro-batches, resumption, and errors for unusable data."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import Crash, Log, crash, differing, end_state, losses, memory_folder, metrics, replaced
from tiny_seq2seq import RECURRENT, SHAPES, TRANSFORMER, seq2seq_config, seq2seq_run, some_examples

from glassformer.errors import ConfigError, DataError
from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape, ShapeConfig
from glassformer.models.translator import Translator
from glassformer.nn.step import Step
from glassformer.toys import dates
from glassformer.training.config import (
    LanguageModelTaskConfig,
    OptimConfig,
    ScheduleConfig,
    Seq2SeqTaskConfig,
    TokenizerConfig,
    TrainConfig,
    config_dict,
    from_dict,
)
from glassformer.training.data.seq2seq_batches import seq2seq_eval_batches
from glassformer.training.data.seq2seq_examples import Seq2SeqExample, Seq2SeqFiles
from glassformer.training.data.seq2seq_store import load_examples
from glassformer.training.optim.storage import role_of
from glassformer.training.run.distributed import SINGLE_PROCESS
from glassformer.training.run.run_file import resume_config
from glassformer.training.run.train import train
from glassformer.training.tasks.evaluate import Compute
from glassformer.training.tasks.seq2seq import Seq2SeqTask
from glassformer.training.tasks.seq2seq_model import create_seq2seq_model


@pytest.fixture
def tmp_path():
    with memory_folder() as folder:
        yield folder


def load_task(run, config) -> Seq2SeqTask:
    """Return the task with the model of the last checkpoint."""
    return Seq2SeqTask(config, SINGLE_PROCESS, Compute(torch.device("cpu"), torch.float32), run.last)


LEARNERS = {
    "transformer": (
        Seq2SeqShape(d_model=48, n_layers=1, n_heads=4, d_ff=96, context=12, positions="learned"),
        OptimConfig(lr=0.02, embed_lr=0.01, muon_dtype="float32"),
        500,
    ),
    "recurrent": (
        RecurrentShape(d_model=24, d_hidden=64, context=12),
        OptimConfig(name="adamw", lr=0.01, weight_decay=0.0),
        300,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_model_learns_to_reverse(tmp_path, name):
    shape, optim, steps = LEARNERS[name]
    config = seq2seq_config(
        tmp_path / "run", model=shape, optim=optim, steps=steps, batch=32, eval_every=steps, save_every=steps,
        exact_match_examples=200, sample_prompt="stressed", schedule=ScheduleConfig(warmup=20, decay=0.5),
    )  # fmt: skip
    log = Log()
    given = {
        split: list(dates.examples("reverse", 0, split, n, 0)) for split, n in (("train", 6000), ("held-out", 300))
    }
    run = train(config, documents=given["train"], held_out=given["held-out"], reporter=log)
    records = [r for r in metrics(run.folder) if "held_out_loss" in r]
    assert [r["step"] for r in records] == [0, steps]
    assert records[0]["exact"] == 0
    assert run.held_out.exact == records[-1]["exact"] >= 0.97
    assert records[-1]["held_out_loss"] < 0.05
    assert log.all("on_sample")[-1] == (steps, "stressed -> desserts")
    assert "6,000 training examples, 300 held out" in [text for text, *_ in log.all("on_message")]


def test_metrics_have_every_step_and_the_exact_match(tmp_path):
    log = Log()
    run = seq2seq_run(tmp_path / "run", log)
    records = metrics(run.folder)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))
    evals = [r for r in records if "held_out_loss" in r]
    assert [r["step"] for r in evals] == [0, 2, 4, 6, 8]
    assert all(r["exact"] in (0, 0.25, 0.5, 0.75, 1) and "bits_per_byte" not in r for r in evals)
    assert evals[-1]["held_out_loss"] < evals[0]["held_out_loss"]
    assert [entry[0] for entry in log.all("on_checkpoint")] == [2, 4, 6, 8]
    assert (run.folder / "loss.svg").exists()
    info = log.all("on_start")[0][0]
    train_examples, held_out = load_examples(run.folder / "data")
    assert (len(train_examples), len(held_out)) == (72, 8)
    assert info.train_tokens == int((train_examples.target.lengths + 1).sum())
    assert run.tokens <= 8 * 8 * 9
    translator = Translator.load(run.last)
    assert translator.tokenizer.vocab_size == translator.model.config.vocab_size
    assert translator.translate(["abc"])[0].targets


def test_without_held_out_examples_or_exact_match(tmp_path):
    run = seq2seq_run(tmp_path / "none", held_out=0.0)
    assert run.held_out is None
    assert all("loss" in r for r in metrics(run.folder))
    run = seq2seq_run(tmp_path / "loss only", exact_match_examples=0)
    assert run.held_out is not None
    assert run.held_out.exact is None
    assert all("exact" not in r for r in metrics(run.folder))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_micro_batches_equal_one_batch(tmp_path, shape, smoothing):
    common = {"model": SHAPES[shape], "label_smoothing": smoothing}
    seq2seq_run(tmp_path / "one", batch=8, accumulate=1, **common)
    seq2seq_run(tmp_path / "four", batch=2, accumulate=4, **common)
    one, four = tmp_path / "one", tmp_path / "four"
    assert [r["tokens"] for r in metrics(one)] == [r["tokens"] for r in metrics(four)]
    assert losses(four) == pytest.approx(losses(one), rel=1e-5, abs=0)
    a, b = (load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (one, four))
    relevant = [n for n in a if not n.endswith(".k.bias")]  # softmax cancels it: its gradient is noise
    difference = max((a[n] - b[n]).abs().max().item() for n in relevant)
    assert 0 < difference < 1e-4  # from the order of summation alone


def test_label_smoothing_changes_only_the_training_loss(tmp_path):
    seq2seq_run(tmp_path / "sharp", steps=1)
    seq2seq_run(tmp_path / "smooth", steps=1, label_smoothing=0.3)
    sharp, smooth = metrics(tmp_path / "sharp"), metrics(tmp_path / "smooth")
    assert sharp[0] == smooth[0]  # held-out, before the first step
    assert sharp[1]["loss"] != smooth[1]["loss"]


VARIANTS = {
    "lstm": {"model": replace(RECURRENT, cell="lstm", attention="general", input_feeding=True, n_layers=2)},
    "bottleneck": {
        "model": replace(RECURRENT, attention=None),
        "optim": OptimConfig(name="adamw"),
        "schedule": ScheduleConfig("inverse_sqrt", warmup=3),
    },
    "pre-norm": {
        "model": replace(TRANSFORMER, norm_at="pre", positions="learned", shared_embedding=False),
        "dtype": "bfloat16",
        "optim": OptimConfig(),
    },
    "accumulate": {"accumulate": 2, "batch": 4, "label_smoothing": 0.1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted(tmp_path, name):
    changes = {"steps": 12, "save_every": 4, "eval_every": 2, "sample_prompt": "abc", **VARIANTS[name]}
    seq2seq_run(tmp_path / "uninterrupted", **changes)
    for step in (1, 7, 11):  # before a checkpoint, after that of step 4, after that of step 8
        with pytest.raises(Crash):
            seq2seq_run(tmp_path / "run", Log({step: crash}), resume=step > 1, **changes)
    log = Log()
    run = train(seq2seq_config(tmp_path / "run", resume=True, **changes), reporter=log)  # without the examples
    assert run.step == 12
    assert log.all("on_message") == []
    assert [r[0].step for r in log.all("on_step")] == [9, 10, 11, 12]
    assert differing(end_state(tmp_path / "run"), end_state(tmp_path / "uninterrupted")) == []


def test_resume_config_is_the_recorded_one(tmp_path):
    seq2seq_run(tmp_path / "run", steps=2, model=RECURRENT)
    config = resume_config(tmp_path / "run", steps=4)
    assert config == seq2seq_config(tmp_path / "run", steps=4, model=RECURRENT, resume=True)
    assert train(config).step == 4
    with pytest.raises(ConfigError, match=r"other options: .*model.cell was"):
        train(replaced(config, model=replace(RECURRENT, cell="lstm")))
    path = tmp_path / "run" / "data" / "pairs.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"is not the data that this run was started with|cannot be read"):
        train(config)
    path.write_bytes(raw[:-20])
    with pytest.raises(DataError, match=r"pairs.safetensors cannot be read"):
        train(config)


def test_same_seed_gives_same_bits_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        seq2seq_run(tmp_path / name, seed=seed, steps=4)
    assert end_state(tmp_path / "a") == end_state(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


@pytest.mark.parametrize("name", SHAPES)
def test_evaluation_and_decoding_equal_the_reference(tmp_path, name):
    """The reference: torch's cross-entropy, and a forward pass over the complete sequence for each token."""
    config = seq2seq_config(tmp_path / "run", model=SHAPES[name], steps=30, save_every=30, exact_match_examples=8)
    run = train(config, documents=some_examples())
    task = load_task(run, config)
    nats, tokens, right = 0.0, 0, 0
    for batch in seq2seq_eval_batches(load_examples(run.folder / "data")[1], 1):
        logits = reference_logits(task, batch.source, batch.inputs)
        nats += torch.nn.functional.cross_entropy(logits[0], batch.targets[0], reduction="sum").item()
        tokens += batch.tokens
        ids = batch.inputs[:, :1]
        while ids.shape[1] <= batch.tokens:
            best = reference_logits(task, batch.source, ids)[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], 1)
            if best.item() == task.loader.examples.eos_id:
                break
        right += ids[0, 1:].tolist() == batch.targets[0].tolist()
        found = task.generate(batch.source.tolist(), batch.tokens)[0]
        assert found == [i for i in ids[0, 1:].tolist() if i != task.loader.examples.eos_id]
    evaluation = task.evaluate()
    assert evaluation == run.held_out
    assert evaluation.tokens == tokens
    assert evaluation.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert evaluation.exact == right / 8


def reference_logits(task, source, ids):
    with torch.no_grad():
        if isinstance(task.task.model, RecurrentShape):
            return task.model(source, ids)
        return task.model(ids, Step.of(ids, source=task.model.encode(source, Step.of(source))))


def test_roles_of_an_encoder_decoder():
    roles = {}
    for shape in (replace(TRANSFORMER, positions="learned", tied_head=False), RECURRENT):
        roles |= {n: role_of(n, p) for n, p in create_seq2seq_model(shape.expand(9), 0).named_parameters()}
    assert {n for n, role in roles.items() if role == "embed"} == {
        "embed.weight", "positions.weight", "encoder.positions.weight", "source_embed.weight"
    }  # fmt: skip
    assert {n for n, role in roles.items() if role == "head"} == {"head.weight"}
    for name in ("encoder.blocks.0.attn.q.weight", "blocks.0.cross.k.weight", "encoder.weight_hh_l0", "combine.weight"):
        assert roles[name] == "hidden"


def test_unusable_lines_of_a_file_are_reported(tmp_path):
    lines = [f"{pair.source}\t{pair.target}" for pair in some_examples()]
    lines[3], lines[5] = "no tab in it", "x" * 40 + "\tx"
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(lines))
    log = Log()
    run = train(seq2seq_config(tmp_path / "run", data=(str(path),), tokenizer=TokenizerConfig()), reporter=log)
    assert run.step == 8
    messages = [text for text, *_ in log.all("on_message")]
    assert any(text.startswith("trained a tokenizer of") and text.endswith("(char)") for text in messages)
    assert f"skipped: 1 no tab between source and target ({path}:4)" in messages
    assert f"skipped: 1 source of more than 16 tokens ({path}:6: 40 tokens)" in messages
    assert "71 training examples, 7 held out" in messages
    with pytest.raises(DataError, match=r"pairs.tsv:4: no tab"):
        train(seq2seq_config(tmp_path / "strict", data=(str(path),), strict=True))
    lines[3] = lines[4]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"pairs.tsv:6: source of more than 16 tokens"):
        train(seq2seq_config(tmp_path / "strict2", data=(str(path),), strict=True))


def test_unusable_data_raises_data_error(tmp_path):
    (tmp_path / "empty.tsv").write_text("no tab here\n")
    with pytest.raises(DataError, match=r"no example could be read from .*no tab between source and target"):
        train(seq2seq_config(tmp_path / "a", data=(str(tmp_path / "empty.tsv"),)))
    with pytest.raises(DataError, match="there is no training data"):
        train(seq2seq_config(tmp_path / "b"))
    with pytest.raises(DataError, match=r"too few examples: 72, and a batch has 100: lower batch to at most 72"):
        seq2seq_run(tmp_path / "c", batch=100)
    with pytest.raises(DataError, match=r"must be a Seq2SeqExample, got str"):
        train(seq2seq_config(tmp_path / "d"), documents=lambda: iter(["a text"]))
    with pytest.raises(ConfigError, match="sample_prompt has 20 tokens"):
        seq2seq_run(tmp_path / "e", sample_prompt="x" * 20)


def test_held_out_sources_are_removed_from_training(tmp_path):
    pairs = some_examples()
    train(seq2seq_config(tmp_path / "run", steps=1), documents=lambda: iter(pairs), held_out=pairs[:10])
    train_examples, held_out = load_examples(tmp_path / "run" / "data")
    assert len(held_out) == 10
    sources = [{side.source.sequence(i).tobytes() for i in range(len(side))} for side in (train_examples, held_out)]
    assert not sources[0] & sources[1]
    assert len(train_examples) == sum(pair.source not in {p.source for p in pairs[:10]} for pair in pairs)


def test_files_as_documents_argument(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"source": p.source, "target": p.target}) + "\n" for p in some_examples()))
    run = train(
        seq2seq_config(tmp_path / "run", steps=1), documents=Seq2SeqFiles(path), held_out=[Seq2SeqExample("abc", "cba")]
    )
    assert run.held_out.tokens == 4


def test_config_json_round_trip():
    for shape in (TRANSFORMER, RECURRENT, replace(RECURRENT, attention=None)):
        task = Seq2SeqTaskConfig(model=shape, label_smoothing=0.1)
        config = TrainConfig(task=task, schedule=ScheduleConfig("inverse_sqrt"))
        assert from_dict(TrainConfig, json.loads(json.dumps(config_dict(config)))) == config
    assert TrainConfig(task=Seq2SeqTaskConfig(model=RECURRENT)).tokenizer_kind == "char"
    assert TrainConfig().tokenizer_kind == "bpe"
    assert TrainConfig(tokenizer=TokenizerConfig(kind="word")).tokenizer_kind == "word"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Seq2SeqTaskConfig(model=ShapeConfig()),
            "task.model must be a Seq2SeqShape or a RecurrentShape, got ShapeConfig",
        ),
        (
            lambda: LanguageModelTaskConfig(model=TRANSFORMER),
            "task.model must be a ShapeConfig or a ModelConfig, got Seq2SeqShape",
        ),
        (lambda: Seq2SeqTaskConfig(label_smoothing=1.0), "label_smoothing must be at least 0 and below 1, got 1.0"),
        (lambda: TrainConfig(task=Seq2SeqTaskConfig(), sample_every=2), "sample_every needs a sample_prompt"),
    ],
)
def test_contradicting_options_raise_config_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_recurrent_model_trains_in_float32(tmp_path):
    log = Log()
    seq2seq_run(tmp_path / "run", log, model=RECURRENT, dtype="auto", steps=1)
    assert any("float32: a recurrent model" in choice for choice in log.all("on_start")[0][0].choices)
    with pytest.raises(ConfigError, match="dtype must be auto or float32 for a recurrent model"):
        seq2seq_run(tmp_path / "other", model=RECURRENT, dtype="bfloat16")

"""Options of seq2seq training: budgets, continued models, held-out data, and the loss curve."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tiny_runs import Log, differing, end_state, memory_folder, metrics, tiny_config
from tiny_seq2seq import RECURRENT, SHAPES, TRANSFORMER, letters, seq2seq_config, seq2seq_run, some_examples

from glassformer.errors import CheckpointError, ConfigError
from glassformer.families.common.shape import RecurrentShape
from glassformer.models.translator import Translator
from glassformer.text.files.load import load_tokenizer
from glassformer.text.train import train_tokenizer
from glassformer.training.config import InitConfig, LanguageModelTaskConfig, TokenizerConfig, TrainConfig
from glassformer.training.data.seq2seq_store import load_examples
from glassformer.training.data.shards import Shards
from glassformer.training.run.loss_curve import write_loss_curve
from glassformer.training.run.run_file import resume_config
from glassformer.training.run.train import train
from glassformer.training.tasks.seq2seq_model import checkpoint_shape, create_seq2seq_model


@pytest.fixture
def tmp_path():
    with memory_folder() as folder:
        yield folder


def write_tsv(path, examples):
    path.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in examples))
    return str(path)


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "batch", "accumulate"), [(1, 8, 1), (300, 8, 1), (1500, 8, 1), (1500, 4, 3)])
def test_token_budget_ends_with_the_step_that_reaches_it(tmp_path, tokens, batch, accumulate):
    """Over three epochs, whose batches differ in their number of tokens."""
    run = seq2seq_run(
        tmp_path / "run", steps=None, tokens=tokens, batch=batch, accumulate=accumulate, eval_every=0, save_every=0,
        exact_match_examples=0,
    )  # fmt: skip
    counts = [0, *(r["tokens"] for r in metrics(run.folder) if "loss" in r)]
    assert counts[-1] == run.tokens
    assert counts[-2] < tokens <= counts[-1]
    assert run.step == run.steps == len(counts) - 1


def test_token_budget_of_one_epoch(tmp_path):
    a = seq2seq_run(tmp_path / "a", steps=9, exact_match_examples=0)  # 72 examples in batches of 8
    assert seq2seq_run(tmp_path / "b", steps=None, tokens=a.tokens, exact_match_examples=0).step == 9
    assert seq2seq_run(tmp_path / "c", steps=None, tokens=a.tokens + 1, exact_match_examples=0).step == 10
    more = resume_config(tmp_path / "b", tokens=2 * a.tokens)
    assert train(more).step == 18


# --- continuing from another model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_continue_from_a_translator(tmp_path, name):
    """The run starts at the loss of the model, with its tokenizer, and can be resumed."""
    examples = some_examples()
    first = train(seq2seq_config(tmp_path / "a", model=SHAPES[name]), documents=examples[10:], held_out=examples[:10])
    shape = replace(checkpoint_shape(tmp_path / "a"), context=12, source_context=10)
    settings = {"model": shape, "from_model": str(tmp_path / "a"), "tokenizer": TokenizerConfig(), "steps": 4}
    for out, steps in (("b", 4), ("c", 2)):
        train(
            seq2seq_config(tmp_path / out, **settings | {"steps": steps}),
            documents=examples[10:],
            held_out=examples[:10],
        )
    records = metrics(tmp_path / "b")
    assert records[0]["held_out_loss"] == first.held_out.loss
    assert records[0]["exact"] == first.held_out.exact
    assert records[-1]["held_out_loss"] < records[0]["held_out_loss"]
    a, b = (Translator.load(tmp_path / out) for out in "ab")
    assert a.tokenizer.encode("abc") == b.tokenizer.encode("abc")
    assert a.config == b.config, "the model keeps its context when training sequences are shorter"
    train(resume_config(tmp_path / "c", steps=4))
    with torch.no_grad():
        same = [torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True)]
    assert not all(same)
    assert losses_of(tmp_path / "c")[:2] == losses_of(tmp_path / "b")[:2]
    assert len(losses_of(tmp_path / "c")) == 4


def losses_of(folder):
    return [r["loss"] for r in metrics(folder) if "loss" in r]


KINDS = [
    TRANSFORMER,
    replace(TRANSFORMER, norm_at="pre", positions="learned", shared_embedding=False, tied_head=False, source_context=9),
    replace(RECURRENT, cell="lstm", attention="general", input_feeding=True, n_layers=2, bidirectional=False),
    replace(RECURRENT, attention=None, shared_embedding=False),
]


@pytest.mark.parametrize("shape", KINDS, ids=str)
def test_checkpoint_shape_is_that_of_the_model(tmp_path, shape):
    tokenizer = load_tokenizer(letters().path)
    config = shape.expand(tokenizer.vocab_size)
    Translator(create_seq2seq_model(config, 0), tokenizer).save(tmp_path / "m")
    found = checkpoint_shape(tmp_path / "m")
    assert found.expand(tokenizer.vocab_size) == config
    if isinstance(found, RecurrentShape):
        assert found.context == RecurrentShape.context


def test_options_that_differ_from_the_model_raise_error(tmp_path):
    seq2seq_run(tmp_path / "a", steps=1)
    own, common = checkpoint_shape(tmp_path / "a"), {"from_model": str(tmp_path / "a"), "tokenizer": TokenizerConfig()}

    def expect(error, match, **changes):
        with pytest.raises(error, match=match):
            seq2seq_run(tmp_path / "b", **common | {"model": own, **changes})

    expect(ConfigError, r"d_model 32 \(it has 16\)", model=replace(own, d_model=32))
    expect(ConfigError, "has a Seq2SeqShape, got model RecurrentShape", model=RECURRENT)
    expect(ConfigError, "context is 17, more than the 16 of", model=replace(own, context=17))
    expect(ConfigError, "source_context is 99", model=replace(own, source_context=99))
    expect(ConfigError, "tokenizer.kind applies to a newly trained tokenizer", tokenizer=TokenizerConfig(kind="word"))
    expect(CheckpointError, "is not a folder", from_model=str(tmp_path / "nowhere"))
    expect(CheckpointError, "stories is a language model", from_model="stories")
    big = train_tokenizer(["".join(chr(200 + i) for i in range(100))], kind="char", vocab_size=200)
    big.save(tmp_path / "big")
    wide = TokenizerConfig(path=str(tmp_path / "big"))
    expect(ConfigError, "more than the model's vocab_size of", tokenizer=wide, held_out=0.1)
    with pytest.raises(ConfigError, match=r"tokenizer.vocab_size applies to a newly trained tokenizer"):
        TokenizerConfig(path="x", vocab_size=5)
    with pytest.raises(ConfigError, match=r"tokenizer.digits_apart applies to a bpe tokenizer, got kind char"):
        replace(seq2seq_config("x"), tokenizer=TokenizerConfig(digits_apart=True))
    with pytest.raises(ConfigError, match="init applies to new weights"):
        TrainConfig(from_model="x", task=LanguageModelTaskConfig(init=InitConfig(std=0.1)))


# --- held-out data ----------------------------------------------------------------------------------------------------


def test_held_out_files_equal_held_out_examples(tmp_path):
    """The run is bit-identical to one with the same examples given in memory."""
    examples, log = some_examples(), Log()
    data, aside = write_tsv(tmp_path / "d.tsv", examples), write_tsv(tmp_path / "h.tsv", examples[:10])
    run = train(seq2seq_config(tmp_path / "a", data=(data,), held_out_data=(aside,), held_out=0.05), reporter=log)
    train(seq2seq_config(tmp_path / "b"), documents=examples, held_out=examples[:10])
    differences = set(differing(end_state(tmp_path / "a"), end_state(tmp_path / "b")))
    assert differences <= {"run.json"}, differences
    overlap = sum(e.source in {h.source for h in examples[:10]} for e in examples)
    assert f"skipped: {overlap} training examples whose source is held out" in [t for t, *_ in log.all("on_message")]
    assert [len(part) for part in load_examples(run.folder / "data")] == [80 - overlap, 10]
    counts = json.loads((run.folder / "data" / "pairs.json").read_text())
    assert counts == {"train": 80 - overlap, "held_out": 10, "source_held_out": overlap, "left_out": {}}


def test_held_out_files_of_a_language_model(tmp_path):
    (tmp_path / "d.txt").write_text("The cat sat on the mat. " * 40)
    (tmp_path / "h.txt").write_text("The dog sat on the log. " * 9)
    data, aside = (str(tmp_path / name) for name in ("d.txt", "h.txt"))
    config = replace(tiny_config(tmp_path / "run", letters().path), held_out=0.05, steps=1)
    train(replace(config, data=(data,), held_out_data=(aside,)))
    shards = Shards(tmp_path / "run" / "data")
    assert (shards.train.n_documents, shards.held_out.n_documents) == (1, 1)
    assert shards.held_out.n_tokens < shards.train.n_tokens / 4


def test_held_out_given_twice_raises_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"held_out and held_out_data exclude each other, got held_out 0.2"):
        TrainConfig(held_out=0.2, held_out_data=("x",))
    with pytest.raises(ConfigError, match="cannot both be stdin"):
        TrainConfig(data=("-",), held_out_data=("-",))
    with pytest.raises(ConfigError, match="give one of them"):
        train(seq2seq_config(tmp_path / "a", held_out=0.05, held_out_data=("x",)), held_out=some_examples())


def test_skipped_examples_are_recorded_in_the_run_folder(tmp_path):
    path = tmp_path / "d.tsv"
    write_tsv(path, some_examples())
    with open(path, "a") as file:
        file.write("no target\n\tno source\n" + "x" * 20 + "\ty\n")
    train(seq2seq_config(tmp_path / "run", data=(str(path),), steps=1))
    counts = json.loads((tmp_path / "run" / "data" / "pairs.json").read_text())
    assert counts["train"] + counts["held_out"] == 80
    assert counts["left_out"] == {
        "no tab between source and target": {"count": 1, "examples": [f"{path}:81"]},
        "empty source": {"count": 1, "examples": [f"{path}:82"]},
        "source of more than 16 tokens": {"count": 1, "examples": [f"{path}:83: 20 tokens"]},
    }


# --- the loss curve ---------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def lines_of(folder):
    """Return each curve of loss.svg [points, 2] by its class, and all texts."""
    root = ElementTree.parse(folder / "loss.svg").getroot()
    found = {}
    for line in root.iter(f"{SVG}polyline"):
        found[line.get("class")] = np.array([p.split(",") for p in line.get("points").split()], float)
    return found, [text.text for text in root.iter(f"{SVG}text")]


def test_exact_match_has_its_own_panel(tmp_path):
    tokens, exact = np.array([0, 900, 1500, 2500, 4000]), np.array([0, 0.125, 0.5, 1, 0.875])
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for t, share in zip(tokens.tolist(), exact.tolist(), strict=True):
            file.write(json.dumps({"step": t, "tokens": t, "loss": 3 - t / 2000}) + "\n")
            file.write(json.dumps({"step": t, "tokens": t, "held_out_loss": 3 - t / 2000, "exact": share}) + "\n")
    write_loss_curve(tmp_path, "a <run>")
    lines, texts = lines_of(tmp_path)
    drawn = lines["exact"]
    for values, places, sign in ((tokens, drawn[:, 0], 1), (exact, drawn[:, 1], -1)):  # an affine map
        slope, begin = np.polyfit(values, places, 1)
        np.testing.assert_allclose(places, slope * values + begin, atol=0.11)
        assert slope * sign > 0
    np.testing.assert_allclose(lines["held"][:, 0], drawn[:, 0])
    assert drawn[:, 1].min() > max(lines["held"][:, 1].max(), lines["train"][:, 1].max()), "a panel of its own"
    assert {"exact match (%)", "exact match", "100", "loss (nats per token)", "a <run>"} <= set(texts)
    marks = {float(t.text): float(t.get("y")) - 4 for t in left_of(tmp_path) if float(t.get("y")) > 360}
    assert marks[100] == pytest.approx(drawn[3, 1], abs=0.11), "tick labels have the scale of the curve"
    assert marks[0] == pytest.approx(drawn[0, 1], abs=0.11)
    assert marks[50] == pytest.approx(drawn[2, 1], abs=0.11)


def left_of(folder):
    """Return the tick labels of the vertical axes."""
    root = ElementTree.parse(folder / "loss.svg").getroot()
    return [text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "end"]


def test_no_exact_match_panel_without_exact_match(tmp_path):
    seq2seq_run(tmp_path / "run", exact_match_examples=0)
    lines, texts = lines_of(tmp_path / "run")
    assert set(lines) == {"train", "held"}
    assert "exact match" not in texts
    seq2seq_run(tmp_path / "other", steps=1)
    assert set(lines_of(tmp_path / "other")[0]) == {"train", "held", "exact"}

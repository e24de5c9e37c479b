"""Options of training on pairs: each does what it says, as it does in training on text, or is refused by its name."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tiny_runs import Log, differing, end_state, memory_folder, metrics, tiny_config
from tiny_seq2seq import RECURRENT, SHAPES, TRANSFORMER, letters, pair_config, pair_run, some_pairs

from glassformer.errors import CheckpointError, ConfigError
from glassformer.families.common.shape import RecurrentShape
from glassformer.models.translator import Translator
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer
from glassformer.training.config import InitConfig, TokenizerConfig, TrainConfig
from glassformer.training.data.seq2seq_store import load_examples
from glassformer.training.data.shards import Shards
from glassformer.training.run.loss_curve import write_loss_curve
from glassformer.training.run.run_file import resume_config
from glassformer.training.run.train import train
from glassformer.training.tasks.seq2seq_model import create_seq2seq_model, model_shape


@pytest.fixture
def tmp_path():
    with memory_folder() as folder:
        yield folder


def written(path, pairs):
    path.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in pairs))
    return str(path)


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "batch", "accumulate"), [(1, 8, 1), (300, 8, 1), (1500, 8, 1), (1500, 4, 3)])
def test_a_budget_of_tokens_ends_with_the_step_that_fills_it(tmp_path, tokens, batch, accumulate):
    """Through three epochs, whose batches have other tokens each time."""
    run = pair_run(
        tmp_path / "run", steps=None, tokens=tokens, batch=batch, accumulate=accumulate, exact_pairs=0, eval_every=0,
        save_every=0,
    )  # fmt: skip
    counts = [0, *(r["tokens"] for r in metrics(run.folder) if "loss" in r)]
    assert counts[-1] == run.tokens
    assert counts[-2] < tokens <= counts[-1]
    assert run.step == run.steps == len(counts) - 1


def test_a_budget_of_exactly_an_epoch_is_an_epoch(tmp_path):
    a = pair_run(tmp_path / "a", steps=9, exact_pairs=0)  # 72 pairs, 8 at a time
    assert pair_run(tmp_path / "b", steps=None, tokens=a.tokens, exact_pairs=0).step == 9
    assert pair_run(tmp_path / "c", steps=None, tokens=a.tokens + 1, exact_pairs=0).step == 10
    more = resume_config(tmp_path / "b", tokens=2 * a.tokens)
    assert train(more).step == 18


# --- another model to go on from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_going_on_from_a_translator(tmp_path, name):
    """It begins where the other ended, with its tokenizer, and is then a run like any other."""
    pairs = some_pairs()
    first = train(pair_config(tmp_path / "a", model=SHAPES[name]), documents=pairs[10:], held_out=pairs[:10])
    shape = replace(model_shape(tmp_path / "a"), context=12, source_context=10)
    settings = {"model": shape, "from_model": str(tmp_path / "a"), "tokenizer": TokenizerConfig(), "steps": 4}
    for out, steps in (("b", 4), ("c", 2)):
        train(pair_config(tmp_path / out, **settings | {"steps": steps}), documents=pairs[10:], held_out=pairs[:10])
    records = metrics(tmp_path / "b")
    assert records[0]["held_out_loss"] == first.held_out.loss
    assert records[0]["exact"] == first.held_out.exact
    assert records[-1]["held_out_loss"] < records[0]["held_out_loss"]
    a, b = (Translator.load(tmp_path / out) for out in "ab")
    assert a.tokenizer.encode("abc") == b.tokenizer.encode("abc")
    assert a.config == b.config, "the model keeps its own context, whatever its rows are"
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
def test_a_models_shape_is_what_it_was_made_of(tmp_path, shape):
    tokenizer = Tokenizer.load(letters().path)
    config = shape.expand(tokenizer.vocab_size)
    Translator(create_seq2seq_model(config, 0), tokenizer).save(tmp_path / "m")
    found = model_shape(tmp_path / "m")
    assert found.expand(tokenizer.vocab_size) == config
    if isinstance(found, RecurrentShape):
        assert found.context == RecurrentShape.context


def test_what_does_not_fit_the_model_is_refused(tmp_path):
    pair_run(tmp_path / "a", steps=1)
    own, common = model_shape(tmp_path / "a"), {"from_model": str(tmp_path / "a"), "tokenizer": TokenizerConfig()}

    def refused(error, match, **changes):
        with pytest.raises(error, match=match):
            pair_run(tmp_path / "b", **common | {"model": own, **changes})

    refused(ConfigError, "d_model 32 where it has 16", model=replace(own, d_model=32))
    refused(ConfigError, "has a PairShape, and the settings say RecurrentShape", model=RECURRENT)
    refused(ConfigError, "context is 17, and .* at most 16", model=replace(own, context=17))
    refused(ConfigError, "source_context is 99", model=replace(own, source_context=99))
    refused(ConfigError, "tokenizer.kind is of a new tokenizer", tokenizer=TokenizerConfig(kind="word"))
    refused(CheckpointError, "is not a folder", from_model=str(tmp_path / "nowhere"))
    refused(CheckpointError, "stories is a language model", from_model="stories")
    big = train_tokenizer(["".join(chr(200 + i) for i in range(100))], kind="char", vocab_size=200)
    big.save(tmp_path / "big")
    wide = TokenizerConfig(path=str(tmp_path / "big"))
    refused(ConfigError, "and the model's vocab_size is", tokenizer=wide, held_out=0.1)
    with pytest.raises(ConfigError, match=r"tokenizer.vocab_size is of a new tokenizer, and path names one"):
        TokenizerConfig(path="x", vocab_size=5)
    with pytest.raises(ConfigError, match=r"tokenizer.digits_apart is of a bpe tokenizer, this one is of kind char"):
        replace(pair_config("x"), tokenizer=TokenizerConfig(digits_apart=True))
    with pytest.raises(ConfigError, match="init is of new weights"):
        TrainConfig(from_model="x", init=InitConfig(std=0.1))


# --- what is held out -------------------------------------------------------------------------------------------------


def test_held_out_files_are_held_out(tmp_path):
    """The same run, bit for bit, as with the same pairs given in memory."""
    pairs, log = some_pairs(), Log()
    data, aside = written(tmp_path / "d.tsv", pairs), written(tmp_path / "h.tsv", pairs[:10])
    run = train(pair_config(tmp_path / "a", data=(data,), held_out_data=(aside,), held_out=0.05), reporter=log)
    train(pair_config(tmp_path / "b"), documents=pairs, held_out=pairs[:10])
    apart = set(differing(end_state(tmp_path / "a"), end_state(tmp_path / "b")))
    assert apart <= {"run.json", "settings"}, apart
    overlap = sum(pair.source in {p.source for p in pairs[:10]} for pair in pairs)
    assert f"left out: {overlap} pairs to train on whose source is held out" in [t for t, *_ in log.all("on_message")]
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


def test_two_answers_to_what_is_held_out_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"held_out_data is what is held out: leave out held_out, got 0.2"):
        TrainConfig(held_out=0.2, held_out_data=("x",))
    with pytest.raises(ConfigError, match="cannot both be stdin"):
        TrainConfig(data=("-",), held_out_data=("-",))
    with pytest.raises(ConfigError, match="give one of them"):
        train(pair_config(tmp_path / "a", held_out=0.05, held_out_data=("x",)), held_out=some_pairs())


def test_what_is_left_out_is_kept_in_the_runs_folder(tmp_path):
    path = tmp_path / "d.tsv"
    written(path, some_pairs())
    with open(path, "a") as file:
        file.write("no target\n\tno source\n" + "x" * 20 + "\ty\n")
    train(pair_config(tmp_path / "run", data=(str(path),), steps=1))
    counts = json.loads((tmp_path / "run" / "data" / "pairs.json").read_text())
    assert counts["train"] + counts["held_out"] == 80
    assert counts["left_out"] == {
        "no tab between source and target": {"count": 1, "examples": [f"{path}:81"]},
        "empty source": {"count": 1, "examples": [f"{path}:82"]},
        "source of more than 16 tokens": {"count": 1, "examples": [f"{path}:83: 20 tokens"]},
    }


# --- the curve --------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def lines_of(folder):
    """Each curve of loss.svg by its class: [points, 2]."""
    root = ElementTree.parse(folder / "loss.svg").getroot()
    found = {}
    for line in root.iter(f"{SVG}polyline"):
        found[line.get("class")] = np.array([p.split(",") for p in line.get("points").split()], float)
    return found, [text.text for text in root.iter(f"{SVG}text")]


def test_exact_match_is_drawn_where_there_is_one(tmp_path):
    tokens, exact = np.array([0, 900, 1500, 2500, 4000]), np.array([0, 0.125, 0.5, 1, 0.875])
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for t, share in zip(tokens.tolist(), exact.tolist(), strict=True):
            file.write(json.dumps({"step": t, "tokens": t, "loss": 3 - t / 2000}) + "\n")
            file.write(json.dumps({"step": t, "tokens": t, "held_out_loss": 3 - t / 2000, "exact": share}) + "\n")
    write_loss_curve(tmp_path, "a <run>")
    lines, texts = lines_of(tmp_path)
    drawn = lines["exact"]
    for values, places, sign in ((tokens, drawn[:, 0], 1), (exact, drawn[:, 1], -1)):  # stretched and moved
        slope, begin = np.polyfit(values, places, 1)
        np.testing.assert_allclose(places, slope * values + begin, atol=0.11)
        assert slope * sign > 0
    np.testing.assert_allclose(lines["held"][:, 0], drawn[:, 0])
    assert drawn[:, 1].min() > max(lines["held"][:, 1].max(), lines["train"][:, 1].max()), "a panel of its own"
    assert {"exact match (%)", "exact match", "100", "loss (nats per token)", "a <run>"} <= set(texts)
    marks = {float(t.text): float(t.get("y")) - 4 for t in left_of(tmp_path) if float(t.get("y")) > 360}
    assert marks[100] == pytest.approx(drawn[3, 1], abs=0.11), "the number beside a mark is the curve's"
    assert marks[0] == pytest.approx(drawn[0, 1], abs=0.11)
    assert marks[50] == pytest.approx(drawn[2, 1], abs=0.11)


def left_of(folder):
    """The numbers beside the panels."""
    root = ElementTree.parse(folder / "loss.svg").getroot()
    return [text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "end"]


def test_no_panel_where_nothing_is_written(tmp_path):
    pair_run(tmp_path / "run", exact_pairs=0)
    lines, texts = lines_of(tmp_path / "run")
    assert set(lines) == {"train", "held"}
    assert "exact match" not in texts
    pair_run(tmp_path / "other", steps=1)
    assert set(lines_of(tmp_path / "other")[0]) == {"train", "held", "exact"}

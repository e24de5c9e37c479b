"""Test the recipe of the demo and the model that ships with the package."""

import json
from random import Random

import pytest

import glassformer
from glassformer.formats.find import find_model
from glassformer.inspect.views.roles import head_roles
from glassformer.nn.model import Decoder
from glassformer.toys import stories as corpus
from glassformer.toys import stories_recipe as recipe
from glassformer.toys import stories_scores as stories
from glassformer.training.init import init_weights


@pytest.fixture(scope="module")
def shipped():
    return glassformer.load("stories", device="cpu")


NOUNS = {noun for nouns in corpus.NOUNS.values() for noun in nouns}


@pytest.mark.parametrize("word", recipe.BETWEEN)
def test_drill_repeats_the_same_pairs(word):
    drill = recipe.drill(Random(3), [word])
    sentences = [sentence.split() for sentence in drill.rstrip(".").split(". ")]
    assert all(sentence[1:-1] == word.split() for sentence in sentences)
    assert all({sentence[0], sentence[-1]} <= NOUNS for sentence in sentences)
    pairs = [frozenset((sentence[0], sentence[-1])) for sentence in sentences]
    assert len(pairs) == recipe.DRILL_WORDS // (3 + len(word.split()))
    different = set(pairs)
    assert 3 <= len(different) <= 8
    assert set(pairs[: len(different)]) == different, "every pair comes once before any comes again"
    assert len({sentence[0] for sentence in sentences}) > len(different), "either way round"


def test_echo_repeats_itself():
    periods = set()
    for i in range(50):
        echo = recipe.echo(Random(i))
        assert len(echo.encode()) in (recipe.ECHO_BYTES - 1, recipe.ECHO_BYTES), "nearly a row"
        periods |= {next(n for n in range(1, 41) if echo[n:] == echo[:-n])}
    assert len(periods) > 15


def kind(document: str) -> str:
    if "?" in document and "\n" in document:
        return "story"
    return "drill" if set(document.replace(".", "").split()) & NOUNS else "echo"


def test_training_documents_go_from_drills_to_the_last_level():
    read = list(recipe.training_documents(1, 60_000, 40_000))
    assert read == list(recipe.training_documents(1, 60_000, 40_000))
    assert read != list(recipe.training_documents(2, 60_000, 40_000))
    kinds = [kind(document) for document in read]
    first, half = kinds.index("story"), len(read) // 2
    assert set(kinds[:first]) == {"drill"}
    assert first == int(recipe.DRILL_SHARE * 40_000 / recipe.DRILL_TOKENS)
    assert kinds[first:half].count("drill") > 4 * kinds[half:].count("drill") > 0
    assert kinds.count("echo") > 3
    last = {story.document for story in corpus.stories(1, "train", 50)}
    assert last <= set(read)
    assert not set(recipe.held_out_documents(100)) & set(read)


@pytest.mark.parametrize("tokens", [100_000, 300_000])
def test_training_documents_have_about_the_given_tokens(tokens, shipped):
    read = recipe.training_documents(3, tokens, 150_000)
    assert sum(len(shipped.encode(document)) + 1 for document in read) == pytest.approx(tokens, rel=0.06)


class Oracle:
    """Answers every question by replaying the story."""

    def __call__(self, prompts, max_tokens):
        answers = []
        for prompt in prompts:
            text, _, question = prompt.rpartition("\n")
            world = corpus.StoryWorld()
            for i, sentence in enumerate(corpus.split_story(text)[0]):
                world.apply(corpus.parse_sentence(sentence, first=i == 0))
            facts = [corpus.render_question(*fact) for fact in world.facts()]
            answers.append(" " + next(q.answer for q in facts if q.prompt == question))
        return answers


def test_oracle_has_accuracy_one():
    assert stories.score_answers(Oracle(), 20)["all"] == 1.0


def test_the_shipped_model_is_small_and_described(shipped):
    folder = find_model("stories")
    assert (folder / "model.safetensors").stat().st_size <= 3_000_000
    assert json.loads((folder / "run.json").read_text())["plan"]["steps"] > 1000
    assert "<svg" in (folder / "loss.svg").read_text()
    assert shipped.config.context_length == recipe.SHAPE.context


def test_the_shipped_model_has_its_recorded_scores(shipped):
    told = json.loads((find_model("stories") / "scores.json").read_text())
    found = recipe.score(shipped, questions=40, texts=20)
    assert found.answers == pytest.approx(told["trained"]["answers"], abs=0.12)
    assert found.wellformed > 0.97
    assert max(told["baselines"].values()) <= 0.40
    assert found.answers > max(told["baselines"].values())


def test_the_shipped_model_has_previous_token_and_induction_heads(shipped):
    """Far above an untrained model's, on random tokens of the whole vocabulary said twice.

    A run of the recipe begins with heads that look back; so previous-token heads are compared with any other start.
    """
    trained, begun = head_roles(shipped.model), head_roles(recipe.untrained(shipped, 0).model)
    plain = head_roles(init_weights(Decoder(shipped.config), 0))
    assert trained.previous_token.max() > 5 * plain.previous_token.max()
    assert trained.induction.max() > 5 * max(plain.induction.max(), begun.induction.max())

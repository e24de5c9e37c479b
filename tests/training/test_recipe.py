"""The demonstration's recipe, and the model that ships with the package."""

import json
from itertools import islice
from random import Random

import pytest

import glassformer
from glassformer.inspect.roles import head_roles
from glassformer.lm import find
from glassformer.training import corpus, recipe, stories


def test_a_drill_says_the_same_pairs_over_and_over():
    drill = recipe.drill(Random(3))
    pairs = [frozenset(sentence.split()) for sentence in drill.rstrip(".").split(". ")]
    assert len(pairs) == recipe.DRILL_PAIRS
    different = set(pairs)
    assert 3 <= len(different) <= 8
    assert set(pairs[: len(different)]) == different, "every pair comes once before any comes again"
    firsts = {sentence.split()[0] for sentence in drill.rstrip(".").split(". ")}
    assert len(firsts) > len(different), "either way round"


def test_reading_goes_from_drills_to_the_whole_language_and_repeats():
    read = list(recipe.reading(1, 60_000, 40_000))
    assert read == list(recipe.reading(1, 60_000, 40_000))
    assert read != list(recipe.reading(2, 60_000, 40_000))
    first_story = next(i for i, document in enumerate(read) if "?" in document)
    assert all("?" not in document for document in read[:first_story])
    assert all("?" in document for document in read[first_story:])
    last = set(islice((s.document for s in corpus.stories(1, "train", 50)), 50))
    assert last <= set(read)
    assert not set(recipe.held_out(100)) & set(read)


class Oracle:
    """Answers every question by replaying the story."""

    def __call__(self, prompts, max_tokens):
        answers = []
        for prompt in prompts:
            text, _, question = prompt.rpartition("\n")
            world = corpus.World()
            for i, sentence in enumerate(corpus.split_story(text)[0]):
                world.apply(corpus.parse_sentence(sentence, first=i == 0))
            facts = [corpus.render_question(*fact) for fact in world.facts()]
            answers.append(" " + next(q.answer for q in facts if q.prompt == question))
        return answers


def test_an_oracle_answers_everything_right():
    assert stories.score_answers(Oracle(), 20)["all"] == 1.0


@pytest.fixture(scope="module")
def shipped():
    return glassformer.load("stories", device="cpu")


def test_the_shipped_model_is_small_and_says_what_it_is(shipped):
    folder = find("stories")
    assert (folder / "model.safetensors").stat().st_size <= 3_000_000
    assert json.loads((folder / "run.json").read_text())["plan"]["steps"] > 1000
    assert "<svg" in (folder / "loss.svg").read_text()
    assert shipped.config.context_length == recipe.SHAPE.context


def test_the_shipped_model_scores_what_is_written_beside_it(shipped):
    told = json.loads((find("stories") / "scores.json").read_text())
    found = recipe.score(shipped, questions=40, texts=20)
    assert found.answers == pytest.approx(told["trained"]["answers"], abs=0.12)
    assert found.wellformed > 0.97
    assert max(told["baselines"].values()) <= 0.40
    assert found.answers > max(told["baselines"].values())


def test_the_shipped_model_has_previous_token_heads(shipped):
    from glassformer.nn.init import init_weights
    from glassformer.nn.model import Decoder

    roles, plain = head_roles(shipped.model), head_roles(init_weights(Decoder(shipped.config), 0))
    assert roles.previous_token.max() > 5 * plain.previous_token.max()

"""Test the three systems of `demo seq2seq`: their data and their scores."""

from dataclasses import replace
from itertools import islice

import pytest
from generate.scripted import make_tokenizer
from tiny import randomise

from glassformer.families.common.shape import Seq2SeqShape
from glassformer.models.translator import Translator
from glassformer.nn.model import EncoderDecoder
from glassformer.toys import dates
from glassformer.toys import dates_recipe as pair_recipe
from glassformer.training.config import TrainConfig


@pytest.mark.parametrize("task", dates.TASKS)
def test_scored_examples_are_never_trained_on(task):
    """Neither a pair nor its target, in whatever wording; nor is it what a run is evaluated on."""
    read = {pair.target for pair in islice(pair_recipe.training_examples(task, 0, 10), 2000)}
    aside = list(pair_recipe.held_out_examples(task, 200))
    asked = list(dates.examples(task, 0, "held-out", 200, start=pair_recipe.UNSEEN))
    assert len(read) > 1000
    assert not read & {pair.target for pair in [*aside, *asked, pair_recipe.sample_example(task)]}
    assert not {pair.origin for pair in aside} & {pair.origin for pair in asked}


def test_sample_example_is_long_and_in_words():
    pair = pair_recipe.sample_example("dates")
    assert len(pair.source) > 50
    assert not any(sign.isdigit() for sign in pair.source)
    assert pair_recipe.sample_example("reverse").source[::-1] == pair_recipe.sample_example("reverse").target


def test_systems_differ_only_in_their_model():
    found = [pair_recipe.train_config(system, "dates", "x", steps=5) for system in pair_recipe.SYSTEMS]
    assert len({replace(config, task=found[0].task) for config in found}) == 1
    assert isinstance(found[0], TrainConfig)


def test_recipe_scores_greedy_translations():
    """Against a count by hand of what an untrained model makes of the same pairs, and of one that knows them all."""
    tokenizer = make_tokenizer()
    config = Seq2SeqShape(d_model=16, n_layers=1, n_heads=2, context=64).expand(tokenizer.vocab_size)
    translator = Translator(randomise(EncoderDecoder(config)), tokenizer)
    scores = pair_recipe.score(translator, "copy", 40)
    assert (scores.count, scores.exact) == (40, 0.0)
    assert sum(bucket.count for bucket in scores.by_length) == 40
    lengths = [len(pair.source) for pair in dates.examples("copy", 0, "held-out", 40, start=pair_recipe.UNSEEN)]
    for bucket in scores.by_length:
        assert bucket.count == sum(bucket.least <= length <= bucket.most for length in lengths)
    assert pair_recipe.score(Copies(translator.model, tokenizer), "copy", 40).exact == 1.0


class Copies(Translator):
    """What translates each text into itself."""

    def translate(self, texts, **options):
        found = super().translate(texts, max_tokens=1)
        return [replace(one, targets=(replace(one.targets[0], text=one.source),)) for one in found]

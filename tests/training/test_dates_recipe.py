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
    """Neither an example nor another wording of its target is trained on, nor is it in the evaluation of a run."""
    trained = {pair.target for pair in islice(pair_recipe.training_examples(task, 0, 10), 2000)}
    held_out = list(pair_recipe.held_out_examples(task, 200))
    scored = list(dates.examples(task, 0, "held-out", 200, start=pair_recipe.UNSEEN))
    assert len(trained) > 1000
    assert not trained & {pair.target for pair in [*held_out, *scored, pair_recipe.sample_example(task)]}
    assert not {pair.origin for pair in held_out} & {pair.origin for pair in scored}


def test_sample_example_is_long_and_in_words():
    pair = pair_recipe.sample_example("dates")
    assert len(pair.source) > 50
    assert not any(sign.isdigit() for sign in pair.source)
    assert pair_recipe.sample_example("reverse").source[::-1] == pair_recipe.sample_example("reverse").target


def test_systems_differ_only_in_their_model():
    configs = [pair_recipe.train_config(system, "dates", "x", steps=5) for system in pair_recipe.SYSTEMS]
    assert len({replace(config, task=configs[0].task) for config in configs}) == 1
    assert isinstance(configs[0], TrainConfig)


def test_recipe_scores_greedy_translations():
    """Scores of an untrained model equal an independent count; a model that knows every target scores 1."""
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
    """A translator that copies each text."""

    def translate(self, texts, **options):
        found = super().translate(texts, max_tokens=1)
        return [replace(one, targets=(replace(one.targets[0], text=one.source),)) for one in found]

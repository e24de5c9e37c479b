"""Test that a training configuration rejects values of other types and numbers without meaning."""

import json
import math
from contextlib import suppress
from dataclasses import replace

import pytest

from glassformer.errors import ConfigError
from glassformer.families import find_family
from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape, ShapeConfig
from glassformer.training.config import (
    InitConfig,
    LanguageModelTaskConfig,
    OptimConfig,
    ScheduleConfig,
    Seq2SeqTaskConfig,
    TokenizerConfig,
    TrainConfig,
    config_dict,
    flatten,
    from_dict,
)

WRONG = {  # field: (value, what the error says)
    "data": ("book.txt", "data must be a tuple of strings, got 'book.txt': write ('book.txt',)"),
    "held_out_data": (["a"], "held_out_data must be a tuple of strings, got ['a']"),
    "out": (5, "out must be a string, got 5"),
    "task": ("lm", "task must be a LanguageModelTaskConfig or a Seq2SeqTaskConfig, got 'lm'"),
    "batch": (4.5, "batch must be a whole number"),
    "accumulate": (True, "accumulate must be a whole number, got True"),
    "seconds": (math.inf, "seconds must be a finite number or None, got inf"),
    "steps": ("9", "steps must be a whole number or None, got '9'"),
    "held_out": (math.nan, "held_out must be a finite number, got nan"),
    "threads": (10**6, "threads must be from 0 to 1,024, got 1000000"),
    "seed": (2**64, "seed must be from 0 to 9223372036854775807"),
    "eval_every": (-1, "eval_every must be at least 0, got -1"),
    "keep_last": (0, "keep_last must be at least 1, got 0"),
    "dtype": ("float8", "dtype must be one of auto, float32, bfloat16, got 'float8'"),
    "tensorboard": (1, "tensorboard must be True or False, got 1"),
    "optim": (None, "optim must be an OptimConfig, got None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value_raises_error_that_names_it(name):
    value, message = WRONG[name]
    with pytest.raises(ConfigError) as error:
        TrainConfig(**{name: value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(betas=(0.9,)), "optim.betas must be a tuple of 2 numbers, got (0.9,)"),
        (lambda: OptimConfig(lr=math.inf), "optim.lr must be a finite number or None, got inf"),
        (lambda: OptimConfig(lr=1e99), "optim.lr must be above 0 and at most 1,000, got 1e+99"),
        (lambda: OptimConfig(lr=0.0), "optim.lr must be above 0 and at most 1,000, got 0.0"),
        (lambda: InitConfig(std=1e99), "init.std must be above 0 and at most 1,000, got 1e+99"),
        (
            lambda: LanguageModelTaskConfig(ShapeConfig(rope_theta=1e99)),
            "rope_theta must be above 0 and at most 1e",
        ),
        (lambda: OptimConfig(weight_decay=1e99), "optim.weight_decay must be from 0 to 1,000, got 1e+99"),
        (lambda: OptimConfig(clip=math.nan), "optim.clip must be a finite number, got nan"),
        (lambda: ScheduleConfig(warmup=2.5), "schedule.warmup must be a whole number, got 2.5"),
        (lambda: InitConfig(std="0.1"), "init.std must be a finite number, got '0.1'"),
        (lambda: TokenizerConfig(path=3), "tokenizer.path must be a string or None, got 3"),
        (lambda: LanguageModelTaskConfig(model=ShapeConfig(d_model=64.0)), "task.model.d_model must be a whole number"),
        (lambda: Seq2SeqTaskConfig(model=Seq2SeqShape(norm_at="no")), "task.model.norm_at must be one of pre, post"),
    ],
)
def test_wrong_value_in_a_group_raises_error_that_names_it(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


MODELS = [
    LanguageModelTaskConfig(model=ShapeConfig(family="gpt2")),
    LanguageModelTaskConfig(model=find_family("qwen3").shape(ShapeConfig().fill(100))),
    Seq2SeqTaskConfig(),
    Seq2SeqTaskConfig(model=RecurrentShape(attention=None)),
]


@pytest.mark.parametrize("task", MODELS)
def test_recorded_config_round_trips_and_each_wrong_field_raises_config_error(task):
    config = TrainConfig(data=("a", "b"), task=task, optim=OptimConfig(betas=(0.8, 0.9)), steps=3)
    recorded = json.loads(json.dumps(config_dict(config)))
    assert from_dict(TrainConfig, recorded) == config
    for name in flatten(recorded):
        *path, last = name.split(".")
        for value in (None, [], {}, "x", -1.5, 10**30, [None]):
            copy = json.loads(json.dumps(recorded))
            group = copy
            for key in path:
                group = group[key]
            group[last] = value
            with suppress(ConfigError):  # any other error fails the test
                assert config_dict(from_dict(TrainConfig, copy))
    with pytest.raises(ConfigError, match=r"config.task.model has no family, vocab_size"):
        from_dict(TrainConfig, {"task": {"kind": "lm", "model": {"positions": None, "layers": []}}})


def test_replace_checks_again():
    with pytest.raises(ConfigError, match="batch must be at least 0, got -1"):
        replace(TrainConfig(), batch=-1)

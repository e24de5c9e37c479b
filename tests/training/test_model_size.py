"""The size of a new model is checked before anything is allocated, read or written."""

import pytest
from tiny import encoder_decoder_config, tiny_config

from glassformer.config import RecurrentConfig
from glassformer.errors import ConfigError
from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape, ShapeConfig
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.training import model_size
from glassformer.training.config import LanguageModelTaskConfig, Seq2SeqTaskConfig, TrainConfig
from glassformer.training.model_size import check_model_size, count_parameters
from glassformer.training.run.train import train

SHAPES = [
    LanguageModelTaskConfig(model=ShapeConfig(d_model=10_000_000)),
    LanguageModelTaskConfig(model=ShapeConfig(d_ff=1 << 40)),
    LanguageModelTaskConfig(model=ShapeConfig(vocab_size=1 << 50)),
    LanguageModelTaskConfig(model=ShapeConfig(d_model=1 << 60)),
    LanguageModelTaskConfig(model=ShapeConfig(n_layers=10**9)),
    Seq2SeqTaskConfig(model=Seq2SeqShape(d_model=10_000_000)),
    Seq2SeqTaskConfig(model=Seq2SeqShape(n_layers=10**9)),
    Seq2SeqTaskConfig(model=RecurrentShape(d_model=10_000_000)),
    Seq2SeqTaskConfig(model=RecurrentShape(n_layers=10**9)),
]


@pytest.mark.parametrize("task", SHAPES, ids=lambda task: str(task.model)[:60])
def test_shapes_beyond_the_memory_are_rejected(task, tmp_path):
    (tmp_path / "data.tsv").write_text("a\tb\n" * 100)
    config = TrainConfig(data=(str(tmp_path / "data.tsv"),), out=str(tmp_path / "run"), steps=1, task=task)
    with pytest.raises(ConfigError, match=r"GiB of memory|too large|n_layers must be at most 10,000"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n_layers", [1, 3])
def test_counts_equal_those_of_the_models(n_layers):
    recurrent = RecurrentConfig(11, 13, 10, 12, n_layers=n_layers, attention="dot")
    assert count_parameters(recurrent) == sum(p.numel() for p in RecurrentEncoderDecoder(recurrent).parameters())
    shape = Seq2SeqShape(d_model=16, n_layers=n_layers, n_heads=2).expand(19)
    for config, model in (
        (tiny_config("qwen3"), Decoder),
        (encoder_decoder_config("pre"), EncoderDecoder),
        (shape, EncoderDecoder),
    ):
        assert count_parameters(config) == sum(p.numel() for p in model(config).parameters())


def test_a_system_that_does_not_tell_its_memory(monkeypatch):
    monkeypatch.setattr(model_size, "physical_memory", lambda: None)
    check_model_size(tiny_config("qwen3"))

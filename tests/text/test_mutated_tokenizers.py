"""Damaged tokenizer files of every format: `make soak` runs more of the same mutations."""

import pytest
from mutate import run_mutations
from mutated_tokenizers import FORMATS, GGUF, check_any, files, gguf_metadata, save, use

from glassformer.formats.gguf.tokenizer_read import tokenizer_from_gguf
from glassformer.text.files.load import load_tokenizer


@pytest.mark.parametrize("name", FORMATS)
def test_undamaged_files_load(name, tmp_path):
    use(load_tokenizer(save(tmp_path, files(name))))


def test_undamaged_metadata_load():
    for name in GGUF:
        use(tokenizer_from_gguf(gguf_metadata(name)))


def test_damaged_files_load_or_raise_one_error():
    assert run_mutations(check_any, range(400)) == []

"""Damaged data files of every format: `make soak` runs more of the same mutations."""

from mutate import run_mutations
from mutated_data import FORMATS, TEXTS, check_any

from glassformer.training.data.sources import DocumentFiles


def test_undamaged_files_are_read(tmp_path):
    for name, (data, _) in FORMATS.items():
        (tmp_path / name).write_bytes(data)
        files = DocumentFiles(tmp_path / name)
        assert "".join(d.text for d in files).count("text") >= len(TEXTS) or name == "a.tsv"
        assert files.skipped.total == 0


def test_damaged_files_give_text_or_data_errors():
    assert run_mutations(check_any, range(600)) == []

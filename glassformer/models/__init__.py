"""The models that users hold: language models, translators and embedders."""

"""Tokenizer files of every supported format: detection and loading."""

"""Find and open the tokenizer files of a folder."""
